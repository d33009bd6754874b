package hostport

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// reconcileTries is how often a comparison is done again that others overtook.
const reconcileTries = 3

// reconcile makes the table hold exactly the wanted elements, in one transaction
// that contains only what differs. If rules, chains or sets differ, or if
// elements can't be put right one by one, the table is replaced as a whole,
// which packets don't notice either. It says what was wrong, "" if nothing was, and
// which elements it changed, as far as it knows.
func (n *nft) reconcile(wanted map[elemKey]counted) (changed string, done update, err error) {
	for range reconcileTries {
		why, err := n.intact()
		if err != nil {
			return "", update{}, err
		}
		if why != "" {
			changed = why
			break
		}
		u, err := n.compare(wanted)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, errInterrupted) {
			continue // somebody is at it right now
		}
		if err != nil {
			return "", update{}, err
		}
		if u.empty() {
			return changed, update{}, nil
		}
		changed = fmt.Sprintf("%d elements too many or wrong, %d missing or wrong", len(u.remove), len(u.add))
		if err := n.change(u); err == nil {
			return changed, u, nil
		}
	}
	if changed == "" {
		changed = "the table can't be read, so often does it change"
	}
	all := make([]element, 0, len(wanted))
	for _, c := range wanted {
		all = append(all, c.element)
	}
	return changed, update{add: all}, n.replace(all)
}

// compare finds what differs between the kernel's elements and the wanted ones.
func (n *nft) compare(wanted map[elemKey]counted) (update, error) {
	found, err := n.elements()
	if err != nil {
		return update{}, err
	}
	var u update
	for key, e := range found {
		if wanted[key].element != e {
			u.remove = append(u.remove, e)
		}
	}
	for key, c := range wanted {
		if found[key] != c.element {
			u.add = append(u.add, c.element)
		}
	}
	return u, nil
}

// recordedInterfaces reads on which interfaces we, or those before us, switched
// route_localnet on. Without a table there are none.
func (n *nft) recordedInterfaces() (map[string]bool, error) {
	names := make(map[string]bool)
	found := make(map[elemKey]element)
	err := n.readSet(setRouteLocalnet, found)
	if errors.Is(err, unix.ENOENT) {
		return names, nil
	}
	if err != nil {
		return nil, err
	}
	for key := range found {
		names[ifnameIn(key.key)] = true
	}
	return names, nil
}
