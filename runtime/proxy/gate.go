package proxy

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/crinet-project/crinet/internal/backoff"
)

// gate is the listener of the gRPC server. It can be shut without a connection
// that was accepted being refused: GracefulStop closes those that the server has
// not begun to serve when it is called, and their callers see a failure.
type gate struct {
	net.Listener
	close func() error // of the listener, once

	accepted atomic.Int64 // connections that Accept returned
	begun    atomic.Int64 // those whose handshake the server has begun
}

func newGate(listener net.Listener) *gate {
	return &gate{Listener: wideListener{listener}, close: sync.OnceValue(listener.Close)}
}

// Accept implements net.Listener.
func (g *gate) Accept() (net.Conn, error) {
	conn, err := g.Listener.Accept()
	if err == nil {
		g.accepted.Add(1)
	}
	return conn, err
}

// Close implements net.Listener. Where somebody else holds the socket too, such
// as systemd, connections that come from now on wait for the next crinetd.
func (g *gate) Close() error { return g.close() }

// settle waits until the server has begun every connection that was accepted.
// Accept must have ended.
func (g *gate) settle(timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for g.begun.Load() < g.accepted.Load() && backoff.Sleep(ctx, time.Millisecond) {
	}
}

// counted are credentials that tell the gate of each handshake.
type counted struct {
	credentials.TransportCredentials
	gate func() *gate
}

// ServerHandshake implements credentials.TransportCredentials.
func (c counted) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if g := c.gate(); g != nil {
		g.begun.Add(1)
	}
	return c.TransportCredentials.ServerHandshake(conn)
}

// Clone implements credentials.TransportCredentials.
func (c counted) Clone() credentials.TransportCredentials {
	return counted{c.TransportCredentials.Clone(), c.gate}
}
