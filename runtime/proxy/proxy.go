package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// MaxMessageSize is the size in bytes of the largest message that passes,
// either way. The kubelet itself stops at 16 MiB.
const MaxMessageSize = 64 << 20

// OtherMethod is what Config.Observe gets for a method that is neither hooked nor
// in the CRI version that crinetd was built with. Callers that invent method names
// thus cannot make the set of labels grow.
const OtherMethod = "other"

// Defaults of Config.
const (
	defaultGrace     = 5 * time.Second
	defaultPassGrace = 2 * time.Second
)

// handshakeTimeout is how long a client may take to begin HTTP/2. A client that
// connects and sends nothing delays the end of Serve by that time.
const handshakeTimeout = 2 * time.Second

// Forward makes the upstream call with the caller's metadata and returns the
// answer as it came. Its error is a gRPC status; hooks return it unchanged. The
// hook must not change request after the call. If it forwards more than once, the
// caller gets the headers and trailers of the last answer. A hook must not use
// its Forward from two goroutines at once, nor after it has returned.
type Forward func(ctx context.Context, request []byte) ([]byte, error)

// Hook answers one unary call in place of upstream, which it reaches through
// next. Its context has the caller's deadline and cancellation. The caller gets
// the error as a gRPC status, with codes.Unknown if it has none. The proxy logs a
// panic and answers with codes.Internal.
type Hook func(ctx context.Context, request []byte, next Forward) ([]byte, error)

// Config says where calls go. RuntimeEndpoint is required.
type Config struct {
	// RuntimeEndpoint is the runtime's socket: unix:///path, or /path.
	RuntimeEndpoint string
	// Runtime, if set, is a connection to RuntimeEndpoint that Dial made. The
	// proxy shares it and does not close it, so that calls of crinetd's own and
	// those that pass see the runtime come and go at the same time.
	Runtime *grpc.ClientConn
	// ImageEndpoint is where the image service's calls go. When empty or
	// equal to RuntimeEndpoint, both share one connection.
	ImageEndpoint string
	// Hooks take over unary methods, by full name: /package.Service/Method.
	Hooks map[string]Hook
	// Log gets the outcome of every call: at debug level if it is OK, else at
	// info or warn level. A nil Log discards.
	Log *slog.Logger
	// Observe, if set, is called with the outcome of every call. method is the
	// full name or OtherMethod. It runs on the call's goroutine.
	Observe func(method string, code codes.Code, d time.Duration)
	// Drain are the methods, by full name, whose calls may take Grace to finish
	// when Serve ends. 0 means 5 s.
	Drain []string
	Grace time.Duration
	// PassGrace is how long all other calls may take then, but for those that
	// never end by themselves or pull an image, which are ended at once. 0 means
	// 2 s.
	PassGrace time.Duration
}

// Proxy is a CRI server that passes calls on. Its methods may be called
// concurrently.
type Proxy struct {
	log      *slog.Logger
	hooks    map[string]Hook
	methods  map[string]bool
	unary    map[string]bool // those of methods that are no streams
	onResult func(method string, code codes.Code, d time.Duration)
	classes  map[string]class // of methods; all others pass

	grace, passGrace time.Duration

	runtime, image *upstream
	server         *grpc.Server
	gate           atomic.Pointer[gate] // nil before Serve
	calls          callSet
}

// New checks the configuration. It does not connect: upstream may come later.
func New(c Config) (*Proxy, error) {
	for method, hook := range c.Hooks {
		if hook == nil || !strings.HasPrefix(method, "/") || strings.Count(method, "/") != 2 {
			return nil, fmt.Errorf("CRI proxy: hook for %q: want /package.Service/Method and a function", method)
		}
	}
	runtime, err := dial(c.RuntimeEndpoint, c.Runtime)
	if err != nil {
		return nil, fmt.Errorf("CRI proxy: container runtime endpoint: %w", err)
	}
	image := runtime
	if c.ImageEndpoint != "" && c.ImageEndpoint != c.RuntimeEndpoint {
		if image, err = dial(c.ImageEndpoint, nil); err != nil {
			return nil, errors.Join(fmt.Errorf("CRI proxy: image service endpoint: %w", err), runtime.close())
		}
	}
	p := &Proxy{
		log:       c.Log,
		hooks:     maps.Clone(c.Hooks),
		methods:   knownMethods(c.Hooks),
		unary:     unaryMethods(),
		onResult:  c.Observe,
		classes:   classify(c.Drain),
		grace:     c.Grace,
		passGrace: c.PassGrace,
		runtime:   runtime,
		image:     image,
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if p.onResult == nil {
		p.onResult = func(string, codes.Code, time.Duration) {}
	}
	if p.grace <= 0 {
		p.grace = defaultGrace
	}
	if p.passGrace <= 0 {
		p.passGrace = defaultPassGrace
	}
	p.server = grpc.NewServer(
		grpc.Creds(counted{insecure.NewCredentials(), p.gate.Load}),
		grpc.ForceServerCodecV2(rawCodec{}),
		grpc.UnknownServiceHandler(p.handle),
		grpc.StreamInterceptor(p.report),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxRecvMsgSize(MaxMessageSize),
		grpc.MaxSendMsgSize(MaxMessageSize),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		grpc.WriteBufferSize(writeBuffer),
	)
	return p, nil
}

// knownMethods returns the methods of the CRI version that crinetd was built with,
// and the hooked ones.
func knownMethods(hooks map[string]Hook) map[string]bool {
	known := unaryMethods()
	for _, service := range services() {
		for _, s := range service.Streams {
			known["/"+service.ServiceName+"/"+s.StreamName] = true
		}
	}
	for method := range hooks {
		known[method] = true
	}
	return known
}

// unaryMethods returns the methods of that CRI version that are no streams.
func unaryMethods() map[string]bool {
	unary := make(map[string]bool)
	for _, service := range services() {
		for _, m := range service.Methods {
			unary["/"+service.ServiceName+"/"+m.MethodName] = true
		}
	}
	return unary
}

func services() []*grpc.ServiceDesc {
	return []*grpc.ServiceDesc{&runtimeapi.RuntimeService_ServiceDesc, &runtimeapi.ImageService_ServiceDesc}
}

// Close ends the upstream connections, and with them all calls under way.
// Call it when Serve has returned.
func (p *Proxy) Close() error {
	p.server.Stop()
	err := p.runtime.close()
	if p.image != p.runtime {
		err = errors.Join(err, p.image.close())
	}
	if err != nil {
		return fmt.Errorf("CRI proxy: closing the upstream connections: %w", err)
	}
	return nil
}

// handle answers every call of every service.
func (p *Proxy) handle(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	md, _ := metadata.FromIncomingContext(stream.Context())
	c := &call{method: method, md: md, upstream: p.route(method)}
	u := p.calls.begin(stream.Context(), p.classOf(method))
	defer p.calls.end(u)
	if hook := p.hooks[method]; hook != nil {
		return u.reason(stream.Context(), p.hooked(u.ctx, stream, c, hook))
	}
	return u.reason(stream.Context(), p.pipe(u, stream, c))
}

// route sends the image service of any CRI version to the image endpoint and
// everything else to the runtime.
func (p *Proxy) route(method string) *upstream {
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	if strings.HasPrefix(service, "runtime.") && strings.HasSuffix(service, ".ImageService") {
		return p.image
	}
	return p.runtime
}
