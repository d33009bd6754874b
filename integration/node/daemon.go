package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

const (
	stopTimeout = 20 * time.Second // from SIGTERM to SIGKILL
	pollEvery   = 10 * time.Millisecond
	// restartDelay is systemd's default for RestartSec.
	restartDelay = 100 * time.Millisecond
)

// daemon is one long-running program of a node, its output in a log file.
type daemon struct {
	name string
	log  string
	done chan struct{} // closed when it has ended
	err  error         // how it ended; read after done

	mu    sync.Mutex // guards what follows
	cmd   *exec.Cmd
	again func() (*exec.Cmd, error) // starts it again when it has ended; nil does not
}

// startDaemon starts a program in place. Its output is added to log.
func startDaemon(place *Place, name, log, path string, args ...string) (*daemon, error) {
	return newDaemon(place, name, log, false, nil, path, args...)
}

// superviseDaemon is startDaemon for a program that is started again whenever it
// ends, until it is stopped or killed.
func superviseDaemon(place *Place, name, log, path string, args ...string) (*daemon, error) {
	return newDaemon(place, name, log, true, nil, path, args...)
}

// newDaemon starts a program; prepare, if set, completes each command.
func newDaemon(place *Place, name, log string, supervised bool, prepare func(*exec.Cmd), path string, args ...string) (*daemon, error) {
	start := func() (*exec.Cmd, error) {
		file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return nil, fmt.Errorf("open the log of %s: %w", name, err)
		}
		defer file.Close()
		// Not bound to a context: it lives as long as the node.
		cmd := place.Command(context.Background(), path, args...)
		cmd.Stdout, cmd.Stderr = file, file
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if prepare != nil {
			prepare(cmd)
		}
		if err := place.Start(cmd); err != nil {
			return nil, fmt.Errorf("start %s: %w", name, err)
		}
		return cmd, nil
	}
	cmd, err := start()
	if err != nil {
		return nil, err
	}
	d := &daemon{name: name, log: log, cmd: cmd, done: make(chan struct{})}
	if supervised {
		d.again = start
	}
	go d.run(cmd)
	return d, nil
}

// run waits for the program's end, each time that it was started.
func (d *daemon) run(cmd *exec.Cmd) {
	defer close(d.done)
	for cmd != nil {
		d.err = cmd.Wait()
		cmd = d.restart()
	}
}

// restart starts the program again; nil says that it has ended for good.
func (d *daemon) restart() *exec.Cmd {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.again == nil {
		return nil
	}
	time.Sleep(restartDelay)
	next, err := d.again()
	if err != nil {
		return nil // the node has ended
	}
	d.cmd = next
	return next
}

// signal sends the program a signal.
func (d *daemon) signal(signal os.Signal) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cmd.Process.Signal(signal)
}

// end sends the program its last signal: it is not started again.
func (d *daemon) end(signal os.Signal) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.again = nil
	if err := d.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// await calls ready until it returns nil, the program ends or ctx does.
func (d *daemon) await(ctx context.Context, ready func(context.Context) error) error {
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-d.done:
			return fmt.Errorf("%s ended while it was waited for: %w\n%s", d.name, errors.Join(d.err, err), tail(d.log, logLines))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w\n%s", d.name, errors.Join(ctx.Err(), err), tail(d.log, logLines))
		case <-time.After(pollEvery):
		}
	}
}

// stop ends the program with SIGTERM. One that does not obey is killed, and
// that is an error, as is an exit code.
func (d *daemon) stop() error {
	if err := d.end(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop %s: %w", d.name, err)
	}
	select {
	case <-d.done:
	case <-time.After(stopTimeout):
		return errors.Join(fmt.Errorf("%s did not end within %v of SIGTERM", d.name, stopTimeout), d.kill())
	}
	if d.err != nil {
		return fmt.Errorf("%s, stopped, ended with: %w\n%s", d.name, d.err, tail(d.log, logLines))
	}
	return nil
}

// kill ends the program with SIGKILL, and waits until it is gone.
func (d *daemon) kill() error {
	if err := d.end(syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill %s: %w", d.name, err)
	}
	<-d.done
	return nil
}

func (d *daemon) running() bool {
	select {
	case <-d.done:
		return false
	default:
		return true
	}
}

// logLines is how much of a log an error shows.
const logLines = 40

// tail returns the last lines of a file, or why it cannot be read.
func tail(path string, lines int) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	at := len(bytes.TrimRight(text, "\n"))
	for range lines {
		if at = bytes.LastIndexByte(text[:at], '\n'); at < 0 {
			break
		}
	}
	return fmt.Sprintf("--- the end of %s:\n%s", path, text[at+1:])
}
