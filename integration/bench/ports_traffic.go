package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/runtime/upstream"
)

const (
	trafficLimit = 0.95 // of the rate with one mapping
	slice        = 500 * time.Millisecond
	clients      = 4 // at a time
)

// endpoint is a server in a pod, reached by a hostPort from outside.
type endpoint struct {
	mapper *mapper
	addr   netPort
	// taken counts the bytes that the server has read.
	taken              atomic.Int64
	connections, rates []float64 // per second; MB per second
}

// netPort is the node's address as the kernel takes it.
type netPort = unix.SockaddrInet4

// measureTraffic compares the nodes as they are, full of mappings, with fresh ones
// on which the server's is the only one.
func measureTraffic(ctx context.Context, kit *node.Kit, full []*mapper, o options, out io.Writer) (err error) {
	fresh, err := startMappers(ctx, kit)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeMappers(fresh)) }()
	var all []*endpoint
	for i := range full {
		for _, m := range []*mapper{fresh[i], full[i]} {
			e, stop, err := startServer(ctx, m)
			if err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			defer stop()
			all = append(all, e)
		}
	}
	for round := range 1 + max(o.portRounds/3, 2) {
		for _, e := range all {
			if err := e.measure(ctx, round > 0); err != nil {
				return fmt.Errorf("%s: %w", e.mapper.name, err)
			}
		}
	}
	g := grid{head: []string{"through a hostPort", "mapped by", "1 mapping", fmt.Sprintf("%d mappings", full[0].loaded+1), "ratio", "target", "reached"}}
	addTrafficRows(&g, "new connections per second", all, func(e *endpoint) []float64 { return e.connections })
	addTrafficRows(&g, "MB per second, one connection", all, func(e *endpoint) []float64 { return e.rates })
	return g.print(out)
}

// addTrafficRows adds a row for each mapper, whose two endpoints follow each
// other.
func addTrafficRows(g *grid, what string, all []*endpoint, of func(*endpoint) []float64) {
	for i := 0; i < len(all); i += 2 {
		few, many := of(all[i]), of(all[i+1])
		ratios := ratiosOf(many, few)
		target, reached := "", ""
		if all[i].mapper.name == crinetMapper {
			target, reached = fmt.Sprintf("≥ × %.2f", trafficLimit), verdict(median(ratios) < trafficLimit)
		}
		low, high := medianRange(ratios)
		g.add(what, all[i].mapper.name, fmt.Sprintf("%.0f", median(few)), fmt.Sprintf("%.0f", median(many)),
			fmt.Sprintf("× %.3f (%.3f to %.3f)", median(ratios), low, high), target, reached)
	}
}

// startServer runs a pod with one hostPort and listens in it.
func startServer(ctx context.Context, m *mapper) (e *endpoint, stop func(), err error) {
	id, _, err := runPod(ctx, m.node, m.client, m.config("server", measuredPorts, 1), "")
	if err != nil {
		return nil, nil, err
	}
	netns, err := netnsOf(ctx, m, id)
	if err != nil {
		return nil, nil, err
	}
	var listener net.Listener
	err = inNetNS(m.node.Path(netns), func() (err error) {
		listener, err = net.Listen("tcp4", fmt.Sprintf(":%d", serverPort))
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("listen in the pod: %w", err)
	}
	e = &endpoint{mapper: m, addr: netPort{Port: measuredPorts}}
	copy(e.addr.Addr[:], net.ParseIP(node.NodeIPv4).To4())
	for range 2 {
		go e.serve(listener)
	}
	return e, func() { _ = listener.Close() }, nil
}

// netnsOf is the sandbox's network namespace as containerd says.
func netnsOf(ctx context.Context, m *mapper, id string) (string, error) {
	ns, err := upstream.NewSandboxes(m.client.Conn).NetNS(ctx, id)
	if err != nil {
		return "", err
	}
	if ns != "" {
		return path.Join("/run/netns", path.Base(ns)), nil
	}
	return "", fmt.Errorf("containerd names no network namespace of sandbox %s", id)
}

// serve reads what a client sends. One that says nothing is closed at once.
func (e *endpoint) serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return // the listener was closed
		}
		if tcp, ok := conn.(*net.TCPConn); ok && tcp.RemoteAddr().(*net.TCPAddr).Port == bulkPort {
			go e.take(conn)
			continue
		}
		_ = conn.Close() // the client waits for it, and fails without
	}
}

// take reads all that comes.
func (e *endpoint) take(conn net.Conn) {
	defer conn.Close()
	buf := make([]byte, 256<<10)
	for {
		n, err := conn.Read(buf)
		e.taken.Add(int64(n))
		if err != nil {
			return // the client has closed it
		}
	}
}

// measure measures one slice of each kind of traffic.
func (e *endpoint) measure(ctx context.Context, counted bool) error {
	connections, err := e.connect(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	rate, err := e.send()
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if counted {
		e.connections, e.rates = append(e.connections, connections), append(e.rates, rate)
	}
	return nil
}

// connect makes connections from outside, one after the other in each client.
func (e *endpoint) connect(ctx context.Context) (perSecond float64, err error) {
	var made atomic.Int64
	start := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for range clients {
		group.Go(func() error {
			return e.mapper.node.Outside.Do(func() error {
				for time.Since(start) < slice && ctx.Err() == nil {
					if err := connectOnce(&e.addr); err != nil {
						return err
					}
					made.Add(1)
				}
				return nil
			})
		})
	}
	err = group.Wait()
	return float64(made.Load()) / time.Since(start).Seconds(), err
}

// connectOnce connects, waits for the server's close, and resets the connection,
// which keeps nothing of it on either side.
func connectOnce(addr *netPort) (err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	wait := unix.Timeval{Sec: 5}
	if err := errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait),
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
		connectFD(fd, addr),
	); err != nil {
		return err
	}
	for {
		_, err = unix.Read(fd, make([]byte, 1))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// connectFD connects. A signal, such as the runtime's own, interrupts the wait
// for the connection and not the connecting (connect(2), EINTR).
func connectFD(fd int, addr unix.Sockaddr) error {
	err := unix.Connect(fd, addr)
	for errors.Is(err, unix.EINTR) {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if _, err = unix.Poll(ready, 5000); err == nil {
			return connectResult(fd)
		}
	}
	return err
}

// connectResult is how connecting ended (SO_ERROR, socket(7)).
func connectResult(fd int) error {
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = syscall.Errno(errno)
	}
	return err
}

// bulkPort is the client's port by which the server knows a client that sends.
// It is below those that the kernel gives out.
const bulkPort = 20000

// send sends over one connection and says how much arrives, in MB per second.
func (e *endpoint) send() (rate float64, err error) {
	err = e.mapper.node.Outside.Do(func() error {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{Port: bulkPort}, Timeout: 5 * time.Second}
		conn, err := dialer.Dial("tcp4", net.JoinHostPort(node.NodeIPv4, strconv.Itoa(e.addr.Port)))
		if err != nil {
			return err
		}
		tcp := conn.(*net.TCPConn)
		// Reset at the end: the same port is used again.
		defer func() { _ = tcp.SetLinger(0); _ = tcp.Close() }()
		buf := make([]byte, 256<<10)
		before, start := e.taken.Load(), time.Now()
		for time.Since(start) < slice {
			if _, err := tcp.Write(buf); err != nil {
				return err
			}
		}
		rate = float64(e.taken.Load()-before) / 1e6 / time.Since(start).Seconds()
		return nil
	})
	return rate, err
}
