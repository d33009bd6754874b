package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// binDirVariable names an environment variable: a folder that holds crinetd,
// crinet and crinetctl, to be tested instead of those of the checkout.
const binDirVariable = "CRINET_TEST_BIN"

// BuildCrinet builds crinetd, the plugin crinet and crinetctl, unless
// CRINET_TEST_BIN names a folder that holds them. With race, crinetd gets the
// race detector and the fail points.
func (k *Kit) BuildCrinet(ctx context.Context, race bool) error {
	if dir := os.Getenv(binDirVariable); dir != "" {
		for _, name := range []string{"crinetd", "crinet", "crinetctl"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
				return fmt.Errorf("look into the folder that %s names: %w", binDirVariable, err)
			}
		}
		return nil
	}
	static, small := []string{"CGO_ENABLED=0"}, []string{"-ldflags=-s -w"}
	if !race {
		return k.Build(ctx, static, small, "cmd/crinetd", "cmd/crinet", "cmd/crinetctl")
	}
	if err := k.Build(ctx, static, small, "cmd/crinet", "cmd/crinetctl"); err != nil {
		return err
	}
	return k.Build(ctx, []string{"CGO_ENABLED=1"}, []string{"-race", "-tags=failpoint"}, "cmd/crinetd")
}

// Crinet is the path of crinetd, crinet or crinetctl.
func (k *Kit) Crinet(name string) string {
	if dir := os.Getenv(binDirVariable); dir != "" {
		return filepath.Join(dir, name)
	}
	return k.Program(name)
}

// StartCrinetd starts crinetd with these flags and waits until it serves its
// CRI socket. It need not be connected to containerd then, nor have a network.
func (n *Node) StartCrinetd(ctx context.Context, flags ...string) error {
	return n.StartCrinetdBy(ctx, nil, flags...)
}

// StartCrinetdBy is StartCrinetd by a command that ends with the exec of what
// follows it, such as setpriv.
func (n *Node) StartCrinetdBy(ctx context.Context, command []string, flags ...string) error {
	if n.crinetd != nil && n.crinetd.running() {
		return errors.New("crinetd runs already")
	}
	var err error
	line := slices.Concat(command, []string{n.crinet("crinetd")}, flags)
	if n.held != nil {
		line = n.held.command(line)
	}
	n.crinetd, err = newDaemon(n.Place, "crinetd", n.logFile("crinetd"), false, n.held.prepare, line[0], line[1:]...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	return n.crinetd.await(ctx, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", n.Path(CrinetdSocket))
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// StopCrinetd ends crinetd as a service manager does. An exit code other than 0
// is an error.
func (n *Node) StopCrinetd() error { return n.end(&n.crinetd, (*daemon).stop) }

// KillCrinetd kills crinetd at once.
func (n *Node) KillCrinetd() error { return n.end(&n.crinetd, (*daemon).kill) }

// AwaitCrinetdEnd waits until crinetd has ended by itself.
func (n *Node) AwaitCrinetdEnd(ctx context.Context) error {
	if n.crinetd == nil {
		return nil
	}
	select {
	case <-n.crinetd.done:
		n.crinetd = nil
		return nil
	case <-ctx.Done():
		return fmt.Errorf("crinetd does not end: %w", ctx.Err())
	}
}

// CrinetdPID is the process id of the running crinetd, as the machine counts.
func (n *Node) CrinetdPID() (int, error) {
	if n.crinetd == nil || !n.crinetd.running() {
		return 0, errors.New("crinetd does not run")
	}
	return n.crinetd.cmd.Process.Pid, nil
}

// Crinetctl runs crinetctl in the node and returns what it printed.
func (n *Node) Crinetctl(ctx context.Context, args ...string) (string, error) {
	return n.Run(ctx, n.crinet("crinetctl"), args...)
}

// PodState is what crinetctl says of a pod's network.
type PodState struct {
	Namespace string     `json:"namespace"`
	Name      string     `json:"name"`
	UID       string     `json:"uid"`
	SandboxID string     `json:"sandboxID"`
	Network   string     `json:"network"`
	Addresses []string   `json:"addresses"`
	HostPorts []string   `json:"hostPorts"`
	Steps     []StepTime `json:"steps"`
}

// StepTime is when one step of a pod's start began and how long it took.
type StepTime struct {
	Step    string    `json:"step"`
	Start   time.Time `json:"start"`
	Seconds float64   `json:"duration"`
}

// End is when the step was done.
func (s StepTime) End() time.Time {
	return s.Start.Add(time.Duration(s.Seconds * float64(time.Second)))
}

// PodStates asks crinetctl for the pods whose network crinetd manages.
func (n *Node) PodStates(ctx context.Context) ([]PodState, error) {
	out, err := n.Crinetctl(ctx, "pods", "-o", "json")
	if err != nil {
		return nil, err
	}
	var states []PodState
	if err := json.Unmarshal([]byte(out), &states); err != nil {
		return nil, fmt.Errorf("decode the output of crinetctl pods: %w\n%s", err, out)
	}
	return states, nil
}
