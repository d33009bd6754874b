// Package noop is the network plugin for nodes where none is named: the runtime
// networks its pods itself, and crinetd only keeps bridged traffic visible to
// an iptables kube-proxy, as the kubelet's noop plugin did.
//
// It sets net/bridge/bridge-nf-call-iptables and its ip6tables twin to 1 (kernel
// documentation, networking/ip-sysctl: "/proc/sys/net/bridge/*"). If they are not
// there it loads the module br_netfilter. It looks at them in intervals, because
// other programs reset them and they vanish with the module. They are those of the
// network namespace in which the process runs.
package noop

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/internal/backoff"
)

// Name is the plugin's name, as --network-plugin and the journal have it.
const Name = "noop"

// Interval is how often the sysctls are looked at. A look costs two reads.
const Interval = 5 * time.Second

const (
	// modprobeTimeout bounds one run of modprobe.
	modprobeTimeout = 10 * time.Second
	// modprobeMost is the longest wait from one run of modprobe to the next. The
	// waits double from Interval to it, so that a kernel without br_netfilter
	// costs little.
	modprobeMost = 5 * time.Minute
)

// sysctls are the paths, below the sysctl root, of those that must be 1.
var sysctls = [...]string{
	"net/bridge/bridge-nf-call-iptables",
	"net/bridge/bridge-nf-call-ip6tables",
}

// Plugin is the noop plugin. Its zero value is not usable; use [New].
type Plugin struct {
	root   string
	log    *slog.Logger
	load   func(ctx context.Context) error
	status atomic.Pointer[error]

	// The following belong to Run.
	waits    backoff.Backoff // between runs of modprobe
	nextLoad time.Time       // not before this
	loadErr  error           // of the last run
}

// New returns a noop plugin that keeps the sysctls under root (/proc/sys).
func New(root string, log *slog.Logger) *Plugin {
	return &Plugin{root: root, log: log, load: modprobe, waits: backoff.Backoff{First: Interval, Max: modprobeMost}}
}

// Name returns "noop".
func (p *Plugin) Name() string { return Name }

// Status says whether the sysctls stood at 1 when they were last looked at; the
// error names the one that did not, and why. It answers from memory.
func (p *Plugin) Status() error {
	if err := p.status.Load(); err != nil {
		return *err
	}
	return nil
}

// Run keeps the sysctls at 1 until ctx ends. It closes ready after the first look.
// It logs a failure when it begins, changes and ends.
func (p *Plugin) Run(ctx context.Context, ready chan<- struct{}) {
	ticker := time.NewTicker(Interval)
	defer ticker.Stop()
	for first := true; ; first = false {
		p.keep(ctx, first)
		if first {
			close(ready)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// keep sets what is not 1 and remembers the outcome.
func (p *Plugin) keep(ctx context.Context, first bool) {
	var errs []error
	for _, name := range sysctls {
		changed, err := p.set(ctx, name)
		if err != nil {
			errs = append(errs, err)
		} else if changed {
			p.log.Info("set sysctl to 1", "sysctl", name, "start", first)
		}
	}
	before, now := p.Status(), errors.Join(errs...)
	p.status.Store(&now)
	if now == nil {
		p.waits.Reset()
		p.nextLoad = time.Time{}
	}
	switch {
	case now == nil && before != nil:
		p.log.Info("the sysctls for the iptables kube-proxy are 1 again")
	case now != nil && (before == nil || before.Error() != now.Error()):
		p.log.Error("cannot keep the sysctls for the iptables kube-proxy at 1: Services may fail for pods on one bridge",
			"err", now)
	}
}

// set makes one sysctl 1 and says whether it had to.
func (p *Plugin) set(ctx context.Context, name string) (changed bool, err error) {
	path := filepath.Join(p.root, name)
	value, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := p.loadModule(ctx); err != nil {
			return false, fmt.Errorf("%s does not exist and br_netfilter cannot be loaded: %w", name, err)
		}
		value, err = os.ReadFile(path)
	}
	if err != nil {
		return false, fmt.Errorf("read sysctl: %w", err)
	}
	if string(bytes.TrimSpace(value)) == "1" {
		return false, nil
	}
	if err := os.WriteFile(path, []byte("1"), 0); err != nil {
		return false, fmt.Errorf("set sysctl to 1: %w", err)
	}
	return true, nil
}

// loadModule loads br_netfilter, or returns the last failure if that is recent. A
// run that succeeds counts as well: the kernel may lack a sysctl all the same.
func (p *Plugin) loadModule(ctx context.Context) error {
	if time.Now().Before(p.nextLoad) {
		return p.loadErr
	}
	p.loadErr = p.load(ctx)
	p.nextLoad = time.Now().Add(p.waits.Next())
	return p.loadErr
}

// modprobe loads br_netfilter. There is no netlink call for it, and the kernel's
// own finit_module would need modprobe's knowledge of dependencies.
func modprobe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, modprobeTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "modprobe", "br_netfilter").CombinedOutput()
	if err != nil {
		return fmt.Errorf("modprobe br_netfilter: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// errNoNetwork answers calls that mean that somebody still uses crinet's shim.
var errNoNetwork = errors.New("crinetd runs the noop plugin and networks no pods: " +
	"the runtime must use a CNI configuration of its own, or crinetd a --network-plugin")

// Plan refuses: under noop the runtime networks its pods itself.
func (p *Plugin) Plan(cni.Attachment) (*cni.Attachment, error) { return nil, errNoNetwork }

// SetUpPod refuses, as Plan does.
func (p *Plugin) SetUpPod(context.Context, *cni.Attachment) (json.RawMessage, error) {
	return nil, errNoNetwork
}

// TearDownPod has nothing to undo.
func (p *Plugin) TearDownPod(context.Context, *cni.Attachment) error { return nil }

// CheckPod refuses, as Plan does.
func (p *Plugin) CheckPod(context.Context, *cni.Attachment) error { return errNoNetwork }
