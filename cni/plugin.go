package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/crinet-project/crinet/config"
)

// Name is the network plugin's name, as --network-plugin and the journal have
// it.
const Name = "cni"

// Config is what a [Plugin] works with. All fields but Ready are required.
type Config struct {
	// BinDirs are searched in order for plugin binaries (--cni-bin-dir).
	BinDirs []string
	// CacheDir is libcni's result cache (--cni-cache-dir).
	CacheDir string
	// Timeout bounds one run of one chain (--cni-timeout).
	Timeout time.Duration
	// Selected returns the network that new pods get, or why there is none. It
	// answers from memory.
	Selected func() (*config.Network, error)
	// PodCIDRs returns the node's pod CIDRs, none while they are not known. It
	// answers from memory.
	PodCIDRs func() []netip.Prefix
	// Ready, which may be nil, says what else a network lacks before pods can
	// be added to it. It answers from memory.
	Ready func(*config.Network) error
	// StatusGrace is how long the STATUS of a network that was good may fail
	// before it counts (--cni-status-grace).
	StatusGrace time.Duration
	// MaxChains bounds how many chains run ADD, DEL or CHECK at once
	// (--cni-max-chains); 0 sets no bound.
	MaxChains int
	// Runner runs the binaries.
	Runner Runner
	Log    *slog.Logger
}

// Plugin is the CNI network plugin. Its only state is what [Plugin.RunStatus]
// found out; it may be used from many goroutines.
type Plugin struct {
	config Config
	libcni *libcni.CNIConfig
	exec   *execAdapter
	status *statusWatch
	chains limit
}

// New returns a CNI network plugin.
func New(c Config) *Plugin {
	exec := &execAdapter{runner: c.Runner}
	return &Plugin{
		config: c,
		libcni: libcni.NewCNIConfigWithCacheDir(c.BinDirs, c.CacheDir, exec),
		exec:   exec,
		status: newStatusWatch(),
		chains: newLimit(c.MaxChains),
	}
}

// Name returns "cni".
func (p *Plugin) Name() string { return Name }

// Status returns nil when new pods can get a network, or why they cannot. It
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
	return p.statusError(network.Name)
}

// network is the selected network, if what crinetd has to give it is there.
func (p *Plugin) network() (*config.Network, error) {
	network, err := p.config.Selected()
	if err != nil {
		return nil, err
	}
	if network.NeedsPodCIDR && len(p.config.PodCIDRs()) == 0 {
		return nil, fmt.Errorf("network %q (%s) takes its addresses from the node's pod CIDR, which is not known: "+
			"the kubelet has not told it yet (UpdateRuntimeConfig), and --pod-cidr is not set", network.Name, network.File)
	}
	return network, nil
}

// Plan completes an attachment with the network that is selected now: its name,
// its configuration list, and of the capability args those that the list
// declares. Nothing has happened on the node when it returns.
func (p *Plugin) Plan(a Attachment) (*Attachment, error) {
	network, err := p.network()
	if err != nil {
		return nil, err
	}
	a.Network, a.ConfList, a.Result = network.Name, network.ConfList, nil
	a.CapabilityArgs = maps.Clone(a.CapabilityArgs)
	maps.DeleteFunc(a.CapabilityArgs, func(name string, _ json.RawMessage) bool {
		return !slices.Contains(network.Capabilities, name)
	})
	return &a, nil
}

// SetUpPod runs ADD over the chain and returns its result, in the list's CNI
// version. After an error part of the chain may have been added: the caller
// calls TearDownPod, as the CNI spec asks (section 3, "Attachment").
func (p *Plugin) SetUpPod(ctx context.Context, a *Attachment) (json.RawMessage, error) {
	list, err := a.list()
	if err != nil {
		return nil, err
	}
	leave, err := p.chains.enter(ctx)
	if err != nil {
		return nil, failed("ADD", a, err)
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	result, err := p.libcni.AddNetworkList(ctx, list, a.runtimeConf())
	if err != nil {
		return nil, p.explain(ctx, "ADD", a, err)
	}
	if result == nil {
		return nil, p.explain(ctx, "ADD", a, errors.New("no plugin of the chain returned a result"))
	}
	data, err := json.Marshal(result)
	if err != nil {
		return nil, p.explain(ctx, "ADD", a, fmt.Errorf("result: %w", err))
	}
	return data, nil
}

// CheckPod runs CHECK over the chain with the result of ADD. It returns nil for
// lists that are older than CHECK (0.4.0) or switch it off.
func (p *Plugin) CheckPod(ctx context.Context, a *Attachment) error {
	list, err := a.list()
	if err != nil {
		return err
	}
	if list.DisableCheck || !atLeast(list.CNIVersion, "0.4.0") {
		return nil
	}
	leave, err := p.chains.enter(ctx)
	if err != nil {
		return failed("CHECK", a, err)
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	for _, plugin := range list.Plugins {
		if err := p.call(ctx, "CHECK", list, plugin, a); err != nil {
			return p.explain(ctx, "CHECK", a, err)
		}
	}
	return nil
}

// NetworkStatus runs STATUS over the chain of a network (CNI spec 1.1.0,
// section STATUS); lists that are older always count as ready.
func (p *Plugin) NetworkStatus(ctx context.Context, network *config.Network) error {
	list, err := libcni.NetworkConfFromBytes(network.ConfList)
	if err != nil {
		return fmt.Errorf("network %q: %w", network.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	if err := p.libcni.GetStatusNetworkList(ctx, list); err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("not answered in time (--cni-timeout is %v), plugin killed: %w", p.config.Timeout, err)
		}
		return explainStatus(network.Name, err)
	}
	return nil
}

// explain says which chain failed at what, and when it was the time limit.
func (p *Plugin) explain(ctx context.Context, verb string, a *Attachment, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("not done in time (--cni-timeout is %v), plugin killed: %w", p.config.Timeout, err)
	}
	return failed(verb, a, err)
}

func failed(verb string, a *Attachment, err error) error {
	return fmt.Errorf("network %q: %s of sandbox %s: %w", a.Network, verb, a.ContainerID, err)
}

// atLeast says whether a CNI version is at least another; one that cannot be
// parsed is not.
func atLeast(v, least string) bool {
	ok, err := version.GreaterThanOrEqualTo(v, least)
	return err == nil && ok
}
