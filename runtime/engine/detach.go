package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/runtime/journal"
)

// Detach is the runtime's DEL. It uses what the journal says of the attachment,
// not what the call brings: the configuration may have changed since ADD. It is
// idempotent. A DEL that comes from inside the attachment's own chain succeeds:
// the operation around it is what removes the attachment, and would never
// succeed if this one failed.
func (e *Engine) Detach(ctx context.Context, call *Call) error {
	unlock, err := e.locks.lock(ctx, call.Key(), "DEL")
	if errors.As(err, new(nestedError)) {
		e.log.Warn("a DEL that a plugin of the network delegates to crinet is left to the operation around it",
			"pod", call.Pod, "sandbox", call.ContainerID, "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	r, err := e.journal.Get(call.Key())
	switch {
	case err != nil:
		return err
	case r != nil:
		return e.detach(ctx, r)
	case e.removed.has(call.Key()):
		return nil // the runtime's second DEL
	}
	if r, err = e.foreignRecord(call); err != nil {
		return tryAgainLater(err)
	}
	if r != nil {
		return e.detach(ctx, r)
	}
	return e.detachUnknown(ctx, call)
}

// detach undoes an attachment and takes it out of the journal. The caller holds
// the attachment's lock. If it fails, the record says so and the queue goes on;
// the error is for whoever waits for the outcome.
func (e *Engine) detach(ctx context.Context, r *journal.Record) error {
	log := e.log.With("pod", r.Pod, "sandbox", r.Attachment.ContainerID, "network", r.Attachment.Network, "netns", r.Attachment.NetNS)
	ctx, recorded := e.record(ctx, "DEL", r)
	start := e.now()
	e.detaching(r, log)
	err := e.tearDown(ctx, r)
	recorded(r, r.Steps, err)
	if !r.Trial {
		e.metrics.plugin("DEL", err, e.now().Sub(start))
	}
	if err != nil {
		r.State, r.Tries, r.LastError = journal.Detaching, r.Tries+1, err.Error()
		if putErr := e.journal.Put(r); putErr != nil {
			log.Error("the journal does not record that the pod's network must still be removed; crinetd tries again all the same", "err", putErr)
		}
		e.queue.add(r)
		return fmt.Errorf("the pod's network is not removed, crinetd tries again: %w", err)
	}
	e.removed.add(r.Key())
	e.flights.settle(r.Key())
	// Not durable: after a loss of power the record may be there again, and DEL, which
	// may be called again, is.
	if err := e.journal.Delete(r.Key()); err != nil {
		// The caller asked for the network to go, and it is gone. The record does
		// no harm, since DEL may be called again; the queue removes it.
		log.Error("the pod's network is removed, but not its journal record; crinetd tries again", "err", err)
		e.queue.add(r)
		return nil
	}
	level := slog.LevelInfo
	if r.Trial {
		level = slog.LevelDebug
	}
	log.Log(ctx, level, "pod's network removed", "tries", r.Tries+1, "took", e.now().Sub(start))
	return nil
}

// detaching journals that the removal of an attachment has begun. A crinetd that is
// killed in the middle of it would otherwise take the attachment for one that stands
// when it starts again, and map its hostPorts to an address that is free already. It
// does not wait for the disk: after a loss of power all attachments are undone.
func (e *Engine) detaching(r *journal.Record, log *slog.Logger) {
	if !e.Stands(r) {
		return
	}
	r.State = journal.Detaching
	if err := e.journal.Put(r); err != nil {
		log.Warn("the journal does not record that the removal of the pod's network has begun; it goes on", "err", err)
	}
}

// tearDown takes the hostPorts away and then calls the plugin that made the
// attachment. The order matters: a free address may be another pod's at once,
// and that pod must not get this one's traffic.
func (e *Engine) tearDown(ctx context.Context, r *journal.Record) error {
	if err := e.unmapPorts(ctx, r); err != nil {
		return err
	}
	plugin := e.plugins[r.Plugin]
	if plugin == nil {
		return fmt.Errorf("network plugin %q made it, and this crinetd does not have that plugin", r.Plugin)
	}
	leave, err := e.gates.enter(ctx, r.Attachment.Network)
	if err != nil {
		return err
	}
	defer leave()
	a := r.Attachment
	a.Begun = r.Created
	if r.BootID != e.bootID || !isNetNS(a.NetNS) {
		a.NetNS = "" // CNI spec, section DEL: the namespace is gone
	}
	if err := plugin.TearDownPod(ctx, &a); err != nil || !r.Trial {
		return err
	}
	return e.namespaces.Remove(r.Attachment.NetNS) // the runtime removes those of pods
}

// detachUnknown handles a sandbox that nobody has a record of: it was networked
// before crinetd came, by a runtime that keeps none, or its removal ended before
// crinetd's last start. The selected network's DEL with what the runtime passes is the best
// that can be done for the first, and does nothing for the second (CNI spec,
// section DEL). The plugins get portMappings in any case: portmap's DEL does
// nothing without them.
func (e *Engine) detachUnknown(ctx context.Context, call *Call) error {
	log := e.log.With("pod", call.Pod, "sandbox", call.ContainerID)
	capabilities, err := e.capabilityArgs(call, true)
	if err != nil {
		log.Warn("DEL for an unknown sandbox goes on without its runtimeConfig", "err", err)
	}
	a := cni.Attachment{
		ContainerID: call.ContainerID, NetNS: call.NetNS, IfName: call.IfName,
		Args: call.Args, CapabilityArgs: capabilities,
	}
	if !isNetNS(a.NetNS) {
		a.NetNS = ""
	}
	plan, err := e.selected.Plan(a)
	if err != nil {
		return wire.Errorf(wire.CodeTryAgainLater, "crinetd has no record of sandbox %s and no network whose DEL could free "+
			"what the sandbox holds: %v. If the sandbox never had a network of crinet's, crinetctl forget %s ends this",
			call.ContainerID, err, call.ContainerID)
	}
	plan.Builtin = nil // the binaries know more of what binaries leave, such as iptables rules
	log.Info("DEL for an unknown sandbox: calling the selected network's", "network", plan.Network)
	about := recordOf(call)
	about.Attachment.Network = plan.Network
	ctx, recorded := e.record(ctx, "DEL", about)
	err = e.selected.TearDownPod(ctx, plan)
	recorded(about, nil, err)
	if err != nil {
		return err
	}
	e.removed.add(call.Key())
	return nil
}

// DetachSandbox makes sure that the network of a sandbox is gone that the
// runtime says is stopped or removed. id may be a unique prefix, as the runtime
// takes it; one that fits several sandboxes in the journal is left to the
// sweeper. It goes on when the caller is gone.
func (e *Engine) DetachSandbox(ctx context.Context, id string) error {
	if id == "" {
		return nil
	}
	records, err := e.journal.Sandbox(id)
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.Attachment.ContainerID != records[0].Attachment.ContainerID {
			return nil
		}
	}
	var errs []error
	for _, r := range records {
		errs = append(errs, e.detachKey(askedBy(context.WithoutCancel(ctx), byCRI), r.Key()))
	}
	return errors.Join(errs...)
}

// detachKey detaches what stands in the journal under key.
func (e *Engine) detachKey(ctx context.Context, key journal.Key) error {
	unlock, err := e.locks.lock(ctx, key, "DEL")
	if err != nil {
		return err
	}
	defer unlock()
	r, err := e.journal.Get(key)
	if err != nil || r == nil {
		return err
	}
	return e.detach(ctx, r)
}

// recentKeys remembers the attachments that were removed last: the runtime calls
// DEL again when it removes a stopped sandbox. The zero value is ready.
type recentKeys struct {
	mu   sync.Mutex
	set  map[journal.Key]bool
	ring [4096]journal.Key
	next int // the oldest in ring
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
