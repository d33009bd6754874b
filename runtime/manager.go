package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/noop"
	"github.com/crinet-project/crinet/runtime/failpoint"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/proxy"
)

// undoTimeout is added to a plugin's own time limit when something is undone
// for nobody who waits: it is a net under plugins that ignore their context.
const undoTimeout = 5 * time.Minute

// Config is what a [Manager] works with. Log, Plugin, Plugins, Journal,
// Sandboxes, BootID and Metrics are required.
type Config struct {
	Log *slog.Logger
	// Plugin is the selected network plugin.
	Plugin NetworkPlugin
	// Plugins are all network plugins: the journal may hold attachments of one
	// that is not selected any more.
	Plugins []NetworkPlugin
	Journal Journal
	// Sandboxes asks the container runtime.
	Sandboxes Sandboxes
	// BootID is the kernel's boot id. An attachment of another boot has lost its
	// network namespace.
	BootID string
	// HostPorts maps hostPorts; nil when crinetd does not.
	HostPorts HostPorts
	// PortMappings says whether portMappings go to the plugin instead.
	PortMappings bool
	// Hairpin lets a pod on a Linux bridge reach itself through the node; nil
	// leaves that to the plugin.
	Hairpin  func(ctx context.Context, netns, ifName string) error
	PodCIDRs *PodCIDRs
	// Collector and GCInterval say how and how often garbage is collected; never
	// without either. Collector is also what a lost journal is rebuilt from.
	Collector  Collector
	GCInterval time.Duration
	// Notice is what an operator should know although the network is ready; it
	// becomes the message of NetworkReady. It answers from memory. Optional.
	Notice  func() string
	Metrics *Metrics
}

// Manager manages the networks of all sandboxes of the node.
type Manager struct {
	Config
	plugins map[string]NetworkPlugin
	locks   locks
	calls   calls
	gates   gates
	// statuses are what the runtime last said of itself.
	statuses statuses
	undo     *undoQueue
	removed  recentKeys
	now      func() time.Time
}

// New returns a manager. Its Run must be called for it to retry and reconcile.
func New(c Config) *Manager {
	m := &Manager{Config: c, plugins: make(map[string]NetworkPlugin), now: time.Now}
	if m.Notice == nil {
		m.Notice = func() string { return "" }
	}
	if m.Hairpin == nil {
		m.Hairpin = func(context.Context, string, string) error { return nil }
	}
	for _, p := range c.Plugins {
		m.plugins[p.Name()] = p
	}
	m.undo = newUndoQueue(m.retry)
	return m
}

// Networks says whether crinetd networks the pods; under noop the runtime does.
func (m *Manager) networks() bool { return m.Plugin.Name() != noop.Name }

// detach undoes an attachment and takes it out of the journal. The caller holds
// the attachment's lock. When it fails the record says so and the undo queue
// goes on with it; the error is for whoever waits for the outcome.
func (m *Manager) detach(ctx context.Context, r *journal.Record) error {
	log := m.Log.With("pod", r.Pod, "sandbox", r.Attachment.ContainerID, "network", r.Attachment.Network)
	start := m.now()
	err := m.tearDown(ctx, r)
	m.Metrics.plugin("DEL", err, m.now().Sub(start))
	if err != nil {
		r.State, r.Tries, r.LastError = journal.Detaching, r.Tries+1, err.Error()
		if putErr := m.put(r); putErr != nil {
			log.Error("cannot journal that the pod's network is still to be removed; it is tried again all the same", "err", putErr)
		}
		m.undo.add(r)
		return fmt.Errorf("the pod's network cannot be removed, which will be tried again: %w", err)
	}
	m.removed.add(r.Key())
	if err := m.forget(r.Key()); err != nil {
		// The network is gone, which is what the caller asked for; the record is
		// harmless, since DEL may be called again, and the queue removes it.
		log.Error("pod's network removed, but not its journal record; tried again", "err", err)
		m.undo.add(r)
		return nil
	}
	log.Info("pod's network removed", "tries", r.Tries+1, "took", m.now().Sub(start))
	return nil
}

// put journals a record.
func (m *Manager) put(r *journal.Record) error {
	failpoint.Hit("journal", string(r.State), failpoint.Before)
	defer failpoint.Hit("journal", string(r.State), failpoint.After)
	return m.Journal.Put(r)
}

// forget takes a record out of the journal.
func (m *Manager) forget(key journal.Key) error {
	failpoint.Hit("journal", "delete", failpoint.Before)
	defer failpoint.Hit("journal", "delete", failpoint.After)
	return m.Journal.Delete(key)
}

// tearDown takes the hostPorts away, and then calls the plugin that made the
// attachment. In this order: an address that is free may be another pod's at
// once, and that pod must not get this one's traffic.
func (m *Manager) tearDown(ctx context.Context, r *journal.Record) error {
	if err := m.unmapPorts(ctx, r); err != nil {
		return err
	}
	plugin := m.plugins[r.Plugin]
	if plugin == nil {
		return fmt.Errorf("network plugin %q, which made it, is unknown to this crinetd", r.Plugin)
	}
	a := r.Attachment
	if r.BootID != m.BootID || !isNetNS(a.NetNS) {
		// CNI spec, section DEL: no CNI_NETNS when the namespace is gone.
		a.NetNS = ""
	}
	return plugin.TearDownPod(ctx, &a)
}

// detachNow takes the lock and detaches what stands in the journal under key,
// on a deadline of its own: it goes on when the caller is gone.
func (m *Manager) detachNow(ctx context.Context, key journal.Key) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	unlock, err := m.locks.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := m.Journal.Get(key)
	if err != nil || r == nil {
		return err
	}
	return m.detach(ctx, r)
}

// detachSandbox makes sure that the network of a sandbox is gone that the
// runtime says is stopped or removed. id may be a unique prefix, as the runtime
// takes it; one that fits several sandboxes in the journal is left to the next
// reconciliation.
func (m *Manager) detachSandbox(ctx context.Context, id string) error {
	if id == "" {
		return nil
	}
	records, err := m.Journal.Sandbox(id)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range records {
		if r.Attachment.ContainerID != records[0].Attachment.ContainerID {
			return nil
		}
	}
	for _, r := range records {
		errs = append(errs, m.detachNow(ctx, r.Key()))
	}
	return errors.Join(errs...)
}

// recentKeys remembers the attachments that were removed last: the runtime
// calls DEL again when it removes a stopped sandbox, and nothing is to be done
// then.
type recentKeys struct {
	mu   sync.Mutex
	set  map[journal.Key]bool
	ring [4096]journal.Key
	next int
}

func (r *recentKeys) add(key journal.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.set == nil {
		r.set = make(map[journal.Key]bool)
	}
	if r.set[key] {
		return
	}
	delete(r.set, r.ring[r.next])
	r.ring[r.next] = key
	r.next = (r.next + 1) % len(r.ring)
	r.set[key] = true
}

func (r *recentKeys) has(key journal.Key) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.set[key]
}

// Hooks are the CRI methods that the manager takes part in, by full name.
func (m *Manager) Hooks() map[string]proxy.Hook {
	return map[string]proxy.Hook{
		runtimeapi.RuntimeService_RunPodSandbox_FullMethodName:       m.RunPodSandbox,
		runtimeapi.RuntimeService_StopPodSandbox_FullMethodName:      m.StopPodSandbox,
		runtimeapi.RuntimeService_RemovePodSandbox_FullMethodName:    m.RemovePodSandbox,
		runtimeapi.RuntimeService_Status_FullMethodName:              m.Status,
		runtimeapi.RuntimeService_UpdateRuntimeConfig_FullMethodName: m.UpdateRuntimeConfig,
	}
}
