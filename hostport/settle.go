package hostport

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// compareTries is how often the table is compared again after somebody else changed
// it in between.
const compareTries = 3

// settle makes the kernel equal to the desired state, in one transaction, and
// returns what somebody else had changed, "" if nothing. With whole it compares all
// of the table; else it sends what changed since it was equal, and compares only
// if the kernel refuses that. route_localnet is looked at on the given interfaces:
// it is switched off before the transaction that ends the guard of the interface,
// and on after the one that begins it.
func (m *Manager) settle(ctx context.Context, interfaces []string, whole bool) (changed string, err error) {
	enable, err := m.beginLocalnet(ctx, interfaces)
	if err != nil {
		return "", err
	}
	changed, err = m.commit(ctx, whole)
	if err != nil {
		return "", err
	}
	m.desired.settled()
	return changed, m.endLocalnet(ctx, enable)
}

// commit carries out the transaction of settle.
func (m *Manager) commit(ctx context.Context, whole bool) (changed string, err error) {
	if m.onDemand && len(m.desired.elements) == 0 {
		return "", m.drop()
	}
	if m.absent {
		if err := m.host.Replace(slices.Collect(maps.Values(m.desired.elements))); err != nil {
			return "", err
		}
		m.absent = false
		return "", nil
	}
	var first error
	if !whole {
		u := m.desired.pending()
		if u.Empty() {
			return "", nil
		}
		if first = m.host.Change(u); first == nil {
			return "", nil
		}
		// The table is not what it should be: somebody else was at it, or the kernel
		// failed. Compare, and put all of it right in one go.
	}
	changed, done, err := m.reconcile()
	if err != nil {
		return "", errors.Join(first, err)
	}
	m.endFlowsOf(ctx, done)
	if first != nil && changed != "" {
		m.heal(ctx, fmt.Sprintf("%s; seen by a transaction that failed: %v", changed, first))
	}
	return changed, nil
}

// drop deletes the table, which nobody needs.
func (m *Manager) drop() error {
	if m.absent {
		return nil
	}
	err := m.host.Drop()
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		err = nil // the kernel has no nftables, and so no table
	}
	m.absent = err == nil
	return err
}

// reconcile makes the table hold exactly the desired elements, in one transaction
// that contains only what differs. If rules, chains or sets differ, or if the
// kernel refuses, the table is replaced as a whole, which packets do not notice
// either. It returns what was wrong, "" if nothing was, and which elements it changed.
func (m *Manager) reconcile() (changed string, done kernel.Update, err error) {
	for range compareTries {
		if changed, err = m.host.Intact(); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, kernel.ErrInterrupted) {
			return "", kernel.Update{}, err
		}
		if err != nil {
			changed = "the table was changed while it was read"
			continue
		}
		if changed != "" {
			break
		}
		found, err := m.host.Elements()
		if errors.Is(err, unix.ENOENT) || errors.Is(err, kernel.ErrInterrupted) {
			changed = "the table was changed while it was read"
			continue // somebody is changing it right now
		}
		if err != nil {
			return "", kernel.Update{}, err
		}
		u := kernel.Diff(found, m.desired.elements)
		if u.Empty() {
			return "", u, nil
		}
		changed = fmt.Sprintf("%d elements too many or wrong, %d missing or wrong", len(u.Remove), len(u.Add))
		if err := m.host.Change(u); err == nil {
			return changed, u, nil
		}
	}
	all := slices.Collect(maps.Values(m.desired.elements))
	return changed, kernel.Update{Add: all}, m.host.Replace(all)
}

// check makes the whole kernel equal to the desired state and keeps Available up to
// date. It reports whether the table had to be put right. After an error it must be
// called again.
func (m *Manager) check(ctx context.Context, alarm string) (healed bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.managing {
		return false, nil
	}
	changed, err := m.settleAll(ctx)
	if m.absent && m.lacking != nil {
		m.lacking = m.tryTable() // a module may have been loaded
	}
	if err != nil || changed == "" {
		return false, errors.Join(err, m.stuck)
	}
	if alarm != "" {
		changed += "; seen first: " + alarm
	}
	m.heal(ctx, changed)
	return true, m.stuck
}

func (m *Manager) settleAll(ctx context.Context) (changed string, err error) {
	m.readNodePorts(ctx)
	err = m.readProtected()
	if err == nil {
		changed, err = m.settle(ctx, m.allInterfaces(), true)
	}
	switch {
	case err != nil && m.trouble == nil:
		m.log.ErrorContext(ctx, "the table inet crinet cannot be kept: pods that need it for hostPorts or masquerade are refused for now", "error", err)
	case err == nil && m.trouble != nil:
		m.log.InfoContext(ctx, "the table inet crinet can be kept again")
	}
	m.trouble = err
	return changed, err
}

// heal tells that the table was put right.
func (m *Manager) heal(ctx context.Context, reason string) {
	m.log.WarnContext(ctx, "the table inet crinet was changed by somebody else and has been put right", "reason", reason)
	m.onHeal(reason)
}

// readProtected makes the addresses of the protected interfaces part of the desired
// state.
func (m *Manager) readProtected() error {
	if len(m.protected) == 0 {
		return nil
	}
	addresses, err := m.host.AddressesOn(m.protected)
	if err != nil {
		return fmt.Errorf("read the addresses of %v, which hostPorts must not translate: %w", m.protected, err)
	}
	var n need
	for _, f := range families() {
		for _, addr := range addresses {
			if f.Has(addr) {
				n.own = append(n.own, kernel.Element{Key: kernel.Key{Set: f.protected, Bytes: string(addr.AsSlice())}})
			}
		}
	}
	m.desired.set(needOfProtected, n)
	return nil
}

// protect follows a change of the addresses of protected interfaces.
func (m *Manager) protect(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.managing {
		return nil
	}
	if err := m.readProtected(); err != nil {
		return err
	}
	_, err := m.settle(ctx, nil, false)
	return err
}

// endFlowsOf ends the UDP and SCTP flows of mappings that were found to be wrong:
// those that began meanwhile lead to the wrong place. The mappings are right by
// now, so that a failure is only logged.
func (m *Manager) endFlowsOf(ctx context.Context, u kernel.Update) {
	for _, f := range families() {
		// The pods' addresses do not matter here, only that they are of the family.
		c := flowChange{pod: Pod{IPs: []netip.Addr{f.Any}}}
		for _, e := range slices.Concat(u.Remove, u.Add) {
			if mapping, ok := f.mappingOf(e.Key); ok {
				c.mappings = append(c.mappings, mapping)
			}
		}
		if err := m.endFlows(ctx, c); err != nil {
			m.log.ErrorContext(ctx, "flows to hostPorts that were restored may be stuck", "error", err)
		}
	}
}
