// Package noop is the network plugin for nodes where none is named: the runtime
// networks its pods itself, and crinetd only keeps bridged traffic visible to
// an iptables kube-proxy, as the kubelet's noop plugin did.
//
// It sets net/bridge/bridge-nf-call-iptables and its ip6tables twin to 1 (kernel
// documentation, networking/ip-sysctl: "/proc/sys/net/bridge/*"), loading
// br_netfilter where that is a module, and sets them again in intervals: other
// programs reset them, and they are gone with the module. The sysctls are those
// of the network namespace that the process runs in.
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
)

// Name is the plugin's name, as --network-plugin and the journal have it.
const Name = "noop"

// Interval is how often the sysctls are looked at. A look costs two reads.
const Interval = 5 * time.Second

// modprobeTimeout bounds one run of modprobe.
const modprobeTimeout = 10 * time.Second

// sysctls must be 1, relative to the sysctl root.
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
}

// New returns a noop plugin that keeps the sysctls under root (/proc/sys).
func New(root string, log *slog.Logger) *Plugin {
	return &Plugin{root: root, log: log, load: modprobe}
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

// Run keeps the sysctls until ctx ends. The first look is done when ready is
// closed. A failure is logged when it begins, changes and ends.
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
		if err := p.load(ctx); err != nil {
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
