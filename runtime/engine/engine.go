package engine

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/runtime/journal"
)

// Config names the parts of an [Engine]. Log, Plugin, Journal, Sandboxes,
// PodCIDRs, Metrics and BootID are required.
type Config struct {
	Log *slog.Logger
	// Plugin is the selected network plugin: new pods get it.
	Plugin NetworkPlugin
	// Others are plugins that are not selected and may have made attachments
	// that the journal holds.
	Others    []NetworkPlugin
	Journal   Journal
	Sandboxes Sandboxes
	PodCIDRs  *PodCIDRs
	Metrics   *Metrics
	// BootID is the kernel's boot id. An attachment of another boot has lost its
	// network namespace.
	BootID string
	// HostPorts maps hostPorts and masquerades. It may be nil where MapHostPorts is
	// false and no plugin is built in.
	HostPorts HostPorts
	// MapHostPorts says whether crinetd maps hostPorts.
	MapHostPorts bool
	// PassPortMappings says whether the plugins get the capability portMappings.
	PassPortMappings bool
	// Hairpin lets a pod on a Linux bridge reach itself through the node; nil
	// leaves that to the plugins.
	Hairpin Hairpin
	// StatusUnderWay says whether the selected network's STATUS is being run; nil
	// means never.
	StatusUnderWay func() bool
	// FailedAdds is how many ADDs in a row may fail before new pods are refused
	// until a trial succeeds; 0 never refuses them.
	FailedAdds int
	// Critical are the namespaces whose pods get their network before others that wait.
	Critical []string
	// Namespaces are for trials; nil if there are none, neither now nor in the
	// journal.
	Namespaces Namespaces
	// Follow, which may be nil, is asked for a follower of each sandbox in the making,
	// with the context of the call that has it made.
	Follow func(context.Context) Follower
	// Cache is the plugins' own record of attachments; nil if they keep none.
	Cache OwnCache
	// RuntimeCache is the container runtime's own record of attachments: of pods
	// from before crinetd came. Nil if there is none.
	RuntimeCache Cache
	// GC tells the plugins which attachments are valid, at the start and every
	// GCInterval; nil means never, and 0 at the start only.
	GC         GarbageCollector
	GCInterval time.Duration
	// Recorder keeps what is done, for people; nil keeps nothing.
	Recorder Recorder
}

// Engine manages the network attachments of all sandboxes of the node. Its
// methods may be called concurrently.
type Engine struct {
	log       *slog.Logger
	selected  NetworkPlugin
	plugins   map[string]NetworkPlugin // name -> plugin
	journal   Journal
	sandboxes Sandboxes
	podCIDRs  *PodCIDRs
	metrics   *Metrics
	bootID    string
	hostPorts HostPorts
	mapsPorts bool
	passPorts bool
	hairpin   Hairpin
	follow    func(context.Context) Follower
	cache     OwnCache
	foreign   Cache // the runtime's
	gc        GarbageCollector
	gcEvery   time.Duration
	recorder  Recorder

	statusUnderWay func() bool
	namespaces     Namespaces
	critical       []string      // namespaces whose pods come first
	trialName      string        // of the trials' namespace and container
	trying         chan struct{} // holds a token during a trial
	loans          loans

	locks    locks
	flights  flights
	gates    gates
	queue    *queue
	removed  recentKeys
	ending   ending
	failures addFailures
	started  time.Time
	now      func() time.Time
}

// New returns an engine. [Engine.Recover] must be called before it serves, and
// [Engine.Run] beside it.
func New(c Config) *Engine {
	e := &Engine{
		log: c.Log, selected: c.Plugin, plugins: make(map[string]NetworkPlugin),
		journal: c.Journal, sandboxes: c.Sandboxes, podCIDRs: c.PodCIDRs, metrics: c.Metrics, bootID: c.BootID,
		hostPorts: c.HostPorts, mapsPorts: c.MapHostPorts, passPorts: c.PassPortMappings, hairpin: c.Hairpin, follow: c.Follow,
		cache: c.Cache, foreign: c.RuntimeCache, gc: c.GC, gcEvery: c.GCInterval, recorder: c.Recorder, statusUnderWay: c.StatusUnderWay,
		namespaces: c.Namespaces, trialName: newTrialName(), trying: make(chan struct{}, 1), loans: loans{limit: LoanLimit}, failures: addFailures{limit: c.FailedAdds}, critical: c.Critical,
		now: time.Now, started: time.Now(),
	}
	for _, p := range append(c.Others, c.Plugin) {
		e.plugins[p.Name()] = p
	}
	e.queue = newQueue(e.undo)
	return e
}

// Ready says whether new pods can get a network; the error is the reason. It
// answers from memory.
func (e *Engine) Ready() error {
	if err := e.selected.Status(); err != nil || e.failures.limit == 0 {
		return err
	}
	return e.failures.refusal(e.network())
}

// network is the name of the network that is selected; empty if there is none.
func (e *Engine) network() string {
	plan, err := e.selected.Plan(cni.Attachment{})
	if err != nil {
		return ""
	}
	return plan.Network
}

// Status is the answer to the runtime's STATUS. While the selected network's own
// STATUS is under way, crinet answers for itself alone: a plugin that delegates
// to crinet asks back, and would otherwise be told its own last answer for ever.
func (e *Engine) Status() error {
	if e.statusUnderWay != nil && e.statusUnderWay() {
		return nil
	}
	return e.Ready()
}

// Call is one checked call of the container runtime to its CNI plugin.
// ContainerID and IfName are safe as file names (CNI spec, section 2,
// Parameters).
type Call struct {
	ContainerID string
	NetNS       string // absolute path; may be empty for DEL
	IfName      string
	// Args are the pairs of CNI_ARGS in the order in which they came.
	Args [][2]string
	// RuntimeConfig is the configuration's runtimeConfig, nil if there is none.
	RuntimeConfig json.RawMessage
	// Pod is whose sandbox it is, as far as the runtime says (K8S_POD_* in
	// CNI_ARGS).
	Pod journal.Pod
}

// Key names the attachment that the call is for.
func (c *Call) Key() journal.Key {
	return journal.Key{ContainerID: c.ContainerID, IfName: c.IfName}
}

// Run sweeps, collects garbage and tries networks that fail until ctx ends, takes
// back what is lent, and then cuts off the queue. What is left to be undone stays in the journal.
func (e *Engine) Run(ctx context.Context) {
	defer e.queue.close()
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { e.runGC(ctx) })
	parts.Go(func() { e.runTrials(ctx) })
	parts.Go(func() { e.runLoans(ctx) })
	e.runSweeper(ctx)
}
