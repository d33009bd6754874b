package inspect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Fix is something that [Mend] can set again.
type Fix string

// The fixes. What they set is what the result of ADD says, or what it follows from.
const (
	FixLink    Fix = "link"    // the sandbox's interface is set up
	FixAddress Fix = "address" // an address of the sandbox
	FixRoute   Fix = "route"   // a route of the sandbox
	FixHostEnd Fix = "hostEnd" // the host's end is set up
	FixPort    Fix = "port"    // the host's end becomes a port of its bridge
	FixHairpin Fix = "hairpin" // hairpin mode of the port
	FixBridge  Fix = "bridge"  // the bridge is set up
	FixGateway Fix = "gateway" // the gateway's address on the node
	FixWay     Fix = "way"     // the node's route to the sandbox
)

// fix is what can be done about a finding.
type fix struct {
	finding int
	do      func() error
}

// mendRounds is how often Mend looks again: what lies behind a fault, such as the
// addresses of an interface that is down, shows when that is mended.
const mendRounds = 6

// Mend sets again what an inspection finds missing, as far as may allows it, and says
// what it has set. What it cannot set again is in the findings, which are those after
// the last fix.
func Mend(ctx context.Context, s Subject, may func(Fix) bool) (done, findings []Finding, err error) {
	failed := make(map[string]error)
	for range mendRounds {
		n, err := OpenNode()
		if err != nil {
			return done, []Finding{unknown(err)}, err
		}
		i := &inspection{subject: s, netns: s.Attachment.NetNS, node: n, host: n.host}
		i.inspect(ctx)
		findings = i.findings
		fixed := i.mend(may, failed)
		i.close()
		n.Close()
		if len(fixed) == 0 {
			break
		}
		done = append(done, fixed...)
	}
	var errs []error
	for _, f := range findings {
		errs = append(errs, failed[f.Want])
	}
	return done, findings, errors.Join(errs...)
}

// mend makes the fixes that are allowed and have not been tried yet.
func (i *inspection) mend(may func(Fix) bool, tried map[string]error) (done []Finding) {
	for _, fix := range i.fixes {
		f := i.findings[fix.finding]
		if _, again := tried[f.Want]; again || !may(f.Fix) {
			continue
		}
		err := fix.do()
		if err != nil {
			err = fmt.Errorf("%s %s cannot be set again: %w", f.Part, f.Want, err)
		} else {
			done = append(done, f)
		}
		tried[f.Want] = err
	}
	return done
}

// fixable notes what can be done about the last finding, unless that is good.
func (i *inspection) fixable(kind Fix, do func() error) {
	last := len(i.findings) - 1
	if i.findings[last].OK {
		return
	}
	i.findings[last].Fix = kind
	i.fixes = append(i.fixes, fix{last, do})
}

// addAddress adds an address. Nothing is detected: nobody else had it, and an address
// that is tentative would be of no use for seconds.
func addAddress(h *netlink.Handle, link netlink.Link, prefix netip.Prefix) error {
	address := &netlink.Addr{IPNet: ipNet(prefix)}
	if prefix.Addr().Is6() {
		address.Flags = unix.IFA_F_NODAD
	}
	return unlessThere(h.AddrAdd(link, address))
}

// addRoute adds a route of the result.
func addRoute(h *netlink.Handle, link netlink.Link, want route) error {
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(want.to.Masked()), Priority: want.result.Priority, MTU: want.result.MTU, AdvMSS: want.result.AdvMSS}
	if want.via.IsValid() {
		r.Gw = want.via.AsSlice()
	}
	if want.result.Table != nil {
		r.Table = *want.result.Table
	}
	if want.result.Scope != nil {
		r.Scope = netlink.Scope(*want.result.Scope)
	}
	return unlessThere(h.RouteAdd(r))
}

// plugIn makes a link a port of a bridge, isolated if the configuration says so.
func (i *inspection) plugIn(port, bridge netlink.Link) error {
	if err := i.host.LinkSetMaster(port, bridge); err != nil {
		return err
	}
	if i.want.isolated {
		return i.host.LinkSetIsolated(port, true)
	}
	return nil
}

// addWay adds the route to a sandbox: to its address by the host's end, or to its subnet
// by the bridge, which the kernel had added with the bridge's address.
func (i *inspection) addWay(device *netlink.LinkAttrs, address netip.Prefix) error {
	r := &netlink.Route{LinkIndex: device.Index}
	if i.ends[0].outer.Attrs().Index == device.Index {
		r.Dst, r.Scope = ipNet(netip.PrefixFrom(address.Addr(), address.Addr().BitLen())), netlink.SCOPE_HOST
	} else {
		r.Dst, r.Scope, r.Protocol = ipNet(address.Masked()), netlink.SCOPE_LINK, unix.RTPROT_KERNEL
		for _, gateway := range i.want.gateways {
			if address.Contains(gateway) {
				r.Src = gateway.AsSlice()
			}
		}
	}
	if address.Addr().Is6() {
		r.Scope = netlink.SCOPE_UNIVERSE // it has no others
	}
	return unlessThere(i.host.RouteAdd(r))
}

// unlessThere takes for done what somebody else has done meanwhile.
func unlessThere(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}

// HostLinks are the interfaces on the node that a result names.
func HostLinks(result []byte) []string {
	parsed, err := resultOf(result)
	if err != nil {
		return nil
	}
	var names []string
	for _, iface := range parsed.Interfaces {
		if iface != nil && iface.Name != "" && iface.Sandbox == "" {
			names = append(names, iface.Name)
		}
	}
	return names
}
