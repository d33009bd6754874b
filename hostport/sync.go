package hostport

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Sync makes the table equal to what the given pods need, in one transaction that
// leaves alone what is right already: no mapping that stays is interrupted. It
// takes the place of everything known so far but reservations in flight. It is
// called once at start, and is what makes hostPorts available.
//
// A pod that can't be mapped, because its ports are another's or because it lacks
// addresses, is left out and named in the error; the others are mapped. If the
// kernel refuses, the pods are remembered all the same, and Run tries again.
func (m *Manager) Sync(ctx context.Context, pods []Pod) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("synchronize hostPorts: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	recorded, err := m.nft.recordedInterfaces()
	if err != nil {
		m.trouble = err
		// Without a look at the kernel nothing is known to be ours to switch off.
		recorded = make(map[string]bool)
	}
	var wrong problems
	m.forget()
	for name := range recorded {
		m.localnet[name] = &interfaceUse{ours: true}
		m.keepInterface(name)
	}
	err = withRtnl(m.netns, func(r *rtnl) error {
		for _, pod := range pods {
			if err := m.recall(ctx, r, pod); err != nil {
				wrong.add(fmt.Errorf("%s: %w", pod, err))
			}
		}
		return nil
	})
	if err != nil { // nothing is known; the kernel stays as it is
		m.managing, m.trouble = false, err
		return fmt.Errorf("synchronize hostPorts: %w", err)
	}
	idle := m.dropIdleInterfaces()
	m.managing = true
	if _, err := m.restore(ctx); err != nil {
		wrong.add(err)
	} else if err := m.switchOff(idle); err != nil {
		wrong.add(err)
	}
	if err := wrong.err(); err != nil {
		return fmt.Errorf("synchronize hostPorts: %w", err)
	}
	return nil
}

// forget empties the memory, but for reservations.
func (m *Manager) forget() {
	m.pods = make(map[string]*mapped)
	m.elems = make(map[elemKey]counted)
	m.localnet = make(map[string]*interfaceUse)
	m.claims = make(claims)
	for o := range m.inFlight {
		m.claims.add(o)
	}
}

// recall takes a pod into memory without telling the kernel.
func (m *Manager) recall(ctx context.Context, r *rtnl, pod Pod) error {
	if len(pod.Mappings) == 0 {
		return nil
	}
	if pod.SandboxID == "" || m.pods[pod.SandboxID] != nil {
		return errors.New("its sandbox ID is empty or occurs twice")
	}
	way, err := m.waysTo(ctx, r, pod)
	if err != nil { // no reason to take the mappings away
		m.log.ErrorContext(ctx, "hostPorts may not answer on 127.0.0.1",
			"namespace", pod.Namespace, "pod", pod.Name, "sandbox", pod.SandboxID, "error", err)
	}
	next, err := prepare(pod, way)
	if err != nil {
		return err
	}
	own := func(o *owner) bool { return o.sandbox == "" && o.identity == next.owner.identity }
	if err := m.claims.check(pod.Mappings, own); err != nil {
		return err
	}
	m.remember(m.plan(nil, next, localnetPlan{}))
	m.use(localnetPlan{enter: next.iface}) // whether it is off, restore looks
	m.takeOver(next.owner)
	m.claims.add(next.owner)
	m.pods[pod.SandboxID] = next
	return nil
}

// restore compares the kernel with memory and puts right what differs; it says
// what that was. It keeps Available up to date.
func (m *Manager) restore(ctx context.Context) (changed string, err error) {
	off, err := m.claimSwitchedOff()
	var done update
	if err == nil {
		changed, done, err = m.nft.reconcile(m.elems)
	}
	if err == nil {
		err = m.switchOn(off)
	}
	if err != nil && m.trouble == nil {
		m.log.ErrorContext(ctx, "hostPorts can't be mapped from now on", "error", err)
	}
	if err == nil && m.trouble != nil {
		m.log.InfoContext(ctx, "hostPorts can be mapped")
	}
	m.trouble = err
	if err == nil {
		m.forgetChanged(ctx, done)
	}
	return changed, err
}

// forgetChanged ends the UDP and SCTP flows of mappings that were found to be wrong:
// those that began meanwhile lead to the wrong place. The mappings are right by
// now, so that a failure is only logged.
func (m *Manager) forgetChanged(ctx context.Context, u update) {
	for _, f := range families() {
		// The pods' addresses don't matter here, only that they are of the family.
		c := flowChange{pod: Pod{IPs: []netip.Addr{f.any}}}
		for _, e := range slices.Concat(u.remove, u.add) {
			if mapping, ok := f.mappingOf(e.elemKey); ok {
				c.mappings = append(c.mappings, mapping)
			}
		}
		if err := m.flows.forget(c); err != nil {
			m.log.ErrorContext(ctx, "flows to hostPorts that were restored may be stuck", "error", err)
		}
	}
}

// Remove takes the table away and everything that came with it, whoever made it:
// for a start in a mode in which this package maps nothing. Without a table, or
// on a kernel that can't have one, there is nothing to do.
func (m *Manager) Remove(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("remove the hostPort table: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	recorded, err := m.nft.recordedInterfaces()
	if err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
			return nil
		}
		return fmt.Errorf("remove the hostPort table: %w", err)
	}
	for name, use := range m.localnet {
		if use.ours {
			recorded[name] = true
		}
	}
	names := make([]string, 0, len(recorded))
	for name := range recorded {
		names = append(names, name)
	}
	// The rule that guards the interfaces goes last.
	if err := m.switchOff(names); err != nil {
		return fmt.Errorf("remove the hostPort table: %w", err)
	}
	if err := m.nft.drop(); err != nil {
		return fmt.Errorf("remove the hostPort table: %w", err)
	}
	m.managing = false
	m.trouble = errors.New("the table was removed")
	m.forget()
	return nil
}
