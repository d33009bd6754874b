package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/hostport"
	"github.com/crinet-project/crinet/runtime/journal"
)

// throwawayEnd is how long the DEL of a throwaway attachment goes on after its user is
// gone or crinetd is told to end. What it does not manage stays in the journal.
const throwawayEnd = 5 * time.Second

// Planner completes an attachment with a network, as [NetworkPlugin.Plan] does with
// the selected one.
type Planner func(cni.Attachment) (*cni.Attachment, error)

// throwaway is an attachment of crinetd's own, no pod's, in a network namespace of
// its own. Like any attachment it is journalled before anything is done, and what
// remains of it is undone until that works. It is in flight until its end.
type throwaway struct {
	engine *Engine
	call   *Call
	plan   Planner
	flight *Flight
	record *journal.Record // nil until it is journalled
}

// newThrowaway begins the flight of a throwaway attachment. name is its container's
// and its namespace's, role its pod's. Its hostPorts are reserved.
func (e *Engine) newThrowaway(ctx context.Context, name, role string, plan Planner, ports []hostport.Mapping) (*throwaway, error) {
	t := &throwaway{engine: e, plan: plan, call: &Call{
		ContainerID: name, NetNS: e.namespaces.Path(name), IfName: defaultIfName,
		Pod: journal.Pod{Namespace: "crinet", Name: role, UID: name}, // no pod's
	}}
	if len(ports) > 0 {
		var err error
		if t.call.RuntimeConfig, err = json.Marshal(map[string]any{portMappings: ports}); err != nil {
			return nil, fmt.Errorf("hostPorts: %w", err)
		}
	}
	var err error
	t.flight, err = e.takeOff(ctx, t.call.Pod, ports)
	return t, err
}

// add journals the attachment, makes the namespace and adds that as a pod is added.
// After an error end must be called. What an earlier one of the same name has left
// is undone first.
func (t *throwaway) add(ctx context.Context) (err error) {
	e := t.engine
	unlock, err := e.locks.lock(ctx, t.call.Key(), "ADD")
	if err != nil {
		return err
	}
	defer unlock()
	flight, leave := e.flights.join(e, t.call)
	defer leave()
	earlier, err := e.journal.Get(t.call.Key())
	if err != nil {
		return err
	}
	if earlier != nil {
		if err := e.detach(ctx, earlier); err != nil {
			return fmt.Errorf("the one before this one: %w", err)
		}
	}
	flight.begin(ctx, StepNetNS)
	if t.record, err = e.journalled(t.call, t.plan, true); err != nil {
		return err
	}
	ctx, recorded := e.record(askedBy(ctx, byTrial), wire.CommandAdd, t.record)
	defer func() { recorded(t.record, flight.soFar(), err) }()
	if err := e.namespaces.Make(t.call.ContainerID); err != nil {
		return err
	}
	return e.setUp(flight.begin(ctx, StepPlugin), t.record, flight)
}

// end undoes the attachment, also when add has failed or ctx is over. It may be
// called again.
func (t *throwaway) end(ctx context.Context) error {
	e := t.engine
	defer func() { t.flight.End(); e.flights.settle(t.call.Key()) }()
	if t.record == nil {
		return nil
	}
	undo, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		select {
		case <-time.After(throwawayEnd):
			cancel()
		case <-undo.Done():
		}
	})()
	unlock, err := e.locks.lock(undo, t.call.Key(), "DEL")
	if err != nil {
		return err
	}
	defer unlock()
	r, err := e.journal.Get(t.call.Key())
	if err != nil || r == nil {
		return err
	}
	return e.detach(askedBy(undo, byTrial), r)
}
