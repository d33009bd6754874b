package hostport

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// HairpinFor reports whether SetHairpin may be called for pods of a network, given
// as a CNI configuration list or a single configuration. It may not if a plugin of
// the chain, or one that it delegates to, decides the matter itself: by hairpinMode,
// whatever the value, or by promiscMode, which makes the bridge reflect frames and
// which hairpin mode would double. A configuration that cannot be read decides
// nothing.
func HairpinFor(conf []byte) bool {
	type plugin struct {
		HairpinMode *bool `json:"hairpinMode"`
		PromiscMode bool  `json:"promiscMode"`
	}
	var list struct {
		plugin
		Plugins []struct {
			plugin
			Delegate plugin `json:"delegate"`
		} `json:"plugins"`
		Delegate plugin `json:"delegate"`
	}
	if err := json.Unmarshal(conf, &list); err != nil {
		return true
	}
	all := []plugin{list.plugin, list.Delegate}
	for _, p := range list.Plugins {
		all = append(all, p.plugin, p.Delegate)
	}
	for _, p := range all {
		if p.HairpinMode != nil || p.PromiscMode {
			return false
		}
	}
	return true
}

// SetHairpin lets a pod that is behind a port of a Linux bridge reach itself
// through its hostPorts also where bridged frames pass netfilter
// (bridge-nf-call-iptables): the bridge then has to send the frame out where it
// came in. podNetNS is the path of the pod's network namespace, ifname the pod's
// interface, such as eth0; nodeNetNS is a file descriptor of the node's namespace,
// 0 for the caller's own. It reports whether the port was changed. Left as they are:
// a port that is in hairpin mode already, ports of a promiscuous bridge, and an
// interface that is not a veth whose other end is on a bridge. The caller must ask
// HairpinFor first.
func SetHairpin(ctx context.Context, podNetNS, ifname string, nodeNetNS int) (changed bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, fmt.Errorf("set hairpin mode: %w", err)
	}
	pod, err := os.Open(podNetNS)
	if err != nil {
		return false, fmt.Errorf("set hairpin mode: open the pod's network namespace: %w", err)
	}
	defer func() { err = errors.Join(err, pod.Close()) }()
	inner, err := kernel.LinkByName(int(pod.Fd()), ifname)
	if err != nil {
		return false, fmt.Errorf("set hairpin mode: in the pod's network namespace %s: %w", podNetNS, err)
	}
	if inner.Kind != "veth" || inner.Peer == 0 {
		return false, nil
	}
	changed, err = setHairpin(inner, nodeNetNS)
	if err != nil {
		return false, fmt.Errorf("set hairpin mode for %s in %s: %w", ifname, podNetNS, err)
	}
	return changed, nil
}

func setHairpin(inner kernel.Link, nodeNetNS int) (changed bool, err error) {
	port, err := kernel.LinkByIndex(nodeNetNS, inner.Peer)
	if errors.Is(err, unix.ENODEV) {
		return false, nil // the other end is in some third namespace
	}
	if err != nil {
		return false, err
	}
	// An index says nothing about the namespace: the two must be each other's peer.
	if port.Kind != "veth" || port.Peer != inner.Index || port.Bridge == 0 || port.Hairpin {
		return false, nil
	}
	bridge, err := kernel.LinkByIndex(nodeNetNS, port.Bridge)
	if err != nil {
		return false, err
	}
	if bridge.Promiscuous {
		return false, nil
	}
	return true, kernel.SetHairpin(nodeNetNS, port)
}
