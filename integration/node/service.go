package node

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
)

// Service is one more long-running program of a node, such as a kubelet. It is
// started again when it ends by itself, as a service manager does. The node's
// Close ends it.
type Service struct {
	node *Node
	name string
	line []string
	d    *daemon // nil: it does not run
}

// Service prepares a program of the node: its name, which the log file has as
// well, then the program and its arguments. Start starts it.
func (n *Node) Service(name string, line ...string) *Service {
	return &Service{node: n, name: name, line: line}
}

// Start starts the program. Its output is added to the log that Node.Log returns.
func (s *Service) Start() error {
	if s.Running() {
		return errors.New(s.name + " runs already")
	}
	d, err := superviseDaemon(s.node.Place, s.name, s.node.logFile(s.name), s.line[0], s.line[1:]...)
	if err != nil {
		return err
	}
	s.d = d
	s.node.mu.Lock()
	s.node.services = append(s.node.services, d)
	s.node.mu.Unlock()
	return nil
}

// Await calls ready until it returns nil or ctx ends.
func (s *Service) Await(ctx context.Context, ready func(context.Context) error) error {
	if s.d == nil {
		return errors.New(s.name + " was never started")
	}
	return s.d.await(ctx, ready)
}

// Running says whether the program was started and has not been ended.
func (s *Service) Running() bool { return s.d != nil && s.d.running() }

// Signal sends the program a signal.
func (s *Service) Signal(signal os.Signal) error {
	if !s.Running() {
		return errors.New("send " + s.name + " a signal: it does not run")
	}
	return s.d.signal(signal)
}

// Stop ends the program as a service manager does. An exit code is an error; to
// die of the signal, as programs do that have nothing to tidy up, is none.
func (s *Service) Stop() error {
	err := s.node.end(&s.d, (*daemon).stop)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGTERM {
			return nil
		}
	}
	return err
}

// Kill ends the program at once.
func (s *Service) Kill() error { return s.node.end(&s.d, (*daemon).kill) }
