package main

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/doctor"
	"github.com/crinet-project/crinet/runtime/admin"
	"github.com/crinet-project/crinet/runtime/upstream"
)

// maxRuntimeAnswer bounds an answer of the runtime, in bytes.
const maxRuntimeAnswer = 16 << 20

// newDoctorNode returns the node whose tree is at root. crinetd's flags that are given
// count more than those that are found.
func newDoctorNode(root string, crinetd []string) (*doctor.Node, error) {
	n := &doctor.Node{Root: root, Live: filepath.Clean(root) == "/", Version: version}
	if err := n.FindOptions(crinetd); err != nil {
		return nil, err
	}
	if n.Live {
		client := admin.NewClient(filepath.Join(n.Options.RunDir, "admin.sock"))
		n.Crinetd = func(ctx context.Context) (*doctor.Crinetd, error) { return askCrinetd(ctx, client) }
		n.Runtime = func(ctx context.Context) (*doctor.Runtime, error) {
			return askRuntime(ctx, n.Options.ContainerRuntimeEndpoint)
		}
	}
	return n, nil
}

// askCrinetd asks crinetd for all that the doctor wants to know.
func askCrinetd(ctx context.Context, client *admin.Client) (*doctor.Crinetd, error) {
	s, err := client.Status(ctx)
	if err != nil {
		return nil, err
	}
	pods, err := client.Pods(ctx)
	if err != nil {
		return nil, err
	}
	c := &doctor.Crinetd{
		Version: s.Version, Plugin: s.Plugin, Ready: s.Ready, Reason: s.Reason, Network: s.Network, NetworkFile: s.NetworkFile,
		PodCIDRs: s.PodCIDRs, AddFailures: s.AddFailures, UndoPending: s.UndoPending,
	}
	for _, p := range s.NetworkPlugins {
		if !p.Builtin {
			c.Executed = append(c.Executed, p.Type)
		}
	}
	if r := s.Runtime; r != nil {
		c.Loaded, c.RuntimeProblem = r.Loaded, r.Problem
	}
	if h := s.HostPorts; h != nil {
		c.HostPorts, c.Mapped = true, h.Mappings
		for _, reason := range []string{h.Flows, h.Listeners, h.Unavailable} {
			if reason != "" {
				c.HostPortProblem = reason
			}
		}
	}
	for _, p := range pods {
		c.Pods = append(c.Pods, doctor.Pod{
			Name: p.Namespace + "/" + p.Name, Sandbox: p.SandboxID, State: p.State, Network: p.Network, NetNS: p.NetNS,
			Addresses: p.Addresses, Tries: p.Tries, LastError: p.LastError,
		})
	}
	return c, nil
}

// askRuntime asks the container runtime, past crinetd.
func askRuntime(ctx context.Context, endpoint string) (_ *doctor.Runtime, err error) {
	path := strings.TrimPrefix(endpoint, "unix://")
	// gRPC's own error for nobody there is three times as long.
	there, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := there.Close(); err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxRuntimeAnswer)),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	var version *runtimeapi.VersionResponse
	var status *runtimeapi.StatusResponse
	var sandboxes map[string]bool
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) { version, err = client.Version(ctx, &runtimeapi.VersionRequest{}); return err })
	group.Go(func() (err error) {
		status, err = client.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
		return err
	})
	group.Go(func() (err error) { sandboxes, err = upstream.NewSandboxes(conn).List(ctx); return err })
	if err := group.Wait(); err != nil {
		return nil, errors.New(grpcstatus.Convert(err).Message())
	}
	facts := upstream.ReadFacts(version.GetRuntimeName(), version.GetRuntimeVersion(), status)
	r := &doctor.Runtime{
		Name: facts.Name, Version: facts.Version, Told: facts.Told, ConfDir: facts.ConfDir, BinDirs: facts.BinDirs, MaxConfNum: facts.MaxConfNum,
		InternalLoopback: facts.InternalLoopback, Handlers: facts.Handlers, Loaded: facts.Loaded, LoadError: facts.LoadError,
	}
	for id := range sandboxes {
		r.Sandboxes = append(r.Sandboxes, id)
	}
	return r, nil
}
