package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

// TestMain fails when a test leaves goroutines of gRPC or of ours behind.
func TestMain(m *testing.M) {
	code := m.Run()
	deadline := time.Now().Add(patience)
	for code == 0 {
		buf := make([]byte, 4<<20)
		stacks := string(buf[:runtime.Stack(buf, true)])
		_, others, _ := strings.Cut(stacks, "\n\n") // the first is this one
		if !strings.Contains(others, "google.golang.org/grpc") && !strings.Contains(others, "runtime/proxy") {
			break
		}
		if time.Now().After(deadline) {
			fmt.Fprintf(os.Stderr, "goroutines were left behind:\n%s\n", others)
			code = 1
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	os.Exit(code)
}

// handler is one method of the fake upstream.
type handler func(stream grpc.ServerStream) error

// fakeUpstream is a gRPC server on a unix socket that sees raw messages.
type fakeUpstream struct {
	path   string
	server *grpc.Server
	done   chan struct{}
}

func startUpstream(t testing.TB, path string, methods map[string]handler) *fakeUpstream {
	t.Helper()
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	u := &fakeUpstream{path: path, done: make(chan struct{})}
	u.server = grpc.NewServer(
		grpc.ForceServerCodecV2(rawCodec{}),
		grpc.MaxRecvMsgSize(128<<20),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
			method, _ := grpc.MethodFromServerStream(stream)
			if h := methods[method]; h != nil {
				return h(stream)
			}
			return status.Errorf(codes.Unimplemented, "unknown method %s", method)
		}),
	)
	go func() {
		defer close(u.done)
		if err := u.server.Serve(lis); err != nil {
			t.Errorf("fake upstream: %v", err)
		}
	}()
	t.Cleanup(u.kill)
	return u
}

// kill ends the server and all of its calls; its socket file goes with it.
func (u *fakeUpstream) kill() {
	u.server.Stop()
	<-u.done
}

// sockets is a folder with paths short enough for sockets.
func sockets(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "x")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// running is a proxy that serves.
type running struct {
	proxy *Proxy
	path  string
	stop  func() error // ends Serve and returns what it returned
}

func startProxy(t testing.TB, c Config) *running {
	t.Helper()
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(sockets(t), "p")
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- p.Serve(ctx, lis) }()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-served
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return &running{proxy: p, path: path, stop: stop}
}

func connect(t testing.TB, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(128<<20), grpc.ForceCodecV2(rawCodec{})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// pair is an upstream with a connection to it, and one through a proxy.
type pair struct {
	direct, proxied *grpc.ClientConn
	proxy           *running
}

func startPair(t testing.TB, c Config, methods map[string]handler) pair {
	t.Helper()
	up := startUpstream(t, filepath.Join(sockets(t), "u"), methods)
	c.RuntimeEndpoint = "unix://" + up.path
	run := startProxy(t, c)
	return pair{direct: connect(t, up.path), proxied: connect(t, run.path), proxy: run}
}

// outcome is all that a caller can see of a call.
type outcome struct {
	Header, Trailer metadata.MD
	Answers         []string
	Status          string // the whole status as protobuf bytes
}

func (o outcome) code() codes.Code { return status.FromProto(o.proto()).Code() }

func (o outcome) message() string { return o.proto().GetMessage() }

var bidi = &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}

// do makes a call that sends all requests, then reads all answers.
func do(ctx context.Context, conn grpc.ClientConnInterface, method string, requests ...[]byte) outcome {
	stream, err := conn.NewStream(ctx, bidi, method)
	if err != nil {
		return outcome{Status: marshalStatus(err)}
	}
	for _, r := range requests {
		if err := stream.SendMsg(message(r)); err != nil {
			break // the reason comes with RecvMsg
		}
	}
	if err := stream.CloseSend(); err != nil {
		return outcome{Status: marshalStatus(err)}
	}
	return rest(stream)
}

// rest reads a call to its end.
func rest(stream grpc.ClientStream) outcome {
	var o outcome
	for {
		var f frame
		err := stream.RecvMsg(&f)
		if err == nil {
			o.Answers = append(o.Answers, string(f.take()))
			continue
		}
		if !errors.Is(err, io.EOF) {
			o.Status = marshalStatus(err)
		}
		o.Header, _ = stream.Header()
		o.Trailer = stream.Trailer()
		return o
	}
}

func message(b []byte) *frame { return &frame{data: mem.BufferSlice{mem.SliceBuffer(b)}} }

// receiveAll reads what the caller sends, to its half-close.
func receiveAll(stream grpc.ServerStream) ([][]byte, error) {
	var all [][]byte
	for {
		var f frame
		err := stream.RecvMsg(&f)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, f.take())
	}
}

// echo answers the messages of the caller, joined.
func echo(stream grpc.ServerStream) error {
	all, err := receiveAll(stream)
	if err != nil {
		return err
	}
	return stream.SendMsg(message(bytes.Join(all, nil)))
}

func marshalStatus(err error) string {
	b, marshalErr := proto.MarshalOptions{Deterministic: true}.Marshal(status.Convert(err).Proto())
	if marshalErr != nil {
		return marshalErr.Error()
	}
	return string(b)
}

// proto is the status that the outcome holds.
func (o outcome) proto() *spb.Status {
	var st spb.Status
	if err := proto.Unmarshal([]byte(o.Status), &st); err != nil {
		return &spb.Status{Code: -1, Message: o.Status}
	}
	return &st
}
