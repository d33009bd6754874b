package node

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// connectTimeout is how long a connection may take that waits in a listen queue,
// gRPC's default. The kubelet takes five seconds.
const connectTimeout = 20 * time.Second

// maxMessage is the kubelet's limit for a CRI message.
const maxMessage = 16 << 20

// Client speaks CRI to a socket of the node.
type Client struct {
	Runtime runtimeapi.RuntimeServiceClient
	Image   runtimeapi.ImageServiceClient
	// Conn is for methods that the two clients do not have.
	Conn *grpc.ClientConn

	node *Node
}

// Client returns a client of a socket of the node, such as CrinetdSocket. Calls
// fail while nobody listens there. The node's Close closes it.
func (n *Node) Client(socket string) (*Client, error) {
	conn, err := grpc.NewClient("unix://"+n.Path(socket),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, MaxDelay: 250 * time.Millisecond},
			MinConnectTimeout: connectTimeout,
		}))
	if err != nil {
		return nil, fmt.Errorf("make a CRI client of %s: %w", socket, err)
	}
	n.mu.Lock()
	n.clients = append(n.clients, conn)
	n.mu.Unlock()
	return &Client{
		Runtime: runtimeapi.NewRuntimeServiceClient(conn),
		Image:   runtimeapi.NewImageServiceClient(conn),
		Conn:    conn,
		node:    n,
	}, nil
}

// NetworkReady returns the condition of that name.
func (c *Client) NetworkReady(ctx context.Context) (*runtimeapi.RuntimeCondition, error) {
	resp, err := c.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return nil, err
	}
	for _, condition := range resp.GetStatus().GetConditions() {
		if condition.GetType() == runtimeapi.NetworkReady {
			return condition, nil
		}
	}
	return nil, fmt.Errorf("the status has no condition %s: %v", runtimeapi.NetworkReady, resp)
}

// AwaitNetwork waits until NetworkReady is true, or false, and returns the
// condition.
func (c *Client) AwaitNetwork(ctx context.Context, ready bool) (*runtimeapi.RuntimeCondition, error) {
	for {
		condition, err := c.NetworkReady(ctx)
		if err == nil && condition.GetStatus() == ready {
			return condition, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %s to be %t: %w, last: %v, %w", runtimeapi.NetworkReady, ready, ctx.Err(), condition, err)
		case <-time.After(pollEvery):
		}
	}
}

// Crictl runs crictl in the node against one of its sockets and returns what it
// printed.
func (n *Node) Crictl(ctx context.Context, socket string, args ...string) (string, error) {
	return n.Run(ctx, "crictl", append(crictlFlags(socket), args...)...)
}

func crictlFlags(socket string) []string {
	endpoint := "unix://" + socket
	return []string{"--runtime-endpoint", endpoint, "--image-endpoint", endpoint, "--timeout", "120s"}
}
