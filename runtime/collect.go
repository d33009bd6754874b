package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/runtime/journal"
)

// gcRetry is the wait after a collection that could not be made as a whole: the
// runtime was down, or a pod came up.
const gcRetry = 2 * time.Second

// defaultIfName is the interface that runtimes give to a pod's first network.
const defaultIfName = "eth0"

// errBusy says that a network was not collected because pods were coming up.
var errBusy = errors.New("pods are coming up")

// Collector is the part of a network plugin that garbage collection needs.
type Collector interface {
	// Name is what the journal calls the plugin.
	Name() string
	// Cached are the attachments in the plugin's own cache.
	Cached() ([]cni.Attachment, error)
	// GC tells the plugins of a network which attachments are valid.
	GC(ctx context.Context, confList json.RawMessage, valid []types.GCAttachment) error
}

// runGC collects garbage, at first as soon as the runtime answers and then in
// intervals, until ctx ends.
func (m *Manager) runGC(ctx context.Context) {
	if m.Collector == nil || m.GCInterval <= 0 {
		return
	}
	wait := time.Duration(0)
	told := ""
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		wait = m.GCInterval
		err := m.collect(ctx)
		if err == nil {
			told = ""
			continue
		}
		if errors.Is(err, errBusy) || !errors.Is(err, errCollect) {
			wait = min(gcRetry, m.GCInterval)
		}
		if text := err.Error(); ctx.Err() == nil && !errors.Is(err, errBusy) && text != told {
			m.Log.Warn("garbage collection of pod networks is not complete; tried again", "err", err)
			told = text
		}
	}
}

// errCollect marks failures of plugins, which the next interval is soon enough
// for.
var errCollect = errors.New("a plugin failed")

// collect undoes what the plugin's cache holds of sandboxes that nobody knows,
// and tells the networks' plugins which attachments are valid.
func (m *Manager) collect(ctx context.Context) error {
	askCtx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	sandboxes, err := m.Sandboxes.List(askCtx)
	if err != nil {
		return err
	}
	cached, err := m.Collector.Cached()
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range cached {
		if !sandboxes[a.ContainerID] {
			errs = append(errs, m.collectStale(ctx, a))
		}
	}
	networks, err := m.collectable()
	if err != nil {
		return err
	}
	for name, confList := range networks {
		errs = append(errs, m.collectNetwork(ctx, name, confList, sandboxes))
	}
	return errors.Join(errs...)
}

// collectStale hands an attachment of the cache to the undo queue that neither
// the journal nor the runtime knows. DEL is that of its ADD.
func (m *Manager) collectStale(ctx context.Context, a cni.Attachment) error {
	key := journal.Key{ContainerID: a.ContainerID, IfName: a.IfName}
	r, err := m.Journal.Get(key)
	if err != nil || r != nil {
		return err
	}
	unlock, err := m.locks.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	if r, err = m.Journal.Get(key); err != nil || r != nil {
		return err
	}
	r = m.fromCache(a)
	r.State = journal.Detaching
	if err := m.put(r); err != nil {
		return err
	}
	m.Log.Warn("a network in the cache belongs to no sandbox: it is removed", "pod", r.Pod, "sandbox", a.ContainerID, "network", a.Network)
	m.undo.add(r)
	return nil
}

// collectable are the configuration lists of the networks that pods are on or
// may get, by name. The selected one counts before those of running pods.
func (m *Manager) collectable() (map[string]json.RawMessage, error) {
	records, err := m.Journal.Sandbox("")
	if err != nil {
		return nil, err
	}
	networks := make(map[string]json.RawMessage)
	slices.SortFunc(records, func(a, b *journal.Record) int { return a.Created.Compare(b.Created) })
	for _, r := range records {
		networks[r.Attachment.Network] = r.Attachment.ConfList
	}
	// Without a selected network there is none more.
	if plan, err := m.Plugin.Plan(cni.Attachment{}); err == nil {
		networks[plan.Network] = plan.ConfList
	}
	return networks, nil
}

// collectNetwork runs GC of one network. Valid are all attachments in the
// journal, those as well that are being undone, which is not GC's business; and
// those of sandboxes that came before crinetd.
func (m *Manager) collectNetwork(ctx context.Context, name string, confList json.RawMessage, sandboxes map[string]bool) error {
	ctx, end, begun := m.gates.collect(ctx, name)
	if !begun {
		return errBusy
	}
	defer end()
	records, err := m.Journal.Sandbox("")
	if err != nil {
		return err
	}
	var valid []types.GCAttachment
	known := make(map[string]bool)
	for _, r := range records {
		known[r.Attachment.ContainerID] = true
		if r.Attachment.Network == name {
			valid = append(valid, types.GCAttachment{ContainerID: r.Attachment.ContainerID, IfName: r.Attachment.IfName})
		}
	}
	for id := range sandboxes {
		if !known[id] {
			valid = append(valid, types.GCAttachment{ContainerID: id, IfName: defaultIfName})
		}
	}
	start := m.now()
	err = m.Collector.GC(ctx, confList, valid)
	if ctx.Err() != nil {
		return errBusy
	}
	m.Metrics.plugin("GC", err, m.now().Sub(start))
	if err != nil {
		return fmt.Errorf("%w: %w", errCollect, err)
	}
	return nil
}
