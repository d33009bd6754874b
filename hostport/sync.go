package hostport

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Sync makes the kernel equal to what the given pods need, in one transaction that
// leaves alone what is right already: no mapping that stays is interrupted. It
// replaces everything known so far but reservations in flight. It is called once
// at start, and makes hostPorts available.
//
// A pod that cannot be mapped, because its ports are another's or because it lacks
// addresses, is left out and named in the error; the others are mapped. If the
// kernel refuses, the pods are remembered all the same, and Run tries again.
func (m *Manager) Sync(ctx context.Context, pods []Pod) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("synchronize hostPorts: %w", err)
	}
	m.findLimits(ctx)
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
	m.managing = true
	if _, err := m.settleAll(ctx); err != nil {
		wrong.add(err)
	}
	if err := wrong.err(); err != nil {
		return fmt.Errorf("synchronize hostPorts: %w", err)
	}
	return nil
}

// recall adds a pod to the desired state.
func (m *Manager) recall(ctx context.Context, pod Pod) error {
	if len(pod.Mappings) == 0 {
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

// Remove deletes the table and switches route_localnet off where crinet switched it
// on, in this run or an earlier one: for a start in a mode in which this package
// maps nothing. Without a table, or on a kernel that cannot have one, there is
// nothing to do.
func (m *Manager) Remove(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("remove the hostPort table: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.remove(ctx)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		err = nil // the kernel has no nftables, and so no table
	}
	if err != nil {
		return fmt.Errorf("remove the hostPort table: %w", err)
	}
	m.managing = false
	m.trouble = errors.New("the table was removed")
	return nil
}

func (m *Manager) remove(ctx context.Context) error {
	if !m.managing {
		if err := m.loadRecord(); err != nil {
			return err
		}
	}
	m.forget()
	// The rule that guards the interfaces goes last.
	if _, err := m.beginLocalnet(ctx, m.allInterfaces()); err != nil {
		return err
	}
	if len(m.recorded) > 0 {
		return fmt.Errorf("route_localnet cannot be switched off on %v", m.allInterfaces())
	}
	if err := m.host.Drop(); err != nil {
		return err
	}
	m.desired.settled()
	return m.saveRecord()
}
