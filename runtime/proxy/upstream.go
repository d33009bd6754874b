package proxy

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// Flow-control windows in bytes: large lists come in one go, and a stream
	// that nobody reads holds back itself, not the connection.
	streamWindow = 4 << 20
	connWindow   = 16 << 20

	// protoSubtype is gRPC's content-subtype for protobuf, the default.
	protoSubtype = "proto"

	// connectTimeout bounds connecting to a runtime whose socket is there but
	// which does not speak.
	connectTimeout = 5 * time.Second
)

// upstream is one socket that calls are passed to.
type upstream struct {
	path string
	conn *grpc.ClientConn
}

// dial makes the connection to endpoint; it connects with the first call.
func dial(endpoint string) (*upstream, error) {
	path, err := socketPath(endpoint)
	if err != nil {
		return nil, err
	}
	// A dialer of our own: the path may hold what a target URL would decode.
	dialer := func(ctx context.Context, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithContextDialer(dialer),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithIdleTimeout(0),
		// With its jitter, the longest wait stays below one second.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 800 * time.Millisecond},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connWindow),
		grpc.WithReadBufferSize(readBuffer),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageSize), grpc.MaxCallSendMsgSize(MaxMessageSize)),
	)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", endpoint, err)
	}
	return &upstream{path: path, conn: conn}, nil
}

// socketPath reads an endpoint as the kubelet does: unix:///path, unix:/path
// or /path.
func socketPath(endpoint string) (string, error) {
	path := endpoint
	if scheme, rest, ok := strings.Cut(endpoint, ":"); ok && !strings.HasPrefix(endpoint, "/") {
		if scheme != "unix" {
			return "", fmt.Errorf("%q: %q is not supported, use unix:///path/of.sock", endpoint, scheme)
		}
		path = strings.TrimPrefix(rest, "//")
	}
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%q: want the absolute path of a socket, as in unix:///run/containerd/containerd.sock", endpoint)
	}
	return filepath.Clean(path), nil
}

// call is one call to be passed on.
type call struct {
	method   string
	md       metadata.MD
	upstream *upstream
}

// open starts the call upstream with the caller's metadata.
func (c *call) open(ctx context.Context, desc *grpc.StreamDesc) (grpc.ClientStream, error) {
	opts := []grpc.CallOption{grpc.ForceCodecV2(rawCodec{})}
	if subtype := contentSubtype(c.md); subtype != "" && subtype != protoSubtype {
		opts = append(opts, grpc.CallContentSubtype(subtype))
	}
	stream, err := c.upstream.conn.NewStream(metadata.NewOutgoingContext(ctx, outgoing(c.md)), desc, c.method, opts...)
	if err == nil {
		return stream, nil
	}
	// A stream that could not begin was refused on this side.
	if status.Code(err) == codes.Unavailable {
		return nil, status.Errorf(codes.Unavailable, "the container runtime does not answer at %s, it may be down: %s", c.upstream.path, status.Convert(err).Message())
	}
	return nil, err
}

// outgoing is md without what speaks for one hop only. gRPC itself leaves out
// the other headers of that kind. md may be changed.
func outgoing(md metadata.MD) metadata.MD {
	delete(md, "grpc-accept-encoding")
	return md
}

// contentSubtype is what follows application/grpc+ in the content type.
func contentSubtype(md metadata.MD) string {
	values := md.Get("content-type")
	if len(values) == 0 {
		return ""
	}
	_, subtype, _ := strings.Cut(values[0], "+")
	subtype, _, _ = strings.Cut(subtype, ";")
	return subtype
}
