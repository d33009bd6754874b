package hostport

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// SetHairpin lets a pod that is behind a port of a Linux bridge reach itself
// through its hostPorts also where bridged frames pass netfilter
// (bridge-nf-call-iptables): the bridge then has to send the frame out where it
// came in. podNetNS is the path of the pod's network namespace, ifname the pod's
// interface, such as eth0; nodeNetNS is a file descriptor of the node's namespace,
// 0 for the caller's own. It reports whether the port was changed: a port that is
// in hairpin mode already, and an interface that is no veth with its other end on
// a bridge, are left as they are.
func SetHairpin(ctx context.Context, podNetNS, ifname string, nodeNetNS int) (changed bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, fmt.Errorf("set hairpin mode: %w", err)
	}
	pod, err := os.Open(podNetNS)
	if err != nil {
		return false, fmt.Errorf("set hairpin mode: open the pod's network namespace: %w", err)
	}
	defer func() { err = errors.Join(err, pod.Close()) }()
	var inner link
	err = withRtnl(int(pod.Fd()), func(r *rtnl) error {
		inner, err = r.linkByName(ifname)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("set hairpin mode: in the pod's network namespace %s: %w", podNetNS, err)
	}
	if inner.kind != "veth" || inner.peer == 0 {
		return false, nil
	}
	err = withRtnl(nodeNetNS, func(r *rtnl) error {
		port, err := r.linkByIndex(inner.peer)
		if errors.Is(err, unix.ENODEV) {
			return nil // the other end is in some third namespace
		}
		if err != nil {
			return err
		}
		// An index says nothing about the namespace: the two must be each other's peer.
		if port.kind != "veth" || port.peer != inner.index || !port.bridgePort || port.hairpin {
			return nil
		}
		if err := r.setHairpin(port.index); err != nil {
			return fmt.Errorf("on the bridge port %s: %w", port.name, err)
		}
		changed = true
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("set hairpin mode for %s in %s: %w", ifname, podNetNS, err)
	}
	return changed, nil
}
