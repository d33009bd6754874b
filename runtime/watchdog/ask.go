package watchdog

import (
	"context"
	"errors"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/cni/wire"
)

// askCRI asks for Status on a connection of its own. Only silence is an error.
func askCRI(ctx context.Context, path string) (err error) {
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(), grpc.WithDisableServiceConfig())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	_, err = runtimeapi.NewRuntimeServiceClient(conn).Status(ctx, &runtimeapi.StatusRequest{}, grpc.WaitForReady(true))
	if code := status.Code(err); code == codes.DeadlineExceeded || code == codes.Canceled {
		return err
	}
	return nil
}

// question is the configuration that STATUS of CNI is asked with.
const question = `{"cniVersion":"1.1.0","name":"crinet","type":"crinet"}`

// askCNI asks for STATUS as the plugin does.
func askCNI(ctx context.Context, path string) (err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if err := wire.WriteRequest(conn, &wire.Request{Command: wire.CommandStatus, Stdin: []byte(question)}); err != nil {
		return err
	}
	_, err = wire.ReadReply(conn)
	return err
}
