package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/internal/backoff"
	"github.com/crinet-project/crinet/runtime/journal"
)

const (
	// gcFirst and gcMost bound the waits after a collection that failed.
	gcFirst = 2 * time.Second
	gcMost  = 5 * time.Minute
	// defaultIfName is the interface that runtimes give to a pod's first network.
	defaultIfName = "eth0"
)

// runGC collects garbage as soon as the runtime answers, and then every
// GCInterval, if that is not 0, until ctx ends.
func (e *Engine) runGC(ctx context.Context) {
	waits := backoff.Backoff{First: gcFirst, Max: gcMost, Jitter: 0.25}
	told := ""
	for wait := time.Duration(0); backoff.Sleep(ctx, wait); {
		err := e.collect(ctx)
		if err == nil && e.gcEvery <= 0 {
			return
		}
		if err == nil {
			told, wait = "", e.gcEvery
			waits.Reset()
			continue
		}
		wait = waits.Next()
		if text := err.Error(); ctx.Err() == nil && text != told {
			e.log.Warn("garbage collection of pod networks is not complete; crinetd tries again", "err", err)
			told = text
		}
	}
}

// collect sweeps the plugins' cache, adopts pods from before crinetd, and tells the networks' plugins which
// attachments are valid. Networks without GC cost nothing.
func (e *Engine) collect(ctx context.Context) error {
	if e.cache == nil && e.foreign == nil && e.gc == nil {
		return nil
	}
	askCtx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	listed, err := e.sandboxes.List(askCtx)
	if err != nil {
		return err
	}
	errs := []error{e.sweepCache(listed), e.adopt(askCtx, listed)}
	networks, err := e.collectable()
	if err != nil {
		return err
	}
	for name, confList := range networks {
		errs = append(errs, e.collectNetwork(ctx, name, confList, listed))
	}
	return errors.Join(errs...)
}

// collectable returns the configuration lists of the networks that take GC and
// that pods are on or may get, by name. The selected network's list counts
// before those of running pods.
func (e *Engine) collectable() (map[string]json.RawMessage, error) {
	networks := make(map[string]json.RawMessage)
	if e.gc == nil {
		return networks, nil
	}
	records, err := e.journal.Sandbox("")
	if err != nil {
		return nil, err
	}
	slices.SortFunc(records, func(a, b *journal.Record) int { return a.Created.Compare(b.Created) })
	for _, r := range records {
		networks[r.Attachment.Network] = r.Attachment.ConfList
	}
	if plan, err := e.selected.Plan(cni.Attachment{}); err == nil { // without a selected network there is none more
		networks[plan.Network] = plan.ConfList
	}
	for name, confList := range networks {
		if !e.gc.CollectsGarbage(confList) {
			delete(networks, name)
		}
	}
	return networks, nil
}

// collectNetwork runs GC of one network while none of its ADD and DEL is under
// way (CNI spec, section 3, Lifecycle & Ordering).
func (e *Engine) collectNetwork(ctx context.Context, name string, confList json.RawMessage, listed map[string]bool) error {
	ctx, leave, err := e.gates.exclude(ctx, name)
	if err != nil {
		return err
	}
	defer leave()
	valid, err := e.valid(name, listed)
	if err != nil {
		return err
	}
	start := e.now()
	err = e.gc.GC(ctx, confList, valid)
	e.metrics.plugin("GC", err, e.now().Sub(start))
	return err
}

// valid are the attachments of a network that GC must leave: all in the journal,
// those included that are being undone, which is not GC's business; and those of
// sandboxes that came before crinetd.
func (e *Engine) valid(network string, listed map[string]bool) ([]types.GCAttachment, error) {
	records, err := e.journal.Sandbox("")
	if err != nil {
		return nil, err
	}
	var valid []types.GCAttachment
	known := make(map[string]bool)
	for _, r := range records {
		known[r.Attachment.ContainerID] = true
		if r.Attachment.Network == network {
			valid = append(valid, types.GCAttachment{ContainerID: r.Attachment.ContainerID, IfName: r.Attachment.IfName})
		}
	}
	for id := range listed {
		if !known[id] {
			valid = append(valid, types.GCAttachment{ContainerID: id, IfName: defaultIfName})
		}
	}
	return valid, nil
}

// Collect is the runtime's GC: what it does not list as valid is undone (CNI
// spec, section GC), but for sandboxes in the making.
func (e *Engine) Collect(ctx context.Context, valid []types.GCAttachment) error {
	keep := make(map[journal.Key]bool, len(valid))
	for _, a := range valid {
		keep[journal.Key{ContainerID: a.ContainerID, IfName: a.IfName}] = true
	}
	records, err := e.journal.Sandbox("")
	if err != nil {
		return err
	}
	inFlight := e.flights.inFlight()
	var errs []error
	for _, r := range records {
		if r.State != journal.Attached || e.wanted(r, inFlight, keep[r.Key()]) {
			continue
		}
		if err := e.detachKey(context.WithoutCancel(ctx), r.Key()); err != nil {
			errs = append(errs, fmt.Errorf("sandbox %s: %w", r.Attachment.ContainerID, err))
		}
	}
	return errors.Join(errs...)
}
