package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/runtime/journal"
)

// Attach is the runtime's ADD: steps 2 and 3 of the lifecycle. It returns the
// CNI result. After an error nothing is left on the node, or the journal knows
// of it and the queue works on it.
func (e *Engine) Attach(ctx context.Context, call *Call) (_ json.RawMessage, err error) {
	unlock, err := e.locks.lock(ctx, call.Key(), "ADD")
	if err != nil {
		return nil, err
	}
	defer unlock()
	flight, leave := e.flights.join(e, call)
	defer leave()
	ctx, cancel := flight.bound(ctx)
	defer cancel()
	ctx, planned, recorded := e.recordAttach(ctx, call, flight)
	defer func() { recorded(err) }()

	flight.followBy(ctx)
	defer func() {
		if err != nil {
			flight.tell(err)
		}
	}()
	record, err := e.plan(flight.begin(ctx, StepNetNS), call)
	if err != nil {
		// No plugin was called: the runtime's DEL has nothing to do, and needs no network.
		e.removed.add(call.Key())
		return nil, err
	}
	planned(record)
	if err := e.setUp(flight.begin(ctx, StepPlugin), record, flight); err != nil {
		flight.fails(err)
		return nil, e.abandon(ctx, record, err)
	}
	e.log.Info("pod networked", "pod", record.Pod, "sandbox", call.ContainerID,
		"network", record.Attachment.Network, "addresses", addresses(record.Attachment.Result),
		"took", record.Steps[len(record.Steps)-1].Duration)
	flight.begin(ctx, StepStart)
	return record.Attachment.Result, nil
}

// plan looks at the namespace, plans the attachment and journals it.
func (e *Engine) plan(ctx context.Context, call *Call) (*journal.Record, error) {
	if !isNetNS(call.NetNS) {
		return nil, &wire.Error{Code: wire.CodeInvalidNetNS,
			Msg: call.NetNS + " is no network namespace", Details: "the runtime must create it before ADD"}
	}
	if err := e.undoEarlier(ctx, call); err != nil {
		return nil, tryAgainLater(err)
	}
	return e.journalled(call, e.selected.Plan, false)
}

// journalled plans an attachment and journals it before anything is done.
func (e *Engine) journalled(call *Call, plan Planner, trial bool) (*journal.Record, error) {
	capabilities, err := e.capabilityArgs(call, e.passPorts)
	if err != nil {
		return nil, wire.Errorf(wire.CodeInvalidConfig, "runtimeConfig: %v", err)
	}
	ports, err := e.hostPortsOf(call)
	if err != nil {
		return nil, wire.Errorf(wire.CodeInvalidConfig, "hostPorts: %v", err)
	}
	attachment, err := plan(cni.Attachment{
		ContainerID: call.ContainerID, NetNS: call.NetNS, IfName: call.IfName,
		Args: call.Args, CapabilityArgs: capabilities,
	})
	if err != nil {
		return nil, tryAgainLater(fmt.Errorf("network not ready: %w", err))
	}
	record := &journal.Record{
		State: journal.Attaching, Plugin: e.selected.Name(), Pod: call.Pod, Attachment: *attachment,
		HostPorts: ports, BootID: e.bootID, Created: e.now().UTC(), Trial: trial,
	}
	if record.Attachment.Note, err = note(record); err != nil {
		return nil, err
	}
	// The only write that waits for the disk. After a loss of power, which is a reboot,
	// the network namespaces are gone, and every attachment is undone whatever its
	// state; what outlives it is what plugins keep elsewhere: host-local's files, the
	// leases of an IPAM on the network. The record that frees them must be on the disk
	// before they can be taken.
	start := e.now()
	err = e.journal.PutDurable(record)
	e.metrics.journal.Observe(e.now().Sub(start).Seconds())
	if err != nil {
		return nil, tryAgainLater(fmt.Errorf("the pod gets no network, since its record cannot be written: %w", err))
	}
	return record, nil
}

// undoEarlier undoes the attachment of an earlier ADD of the same sandbox: the
// runtime that calls ADD again uses nothing of the first one.
func (e *Engine) undoEarlier(ctx context.Context, call *Call) error {
	earlier, err := e.journal.Get(call.Key())
	if err != nil || earlier == nil {
		return err
	}
	e.log.Warn("ADD for a sandbox that has a network: crinetd undoes the earlier one first",
		"pod", call.Pod, "sandbox", call.ContainerID)
	return e.detach(ctx, earlier)
}

// setUp runs the plugins' ADD, makes the pod reachable by its hostPorts, and
// journals that the attachment stands.
func (e *Engine) setUp(ctx context.Context, r *journal.Record, flight *Flight) error {
	leave, err := e.gates.enter(ctx, r.Attachment.Network)
	if err != nil {
		return err
	}
	defer leave()
	r.Attachment.First = flight.First || slices.Contains(e.critical, r.Pod.Namespace)
	start := e.now()
	result, err := e.selected.SetUpPod(ctx, &r.Attachment)
	if !r.Trial {
		e.metrics.plugin("ADD", err, e.now().Sub(start))
		e.failures.note(r.Attachment.Network, err, e.now(), e.log)
	}
	if err != nil {
		return err
	}
	r.Attachment.Result = result
	if e.hairpin != nil {
		if err := e.hairpin(ctx, &r.Attachment); err != nil {
			e.log.Warn("no hairpin mode: the pod may not reach itself by its hostPorts and Services", "pod", r.Pod, "err", err)
		}
	}
	if err := e.mapPorts(ctx, r, flight); err != nil {
		return err
	}
	if err := callerGone(ctx); err != nil {
		return err
	}
	r.State, r.Steps = journal.Attached, flight.end()
	// Not durable: a loss of power leaves the record as it was before ADD, which is
	// enough to undo it.
	return errors.Join(e.journal.Put(r), callerGone(ctx))
}

// callerGone says that the runtime does not wait any more: nobody would take the
// result, and nobody would call DEL.
func callerGone(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("the runtime has given up on ADD: %w", context.Cause(ctx))
}

// abandon undoes an attachment whose ADD failed or whose caller is gone. It
// returns the failure, with what went wrong while undoing.
func (e *Engine) abandon(ctx context.Context, r *journal.Record, failure error) error {
	if err := e.detach(context.WithoutCancel(ctx), r); err != nil {
		return fmt.Errorf("%w; besides, %w", failure, err)
	}
	return failure
}

// tryAgainLater makes an error one that the runtime may expect to pass (CNI
// spec, section Error, code 11). An error that has a code keeps it.
func tryAgainLater(err error) error {
	var coded *wire.Error
	if errors.As(err, &coded) {
		return err
	}
	return wire.Errorf(wire.CodeTryAgainLater, "%v", err)
}
