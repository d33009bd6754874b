package proxy

import (
	"context"
	"fmt"
	"maps"
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
	// Flow-control windows in bytes. They let a large list come in one go, and a
	// stream that nobody reads stop without stopping its connection.
	streamWindow = 4 << 20
	connWindow   = 16 << 20

	// protoSubtype is gRPC's content-subtype for protobuf, the default.
	protoSubtype = "proto"

	// connectTimeout bounds the wait for a runtime that accepts a connection and
	// does not answer on it.
	connectTimeout = 5 * time.Second
)

// upstream is a socket to which the proxy passes calls.
type upstream struct {
	path   string
	conn   *grpc.ClientConn
	shared bool // somebody else made conn, and closes it
}

// close closes the connection if it is the proxy's own.
func (u *upstream) close() error {
	if u.shared {
		return nil
	}
	return u.conn.Close()
}

// Dial returns a connection to a container runtime for crinetd's own, typed calls.
// It connects with the first call. While the runtime is down, calls fail at once
// with codes.Unavailable, unless they are made with grpc.WaitForReady.
func Dial(endpoint string) (*grpc.ClientConn, error) {
	up, err := dial(endpoint, nil)
	if err != nil {
		return nil, fmt.Errorf("container runtime endpoint: %w", err)
	}
	return up.conn, nil
}

// dial makes the connection to endpoint, if it is not given one; it connects with
// the first call.
func dial(endpoint string, shared *grpc.ClientConn) (*upstream, error) {
	path, err := socketPath(endpoint)
	if err != nil {
		return nil, err
	}
	if shared != nil {
		return &upstream{path: path, conn: shared, shared: true}, nil
	}
	// gRPC would decode the path if it stood in the target URL.
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
	stream, err := c.upstream.conn.NewStream(metadata.NewOutgoingContext(ctx, replaced(ctx, outgoing(c.md))), desc, c.method, opts...)
	if err == nil {
		return stream, nil
	}
	// NewStream fails with Unavailable if there is no connection.
	if status.Code(err) == codes.Unavailable {
		return nil, status.Errorf(codes.Unavailable, "the container runtime does not answer at %s, it may be down: %s", c.upstream.path, status.Convert(err).Message())
	}
	return nil, err
}

// metadataKey is where WithMetadata keeps what it adds.
type metadataKey struct{}

// WithMetadata returns a context with which a hook's Forward sends md in the place of
// what the caller sent under the same keys. All else passes as it came.
func WithMetadata(ctx context.Context, md metadata.MD) context.Context {
	return context.WithValue(ctx, metadataKey{}, md)
}

// replaced returns md with what a hook put into ctx.
func replaced(ctx context.Context, md metadata.MD) metadata.MD {
	own, ok := ctx.Value(metadataKey{}).(metadata.MD)
	if !ok {
		return md
	}
	md = md.Copy()
	maps.Copy(md, own)
	return md
}

// outgoing removes from md the header that is about one hop only, and returns md.
// gRPC itself removes the other headers of that kind.
func outgoing(md metadata.MD) metadata.MD {
	delete(md, "grpc-accept-encoding")
	return md
}

// contentSubtype returns what follows application/grpc+ in the content type.
func contentSubtype(md metadata.MD) string {
	values := md.Get("content-type")
	if len(values) == 0 {
		return ""
	}
	_, subtype, _ := strings.Cut(values[0], "+")
	subtype, _, _ = strings.Cut(subtype, ";")
	return subtype
}
