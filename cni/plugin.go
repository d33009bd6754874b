package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/crinet-project/crinet/config"
)

// Name is the network plugin's name for --network-plugin and in the journal.
const Name = "cni"

// Config is what a [Plugin] works with. All fields but Ready and CanMasquerade are required.
type Config struct {
	// BinDirs are searched in order for plugin binaries (--cni-bin-dir).
	BinDirs []string
	// CacheDir is libcni's result cache (--cni-cache-dir).
	CacheDir string
	// Timeout bounds one run of one chain (--cni-timeout).
	Timeout time.Duration
	// Selected returns the network that new pods get, or why there is none,
	// from memory.
	Selected func() (*config.Network, error)
	// PodCIDRs returns the node's pod CIDRs, none while they are not known,
	// from memory.
	PodCIDRs func() []netip.Prefix
	// Ready, which may be nil, returns what else a network lacks before pods
	// can be added to it, from memory.
	Ready func(*config.Network) error
	// StatusGrace is how long the STATUS of a network that was good may fail
	// before it counts (--cni-status-grace).
	StatusGrace time.Duration
	// AwaitStatus says that the first network is not ready before its STATUS has
	// answered. It is for the first start after a boot: later, a network that was
	// ready counts as ready until it answers.
	AwaitStatus bool
	// MaxChains bounds how many chains run ADD at once, and likewise DEL and
	// CHECK (--cni-max-chains); 0 sets no bound. A chain that runs longer than
	// ten seconds does not count any more.
	MaxChains int
	// Passing are the errors of ADD that pass: codes of CNI errors, in decimal, and texts
	// that an error has in it (--cni-passing-errors).
	Passing []string
	// Removals, which may be nil, counts the removals of pods that are to come besides
	// those that run, from memory.
	Removals func() int
	// CanMasquerade, which may be nil, returns why crinetd cannot masquerade on this
	// node, from memory: plugins with ipMasq are then executed.
	CanMasquerade func() error
	// Runner runs the binaries.
	Runner Runner
	// Builtin runs the built-in plugins; nil if there are none. BuiltinTypes are those
	// that may be chosen for new attachments (--builtin-plugins).
	Builtin      BuiltinRunner
	BuiltinTypes []string
	// Keeper keeps the binaries that are executed, for DEL; nil keeps none.
	Keeper Keeper
	// Observe, which may be nil, watches each run of a plugin for an attachment.
	Observe Observe
	Log     *slog.Logger
}

// Plugin is the CNI network plugin. Its only state is the last answer that
// [Plugin.RunStatus] got and the lanes. It is safe for concurrent use.
type Plugin struct {
	config Config
	libcni *libcni.CNIConfig
	exec   *execAdapter
	status *statusWatch

	add, del, check *lane
	retries         atomic.Uint64 // of ADD
	removing        atomic.Int64  // TearDownPods under way
}

// New returns a CNI network plugin.
func New(c Config) *Plugin {
	exec := &execAdapter{runner: c.Runner, observe: c.Observe}
	return &Plugin{
		config: c,
		libcni: libcni.NewCNIConfigWithCacheDir(c.BinDirs, c.CacheDir, exec),
		exec:   exec,
		status: newStatusWatch(),
		add:    newLane("ADD", c.MaxChains),
		del:    newLane("DEL", c.MaxChains),
		check:  newLane("CHECK", c.MaxChains),
	}
}

// Name returns "cni".
func (p *Plugin) Name() string { return Name }

// Status returns nil if new pods can get a network, or why they cannot. It
// answers from memory and never runs a plugin.
func (p *Plugin) Status() error {
	network, err := p.network()
	if err != nil {
		return err
	}
	if p.config.Ready != nil {
		if err := p.config.Ready(network); err != nil {
			return fmt.Errorf("network %q: %w", network.Name, err)
		}
	}
	return p.statusError(network)
}

// network returns the selected network, or why it cannot be used now.
func (p *Plugin) network() (*config.Network, error) {
	network, err := p.config.Selected()
	if err != nil {
		return nil, err
	}
	return network, p.usable(network)
}

// usable says why a network cannot be used now.
func (p *Plugin) usable(network *config.Network) error {
	if network.NeedsPodCIDR && len(p.config.PodCIDRs()) == 0 {
		return fmt.Errorf("network %q (%s) takes its addresses from the node's pod CIDR, which is not known: "+
			"the kubelet has not told it yet (UpdateRuntimeConfig), and --pod-cidr is not set", network.Name, network.File)
	}
	return nil
}

// Plan completes an attachment with the network that is selected now: its name,
// its configuration list, of the capability args those that the list declares, which
// of the plugins crinetd runs itself, and where the others' binaries are kept. Nothing has happened on the node when it returns.
func (p *Plugin) Plan(a Attachment) (*Attachment, error) {
	network, err := p.network()
	if err != nil {
		return nil, err
	}
	return p.planOn(network, a), nil
}

// PlanOn is Plan with a network that need not be selected.
func (p *Plugin) PlanOn(network *config.Network, a Attachment) (*Attachment, error) {
	if err := p.usable(network); err != nil {
		return nil, err
	}
	if p.config.Ready != nil {
		if err := p.config.Ready(network); err != nil {
			return nil, fmt.Errorf("network %q: %w", network.Name, err)
		}
	}
	return p.planOn(network, a), nil
}

func (p *Plugin) planOn(network *config.Network, a Attachment) *Attachment {
	a.Network, a.ConfList, a.Result = network.Name, network.ConfList, nil
	a.CapabilityArgs = maps.Clone(a.CapabilityArgs)
	maps.DeleteFunc(a.CapabilityArgs, func(name string, _ json.RawMessage) bool {
		return !slices.Contains(network.Capabilities, name)
	})
	a.Builtin, _ = p.choose(network)
	a.Kept = p.keep(network, &a)
	return &a
}

// CheckPod runs CHECK over the chain with the result of ADD. It returns nil for
// an attachment that has no CHECK.
func (p *Plugin) CheckPod(ctx context.Context, a *Attachment) error {
	if has, err := a.HasCheck(); err != nil || !has {
		return err
	}
	return p.run(ctx, p.check, p.check.turn(false), a, func(ctx context.Context, list *libcni.NetworkConfigList) error {
		for _, plugin := range list.Plugins {
			if err := p.call(ctx, "CHECK", list, plugin, a); err != nil {
				return err
			}
		}
		return nil
	})
}

// run runs an attachment's chain, once it is its turn in the verb's lane, and
// says in an error which verb failed for which sandbox.
func (p *Plugin) run(ctx context.Context, l *lane, t *turn, a *Attachment, chain func(context.Context, *libcni.NetworkConfigList) error) error {
	list, err := a.list()
	if err != nil {
		return err
	}
	ctx, cancel := beforeDeadline(ctx)
	defer cancel()
	leave, err := l.enter(ctx, t)
	if err == nil {
		defer leave()
		ctx, cancel := limited(ctx, p.config.Timeout)
		defer cancel()
		err = chain(ctx, list)
	}
	if err != nil {
		return fmt.Errorf("network %q: %s of sandbox %s: %w", a.Network, l.verb, a.ContainerID, cniError(err))
	}
	return nil
}

// NetworkStatus runs STATUS over the chain of a network (CNI spec 1.1.0,
// section STATUS). A list that is older than STATUS always counts as ready.
func (p *Plugin) NetworkStatus(ctx context.Context, network *config.Network) error {
	list, err := libcni.NetworkConfFromBytes(network.ConfList)
	if err != nil {
		return fmt.Errorf("network %q: %w", network.Name, err)
	}
	ctx, cancel := limited(ctx, p.config.Timeout)
	defer cancel()
	chosen, _ := p.choose(network) // as for the next pod
	return explainStatus(network.Name, p.libcniFor(&Attachment{Builtin: chosen}).GetStatusNetworkList(ctx, list))
}

// atLeast reports whether a CNI version is at least another. It is false for a
// version that cannot be parsed.
func atLeast(v, least string) bool {
	ok, err := version.GreaterThanOrEqualTo(v, least)
	return err == nil && ok
}
