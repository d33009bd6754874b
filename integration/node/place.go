package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// waitDelay is how long a command that was killed may keep its output open.
const waitDelay = 5 * time.Second

// Place is a set of namespaces in which commands are run and sockets opened:
// the node itself, or the world outside of it.
type Place struct {
	name string
	net  *namespace // network namespace
	pid  *namespace // process namespace; nil: the machine's
	mnt  *namespace // mount namespace; nil: the machine's
	path string     // PATH of commands
	env  []string   // more environment of commands
}

// newNetwork makes a place that has nothing but a network namespace of its own.
func newNetwork(name string) (*Place, error) {
	p := &Place{name: name}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make the network namespace %s: %w", name, err)
		}
		var err error
		p.net, err = openNamespace("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Do runs fn on a thread that is in the place's namespaces. The thread ends
// afterwards, so that it need not return to its own. fn must not start goroutines
// that need the namespaces, nor call testing's FailNow.
func (p *Place) Do(fn func() error) error {
	return onThread(func() error {
		if err := p.enter(); err != nil {
			return fmt.Errorf("enter the namespaces of %s: %w", p.name, err)
		}
		return fn()
	})
}

func (p *Place) enter() error {
	if p.mnt != nil {
		// The kernel refuses a mount namespace to a thread that shares its
		// root and working directory with others.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		if err := p.mnt.enter(unix.CLONE_NEWNS); err != nil {
			return err
		}
	}
	if p.pid != nil {
		if err := p.pid.enter(unix.CLONE_NEWPID); err != nil {
			return err
		}
	}
	return p.net.enter(unix.CLONE_NEWNET)
}

// onThread runs fn on an operating system thread that ends with fn.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			done <- fn()
			return
		}
		// The process's first thread cannot end, and /proc shows its namespaces as
		// those of the process. While this goroutine holds it, Go gives fn another
		// thread.
		done <- onThread(fn)
		runtime.UnlockOSThread()
	}()
	return <-done
}

// Command prepares a command in the place's environment. It is to be started
// with Start or run with Run.
func (p *Place) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, lookPath(p.path, name), args...)
	cmd.Env = append(append(os.Environ(), "PATH="+p.path), p.env...)
	cmd.Dir = "/"
	cmd.WaitDelay = waitDelay
	return cmd
}

// lookPath finds name in path. It returns a name that is not there unchanged, so
// that the start fails with that name.
func lookPath(path, name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	for dir := range strings.SplitSeq(path, ":") {
		file := dir + "/" + name
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file
		}
	}
	return name
}

// Start starts cmd in the place. Wait must be called: process 1 of the node
// can't end before.
func (p *Place) Start(cmd *exec.Cmd) error { return p.Do(cmd.Start) }

// Run runs a command in the place and returns its standard output. The error of
// a command that fails holds the command, how it ended and what it said.
func (p *Place) Run(ctx context.Context, name string, args ...string) (string, error) {
	return p.RunInput(ctx, nil, name, args...)
}

// RunInput is Run with a standard input.
func (p *Place) RunInput(ctx context.Context, stdin io.Reader, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := p.Command(ctx, name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err := p.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s: %s: %w\n%s%s", p.name, strings.Join(append([]string{name}, args...), " "),
			errors.Join(err, ctx.Err()), stderr.String(), stdout.String())
	}
	return stdout.String(), err
}

// Dial connects from the place to address, which must not need a name server.
func (p *Place) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := p.Do(func() error {
		var err error
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens in the place.
func (p *Place) Listen(network, address string) (net.Listener, error) {
	var listener net.Listener
	err := p.Do(func() error {
		var err error
		listener, err = net.Listen(network, address)
		return err
	})
	return listener, err
}

// Get fetches url from the place and returns the body of an answer with status
// 200; every other one is an error.
func (p *Place) Get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	transport := &http.Transport{DialContext: p.Dial, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return "", fmt.Errorf("%s: %w", p.name, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", fmt.Errorf("%s: read %s: %w", p.name, url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: get %s: %s: %s", p.name, url, resp.Status, body)
	}
	return string(body), nil
}

// AwaitGet is Get for a server that has only just been started: it tries until
// ctx ends, or for ten seconds.
func (p *Place) AwaitGet(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		body, err := p.Get(ctx, url)
		if err == nil {
			return body, nil
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(pollEvery):
		}
	}
}

// AskUDP sends a datagram and returns the answer to it. ctx must have a deadline.
func (p *Place) AskUDP(ctx context.Context, target string) (string, error) {
	// A connected socket accepts answers of the address that was asked only, and
	// gets ICMP errors.
	conn, err := p.Dial(ctx, "udp", target)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		return "", err
	}
	buf := make([]byte, 1500)
	n, err := conn.Read(buf)
	return string(buf[:n]), err
}

func (p *Place) close() error {
	var errs []error
	for _, ns := range []*namespace{p.net, p.pid, p.mnt} {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	return errors.Join(errs...)
}
