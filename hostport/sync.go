package hostport

import (
	"context"
	"errors"
	"fmt"
)

// Sync makes the kernel equal to what the given pods need, in one transaction that
// leaves alone what is right already: no mapping that stays is interrupted. It
// replaces everything known so far but reservations in flight. It is called once
// at start, and makes hostPorts available. Under [Config.OnDemand] and without pods it
// deletes the table, and switches route_localnet off where an earlier run switched it
// on.
//
// A pod that cannot be mapped, because its ports are another's or because it lacks
// addresses, is left out and named in the error; the others are mapped. If the
// kernel refuses, the pods are remembered all the same, and Run tries again.
func (m *Manager) Sync(ctx context.Context, pods []Pod) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("synchronize hostPorts: %w", err)
	}
	if !m.onDemand {
		m.findLimits(ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var wrong problems
	m.forget()
	if err := m.loadRecord(); err != nil {
		wrong.add(err)
	}
	m.readNodePorts(ctx)
	for _, pod := range pods {
		if err := m.recall(ctx, pod); err != nil {
			wrong.add(fmt.Errorf("%s: %w", pod, err))
		}
	}
	if !m.managing {
		defer close(m.synced)
	}
	m.managing = true
	if _, err := m.settleAll(ctx); err != nil {
		wrong.add(err)
	}
	if m.absent {
		m.lacking = m.tryTable()
	}
	if err := wrong.err(); err != nil {
		return fmt.Errorf("synchronize hostPorts: %w", err)
	}
	return nil
}

// tryTable makes the table, so as to know whether there can be one, and deletes it.
func (m *Manager) tryTable() error {
	if err := m.host.Replace(nil); err != nil {
		return err
	}
	return m.host.Drop()
}

// recall adds a pod to the desired state.
func (m *Manager) recall(ctx context.Context, pod Pod) error {
	if len(pod.Mappings)+len(pod.Masquerade) == 0 {
		return nil
	}
	if pod.SandboxID == "" || m.pods[pod.SandboxID] != nil {
		return errors.New("its sandbox ID is empty or occurs twice")
	}
	known, err := m.factsAbout(pod)
	if err != nil { // no reason to take the mappings away
		m.log.ErrorContext(ctx, "hostPorts may not answer on 127.0.0.1",
			"namespace", pod.Namespace, "pod", pod.Name, "sandbox", pod.SandboxID, "error", err)
	}
	needed, err := needOf(pod, known)
	if err != nil {
		return err
	}
	next := &mapped{owner: ownerOf(pod), pod: pod, full: needed, need: m.yielding(needed)}
	m.warn(ctx, pod, next.need)
	own := func(o *owner) bool { return o.sandbox == "" && o.identity == next.owner.identity }
	if err := m.claims.check(pod.Mappings, own); err != nil {
		return err
	}
	m.desired.set(pod.SandboxID, next.need)
	m.adopt(next)
	return nil
}
