package nettest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
)

// apart is why the node and its pods cannot reach each other by design; empty if they
// can.
func (r *runner) apart() string {
	pod := r.chains[0].pod
	if pod == nil || pod.Type() != "macvlan" && pod.Type() != "ipvlan" {
		return ""
	}
	return fmt.Sprintf("the kernel keeps a node and its %s pods apart; others on the link reach them", pod.Type())
}

// podToNode has the first pod reach the node by its gateway and by the node's first
// address of each family.
func (r *runner) podToNode(ctx context.Context) Result {
	if why := r.apart(); why != "" {
		return Result{Status: Skipped, Note: why}
	}
	var probes []*probe
	for _, addr := range r.Pods[0].addrs() {
		for _, to := range r.nodeTargets(addr) {
			at := r.nodeAt[to]
			for i, transport := range []string{tcp, udp} {
				probes = append(probes, &probe{
					transport: transport, from: r.Pods[0].Space, fromName: podName(0), source: addr,
					to: at[i], toName: nodeName, want: nodeName,
				})
			}
		}
	}
	return r.try(ctx, probes)
}

// nodeTargets are the node's first address of a pod's family, and the pod's gateway
// if that is the node's.
func (r *runner) nodeTargets(pod netip.Addr) (targets []netip.Addr) {
	gateway, _ := r.Pods[0].Space.gateway(familyOf(pod))
	for _, addr := range r.nodeAddr {
		if addr.Is4() == pod.Is4() && (len(targets) == 0 || addr == gateway) {
			targets = append(targets, addr)
		}
	}
	return targets
}

// nodeToPod has the node reach both pods.
func (r *runner) nodeToPod(ctx context.Context) Result {
	if why := r.apart(); why != "" {
		return Result{Status: Skipped, Note: why}
	}
	var probes []*probe
	for i, pod := range r.Pods {
		for _, addr := range pod.addrs() {
			probes = append(probes, r.toPod(r.Node, nodeName, netip.Addr{}, i, addr, 0)...)
		}
	}
	return r.try(ctx, probes)
}

// toPod are the probes to a pod's server.
func (r *runner) toPod(from *Space, fromName string, source netip.Addr, i int, addr netip.Addr, size int) (probes []*probe) {
	transports := []string{tcp, udp}
	if size > 0 {
		transports = []string{udp}
	}
	for _, transport := range transports {
		probes = append(probes, &probe{
			transport: transport, from: from, fromName: fromName, source: source, size: size,
			to: netip.AddrPortFrom(addr, r.ServerPort), toName: podName(i), want: podName(i), forwarded: fromName != nodeName,
		})
	}
	return probes
}

// podToPod has each pod reach the other.
func (r *runner) podToPod(ctx context.Context) Result {
	var probes []*probe
	for i, pod := range r.Pods {
		for _, addr := range r.Pods[1-i].addrs() {
			if source := pod.addr(addr); source.IsValid() {
				probes = append(probes, r.toPod(pod.Space, podName(i), source, 1-i, addr, 0)...)
			}
		}
	}
	return r.try(ctx, probes)
}

// podToOutside has the first pod reach the default gateway of each family, as the
// node does itself.
func (r *runner) podToOutside(ctx context.Context) Result {
	var probes []*probe
	var without []string
	for _, addr := range r.Pods[0].addrs() {
		p, why := r.outside(ctx, addr)
		if p == nil {
			without = append(without, why)
			continue
		}
		probes = append(probes, p)
	}
	if len(probes) == 0 {
		return Result{Status: Skipped, Note: strings.Join(without, "; ")}
	}
	result := r.try(ctx, probes)
	if result.Status == Passed && len(without) > 0 {
		result.Note += "; not tried: " + strings.Join(without, "; ")
	}
	return result
}

// outside is how the first pod's connections beyond the node can be judged without
// the internet: the default gateway answers the node, by ping or on some port. If it
// does not, why says so.
func (r *runner) outside(ctx context.Context, pod netip.Addr) (p *probe, why string) {
	gateway, _ := r.Node.gateway(familyOf(pod))
	family := familyName(familyOf(pod))
	switch {
	case !gateway.IsValid():
		return nil, fmt.Sprintf("the node has no default gateway for %s", family)
	case gateway.Zone() != "":
		return nil, fmt.Sprintf("the default gateway for %s, %s, can be reached on its link only", family, gateway)
	}
	asks := []*probe{{transport: icmp, to: netip.AddrPortFrom(gateway, 0)}}
	for _, port := range []uint16{53, 80, 443} {
		asks = append(asks, &probe{transport: knock, to: netip.AddrPortFrom(gateway, port)})
	}
	for _, ask := range asks {
		ask.from, ask.fromName, ask.toName = r.Node, nodeName, "the default gateway"
	}
	for i, err := range sendAll(ctx, asks, firstTry) {
		if err == nil {
			p := *asks[i]
			p.from, p.fromName, p.source, p.forwarded, p.outward = r.Pods[0].Space, podName(0), pod, true, true
			return &p, ""
		}
	}
	return nil, fmt.Sprintf("the default gateway for %s, %s, does not answer the node itself, neither to ping nor on TCP ports 53, 80 and 443", family, gateway)
}

// noPorts is why the steps of the hostPort are skipped; empty if they are not.
func (r *runner) noPorts() string {
	switch {
	case r.NoHostPort != "":
		return r.NoHostPort
	case r.HostPort == 0:
		return "no hostPort is mapped"
	default:
		return r.apart()
	}
}

// toHostPort are the probes to the hostPort on an address.
func (r *runner) toHostPort(from *Space, fromName string, source, addr netip.Addr, by string) (probes []*probe) {
	for _, transport := range []string{tcp, udp} {
		probes = append(probes, &probe{
			transport: transport, from: from, fromName: fromName, source: source,
			to: netip.AddrPortFrom(addr, r.HostPort), toName: "the hostPort of " + podName(0), want: podName(0),
			behind: r.ServerPort, forwarded: fromName != nodeName, by: by,
		})
	}
	return probes
}

// byHairpin marks the probes of a pod to itself.
const byHairpin = "hairpin"

// hairpin has the first pod reach itself by its hostPort.
func (r *runner) hairpin(ctx context.Context) Result {
	if why := r.noPorts(); why != "" {
		return Result{Status: Skipped, Note: why}
	}
	var probes []*probe
	for _, source := range r.Pods[0].addrs() {
		for _, addr := range r.nodeAddr {
			if addr.Is4() == source.Is4() {
				probes = append(probes, r.toHostPort(r.Pods[0].Space, podName(0), source, addr, byHairpin)...)
				break
			}
		}
	}
	return r.try(ctx, probes)
}

// hostPort has the node and the second pod reach the first pod's hostPort by the
// node's addresses.
func (r *runner) hostPort(ctx context.Context) Result {
	if why := r.noPorts(); why != "" {
		return Result{Status: Skipped, Note: why}
	}
	var probes []*probe
	for _, addr := range r.nodeAddr {
		if !r.Pods[0].addr(addr).IsValid() {
			continue
		}
		probes = append(probes, r.toHostPort(r.Node, nodeName, netip.Addr{}, addr, "")...)
		if source := r.Pods[1].addr(addr); source.IsValid() {
			probes = append(probes, r.toHostPort(r.Pods[1].Space, podName(1), source, addr, "")...)
		}
	}
	result := r.try(ctx, probes)
	if result.Status == Passed {
		result.Note += fmt.Sprintf(", mapped by %s, by %d addresses of the node", r.MappedBy, len(r.nodeAddr))
	}
	return result
}

// loopback has the node reach the hostPort by 127.0.0.1.
func (r *runner) loopback(ctx context.Context) Result {
	lo := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	why := r.noPorts()
	switch {
	case why != "":
		return Result{Status: Skipped, Note: why}
	case r.NoLoopback != "":
		return Result{Status: Skipped, Note: r.NoLoopback}
	case !r.Pods[0].addr(lo).IsValid():
		return Result{Status: Skipped, Note: "the pods have no IPv4 address, and the kernel does not route ::1"}
	}
	return r.try(ctx, r.toHostPort(r.Node, nodeName, netip.Addr{}, lo, ""))
}

// pathMTU sends packets as large as the pods' interfaces take, and has them answered
// with as large ones; none may be fragmented. To the outside a smaller MTU is no
// fault as long as somebody tells of it.
func (r *runner) pathMTU(ctx context.Context) Result {
	if r.chains[0].mtu() == 0 || r.chains[1].mtu() == 0 {
		return Result{Status: Skipped, Note: "the MTU of the pods' interface is not known"}
	}
	var probes []*probe
	for i := range r.Pods {
		probes = append(probes, r.fullSize(i)...)
	}
	result := r.try(ctx, probes)
	if result.Status != Passed {
		return result
	}
	result.Note += fmt.Sprintf(", %d bytes", r.chains[0].mtu())
	return r.outsideMTU(ctx, result)
}

// fullSize are the probes of a pod's MTU: from the node, to it, and from the other pod.
func (r *runner) fullSize(i int) (probes []*probe) {
	pod, size := r.Pods[i], r.chains[i].mtu()
	for _, addr := range pod.addrs() {
		if other := r.Pods[1-i].addr(addr); other.IsValid() {
			probes = append(probes, r.toPod(r.Pods[1-i].Space, podName(1-i), other, i, addr, min(size, r.chains[1-i].mtu()))...)
		}
		targets := r.nodeTargets(addr)
		if r.apart() != "" || len(targets) == 0 {
			continue
		}
		probes = append(probes, r.toPod(r.Node, nodeName, netip.Addr{}, i, addr, size)...)
		probes = append(probes, &probe{
			transport: udp, from: pod.Space, fromName: podName(i), source: addr, size: size,
			to: r.nodeAt[targets[0]][1], toName: nodeName, want: nodeName,
		})
	}
	return probes
}

// outsideMTU sends full-size echo requests to the default gateways that answer small
// ones, and adds what that shows to a result that has passed.
func (r *runner) outsideMTU(ctx context.Context, result Result) Result {
	for _, addr := range r.Pods[0].addrs() {
		p, _ := r.outside(ctx, addr)
		if p == nil || p.transport != icmp || p.send(ctx, firstTry) != nil {
			continue // the step of that name tells of it
		}
		p.size = r.chains[0].mtu()
		err := p.send(ctx, firstTry)
		if err != nil && !errors.Is(err, syscall.EMSGSIZE) {
			err = p.send(ctx, secondTry) // by now the pod may have been told
		}
		switch {
		case err == nil:
			result.Note += fmt.Sprintf(", to the outside over %s too", familyName(familyOf(addr)))
		case errors.Is(err, syscall.EMSGSIZE):
			result.Note += fmt.Sprintf("; the way outside over %s is narrower, and the pod is told of it by ICMP", familyName(familyOf(addr)))
		default:
			fault := &Fault{Sent: p.String(), Came: came(err, secondTry)}
			r.explainOutsideMTU(fault, p)
			return Result{Status: Failed, Fault: fault}
		}
	}
	return result
}

// explainOutsideMTU tells why full-size packets do not come back from outside.
func (r *runner) explainOutsideMTU(f *Fault, p *probe) {
	_, link := r.Node.gateway(familyOf(p.source))
	f.Lost = fmt.Sprintf("smaller packets pass; those of the pod's MTU are dropped beyond %s, and no ICMP tells the pod to send smaller ones", Plain(link))
	f.Do = []string{
		fmt.Sprintf("find the MTU that fits (ping -M do -s SIZE %s on the node), and set it as mtu in the network's configuration, or by --network-plugin-mtu", p.to.Addr()),
		"let ICMP type 3 code 4 (IPv6: packet too big) through on the way",
	}
	h, err := r.Node.handle()
	if err != nil {
		return
	}
	defer h.Close()
	if l, err := h.LinkByName(link); err == nil && l.Attrs().MTU < p.size {
		f.Lost = fmt.Sprintf("%s has MTU %d, less than the pod's %d, and no ICMP tells the pod to send smaller packets", Plain(link), l.Attrs().MTU, p.size)
	}
}
