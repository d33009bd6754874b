package nettest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// reversePathFilter counts what the kernel dropped since its answer would leave by
// another interface.
const reversePathFilter = "IPReversePathFilter"

// explain says where a probe was lost and what to do. filtered is how many packets the
// reverse path filter dropped meanwhile.
func (r *runner) explain(f *Fault, p *probe, err error, t *trace, filtered int64) {
	request, reply := t.of(r, p)
	for _, way := range []struct {
		name string
		hops []hop
	}{{"the request", request}, {"the answer", reply}} {
		for i := range way.hops {
			if h := &way.hops[i]; h.dropped && h.table != TraceTable {
				f.Lost = fmt.Sprintf("%s was %s", way.name, h.verdict(context.Background(), r.Node))
				f.Do = r.whoDrops(h, p)
				return
			}
		}
	}
	for _, cause := range []func(*Fault, *probe, error) bool{r.stranger, r.tooLarge, r.noRoute, r.wrongRoute, r.noNeighbour, r.hairpinOff, r.noLoopback} {
		if cause(f, p, err) {
			return
		}
	}
	if r.notMapped(f, p, request) {
		return
	}
	r.lastSeen(f, p, t, request, reply, filtered)
	if legacy := r.Node.legacyTables(); len(legacy) > 0 {
		f.Do = append(f.Do, "look at the rules of iptables-legacy as well, which no trace shows: iptables-legacy-save")
	}
}

// of are the hops of a probe's request and of its answer.
func (t *trace) of(r *runner, p *probe) (request, reply []hop) {
	if t == nil {
		return nil, nil
	}
	ends := []netip.Addr{p.to.Addr()}
	if p.behind != 0 {
		ends = append(ends, r.Pods[0].addr(p.to.Addr()))
	}
	isEnd := func(a netip.AddrPort) bool {
		return slices.Contains(ends, a.Addr()) && (p.to.Port() == 0 || a.Port() == p.to.Port() || p.behind != 0 && a.Port() == p.behind)
	}
	protos := map[string][]byte{
		tcp: {unix.IPPROTO_TCP}, knock: {unix.IPPROTO_TCP}, udp: {unix.IPPROTO_UDP}, icmp: {unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6},
	}[p.transport]
	for _, h := range t.hops {
		switch {
		case !slices.Contains(protos, h.proto):
		case isEnd(h.dst):
			request = append(request, h)
		case isEnd(h.src):
			reply = append(reply, h)
		}
	}
	return request, reply
}

// stranger: somebody answered, and it was another.
func (r *runner) stranger(f *Fault, p *probe, err error) bool {
	if !errors.As(err, new(*strangerError)) {
		return false
	}
	f.Lost = "a rule or a route leads " + p.to.String() + " elsewhere"
	f.Do = []string{fmt.Sprintf("look for who else has %s: ip route get %s; nft list ruleset", p.to, p.to.Addr())}
	return true
}

// noRoute: the sender has no way to the address.
func (r *runner) noRoute(f *Fault, p *probe, _ error) bool {
	if _, _, err := p.from.route(p.to.Addr()); !errors.Is(err, syscall.ENETUNREACH) && !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.EINVAL) {
		return false
	}
	f.Lost = fmt.Sprintf("in %s: it has no route to %s", p.fromName, p.to.Addr())
	f.Do = []string{"give the network a default route: isDefaultGateway (bridge), or routes in ipam: {\"dst\": \"0.0.0.0/0\"}"}
	if p.fromName == nodeName {
		f.Do = []string{fmt.Sprintf("look at the node's routes: ip route get %s; the plugin, or the routing daemon, should have made one", p.to.Addr())}
	}
	return true
}

// wrongRoute: the node's way to a pod is not the one on which the pod is.
func (r *runner) wrongRoute(f *Fault, p *probe, _ error) bool {
	for i, pod := range r.Pods {
		addr, way := pod.addr(p.to.Addr()), r.chains[i].way()
		back, _, err := r.Node.route(addr)
		if !addr.IsValid() || way == "" || err != nil || back == way {
			continue
		}
		if back == "lo" {
			f.Lost = fmt.Sprintf("at the node: %s, the address of %s, is the node's own as well", addr, podName(i))
			f.Do = []string{"keep the node's addresses out of ipam's ranges: gateway, rangeStart and rangeEnd; ip addr shows whose it is on the node"}
			return true
		}
		f.Lost = fmt.Sprintf("at the node's routes: %s is behind %s, and the node's route to %s leads to %s", podName(i), way, addr, Plain(back))
		f.Do = []string{fmt.Sprintf("look for the route that leads elsewhere, and for who made it: ip route get %s; ip route; ip rule", addr)}
		if addr.Is4() && (r.Node.sysctl("net/ipv4/conf/"+way+"/rp_filter") == "1" || r.Node.sysctl("net/ipv4/conf/all/rp_filter") == "1") {
			f.Lost += fmt.Sprintf("; so the reverse path filter of %s drops what the pod sends, since the answer would leave by %s", way, Plain(back))
			f.Do = append(f.Do, fmt.Sprintf("if answers are to go that way, make the filter loose: sysctl -w net.ipv4.conf.%s.rp_filter=2, and all.rp_filter not 1", way))
		}
		return true
	}
	return false
}

// noNeighbour: nobody on the sender's link answers for the next hop.
func (r *runner) noNeighbour(f *Fault, p *probe, _ error) bool {
	link, via, err := p.from.route(p.to.Addr())
	if err != nil {
		return false
	}
	next, what := p.to.Addr(), "the address"
	if via.IsValid() {
		next, what = via, "the gateway"
	}
	if p.from.neighbour(next) != "failed" {
		return r.noWayBack(f, p)
	}
	f.Lost = fmt.Sprintf("on the link of %s: nobody answers for %s %s at %s", p.fromName, what, next, Plain(link))
	switch {
	case p.fromName == nodeName:
		f.Do = []string{fmt.Sprintf("look whether the pod's interface is up and on %s (ip link; bridge link), and whether that address is the pod's", Plain(link))}
	case via.IsValid():
		f.Do = []string{
			fmt.Sprintf("the node must have the address %s on the pods' link: isGateway (bridge) gives it, or correct gateway in ipam", next),
			"look whether the host's end of the pod's interface is up and at its bridge: ip link; bridge link",
		}
	default:
		f.Do = []string{"look whether the other end is up and at the same bridge: ip link; bridge link; a port may be isolated"}
	}
	if fault := r.linkFault(); fault != "" {
		f.Lost += "; " + fault
	}
	return true
}

// noWayBack: nobody answers for the gateway of the pod that should answer the probe.
func (r *runner) noWayBack(f *Fault, p *probe) bool {
	for i, pod := range r.Pods {
		gateway, link := pod.Space.gateway(familyOf(p.to.Addr()))
		if p.want != podName(i) || !gateway.IsValid() || pod.Space.neighbour(gateway) != "failed" {
			continue
		}
		f.Lost = fmt.Sprintf("on the way back: %s has the gateway %s, and nobody on the link of its %s answers for that", podName(i), gateway, Plain(link))
		f.Do = []string{fmt.Sprintf("the node must have the address %s on the pods' link: isGateway (bridge) gives it, or correct gateway in ipam", gateway)}
		return true
	}
	return false
}

// linkFault says what is wrong with the pods' interfaces on the node; empty if
// nothing is.
func (r *runner) linkFault() string {
	for i := range r.chains {
		c := chainOf(r.Pods[i].Space, r.Node, r.Pods[i].IfName)
		switch {
		case c.host == nil:
			continue
		case c.host.Attrs().Flags&net.FlagUp == 0:
			return fmt.Sprintf("the host's end of %s, %s, is down", podName(i), Plain(c.host.Attrs().Name))
		case c.bridge != nil && c.bridge.Attrs().Flags&net.FlagUp == 0:
			return fmt.Sprintf("the bridge %s is down", Plain(c.bridge.Attrs().Name))
		case r.chains[i].bridge != nil && c.bridge == nil:
			return fmt.Sprintf("%s was taken off its bridge", Plain(c.host.Attrs().Name))
		}
	}
	return ""
}

// tooLarge: a full-size packet, and an interface on its way that is too narrow.
func (r *runner) tooLarge(f *Fault, p *probe, err error) bool {
	if p.size == 0 {
		return false
	}
	for i := range r.chains {
		c := chainOf(r.Pods[i].Space, r.Node, r.Pods[i].IfName)
		if c.pod == nil {
			continue
		}
		narrow := func(name string, mtu int) bool {
			if mtu >= c.mtu() {
				return false
			}
			f.Lost = fmt.Sprintf("%s has MTU %d, less than the %d of %s: it drops what is larger, and no ICMP tells the sender", name, mtu, c.mtu(), podName(i))
			f.Do = []string{fmt.Sprintf("give both the same MTU: mtu in the network's configuration, or --network-plugin-mtu; "+
				"ip link set %s mtu %d until then. Pods keep the MTU that they were made with", name, c.mtu())}
			return true
		}
		if c.host != nil && narrow(Plain(c.host.Attrs().Name), c.host.Attrs().MTU) || c.bridge != nil && narrow(Plain(c.bridge.Attrs().Name), c.bridge.Attrs().MTU) {
			return true
		}
	}
	if sent := r.servers.fault(p.want); errors.Is(sent, syscall.EMSGSIZE) || errors.Is(err, syscall.EMSGSIZE) {
		f.Lost = "an interface or route on the way has a smaller MTU"
		f.Do = []string{fmt.Sprintf("look for it: ip route get %s shows the MTU of routes, ip link that of interfaces", p.to.Addr())}
		return true
	}
	return false
}

// noLoopback: the kernel does not let a packet from 127.0.0.1 out to the pod.
func (r *runner) noLoopback(f *Fault, p *probe, _ error) bool {
	way := r.chains[0].way()
	setting := "net/ipv4/conf/" + way + "/route_localnet"
	if !p.to.Addr().IsLoopback() || way == "" || r.Node.sysctl(setting) != "0" || r.Node.sysctl("net/ipv4/conf/all/route_localnet") != "0" {
		return false
	}
	f.Lost = fmt.Sprintf("in the kernel's routing: net.ipv4.conf.%s.route_localnet is 0, so that nothing leaves by %s with the address 127.0.0.1", way, way)
	f.Do = []string{fmt.Sprintf("sysctl -w net.ipv4.conf.%s.route_localnet=1; who maps the hostPort (%s) sets it: look for who sets it back, such as systemd-sysctl", way, r.MappedBy)}
	return true
}

// notMapped: no rule translated the hostPort to the pod's.
func (r *runner) notMapped(f *Fault, p *probe, request []hop) bool {
	translated := func(h hop) bool { return h.dst.Port() == p.behind }
	if p.behind == 0 || len(request) == 0 || slices.ContainsFunc(request, translated) {
		return false
	}
	f.Lost = fmt.Sprintf("at the node: no rule translates %s to port %d of %s", p.to, p.behind, podName(0))
	f.Do = []string{fmt.Sprintf("the rules are made by %s: look for who flushes or replaces tables (nft list ruleset)", r.MappedBy)}
	if r.MappedBy == "crinetd" {
		f.Do = []string{"crinetd puts its table inet crinet right when it was changed: crinetctl status says what is in the way; look for who flushes it (nft monitor)"}
	}
	return true
}

// lastSeen says which hook of the node saw a packet last that nobody gave a verdict
// on, and what drops packets there.
func (r *runner) lastSeen(f *Fault, p *probe, t *trace, request, reply []hop, filtered int64) {
	if t == nil || t.unavailable != nil {
		f.Lost = "unknown"
		if t != nil {
			f.Lost = fmt.Sprintf("unknown: packets cannot be traced: %s", Plain(t.unavailable.Error()))
		}
		r.settings(f, p, filtered)
		return
	}
	way, at := "the request", furthest(request)
	if h := furthest(reply); h != nil {
		way, at = "the answer", h
	}
	if at == nil {
		f.Lost = "before the node's firewall could see it: in the pod, or on its link"
		if fault := r.linkFault(); fault != "" {
			f.Lost += ": " + fault
		}
		r.settings(f, p, filtered)
		return
	}
	hook := strings.TrimSuffix(at.chain, "_end")
	f.Lost = fmt.Sprintf("no rule dropped %s, which was seen last at the hook %s (%s)", way, hook, at.where())
	switch hook {
	case "prerouting":
		f.Lost += ": the kernel's routing dropped it"
		r.settings(f, p, filtered)
	case "postrouting":
		r.afterPostrouting(f, p, at)
	default:
		r.settings(f, p, filtered)
	}
}

// where says which interfaces a packet came by and leaves by, and its addresses.
func (h *hop) where() string {
	var words []string
	if h.in != "" {
		words = append(words, "in by "+h.in)
	}
	if h.out != "" {
		words = append(words, "out by "+h.out)
	}
	return strings.Join(append(words, fmt.Sprintf("from %s to %s", h.src, h.dst)), ", ")
}

// furthest is the hop at the hook that comes last; nil without any.
func furthest(hops []hop) (far *hop) {
	ranks := []string{"prerouting", "prerouting_end", "output", "output_end", "input", "forward", "input_end", "forward_end", "postrouting", "postrouting_end"}
	best := -1
	for i := range hops {
		h := &hops[i]
		if rank := slices.Index(ranks, h.chain); h.table == TraceTable && h.family == unix.NFPROTO_INET && rank >= best {
			far, best = h, rank
		}
	}
	return far
}

// settings names the kernel's settings that drop packets without a verdict.
func (r *runner) settings(f *Fault, p *probe, filtered int64) {
	v4 := p.to.Addr().Is4()
	forward := "net/ipv6/conf/all/forwarding"
	if v4 {
		forward = "net/ipv4/ip_forward"
	}
	dotted := func(name string) string { return strings.ReplaceAll(name, "/", ".") }
	if p.forwarded && r.Node.sysctl(forward) == "0" {
		f.Lost += fmt.Sprintf(": %s is 0, the node does not forward", dotted(forward))
		f.Do = append(f.Do, fmt.Sprintf("sysctl -w %s=1, and keep it in /etc/sysctl.d; look for who sets it to 0", dotted(forward)))
		return
	}
	if filtered > 0 {
		f.Do = append(f.Do, fmt.Sprintf("the reverse path filter dropped %d packets meanwhile: look at net.ipv4.conf.*.rp_filter and ip route", filtered))
	}
	if len(f.Do) == 0 {
		f.Do = append(f.Do, fmt.Sprintf("look at ip route get %s on the node, rp_filter of the interfaces, and the MTU of the links (ip -d link)", p.to.Addr()))
	}
}

// afterPostrouting tells of a packet that left the node's firewall and did not come back.
func (r *runner) afterPostrouting(f *Fault, p *probe, at *hop) {
	switch {
	case p.outward && at.src.Addr() == p.source:
		f.Lost = fmt.Sprintf("it left by %s with the pod's own address %s: nobody masquerades it, and %s does not route answers back", at.out, p.source, p.to.Addr())
		f.Do = []string{
			"set ipMasq (bridge, ptp) or the plugin's like in the network's configuration, or have whoever masquerades for it run",
			"or give the gateway a route to the pods' subnet by this node",
		}
	case p.outward:
		f.Lost = fmt.Sprintf("it left by %s as %s and was not answered, though the node's own packets are: look beyond the node", at.out, at.src.Addr())
		f.Do = []string{fmt.Sprintf("tcpdump -ni %s host %s", at.out, p.to.Addr())}
	default:
		f.Lost = fmt.Sprintf("it left the node's firewall by %s (%s) and was not answered: behind %s, in the pod or on its link", at.out, at.where(), at.out)
		if fault := r.linkFault(); fault != "" {
			f.Lost += ": " + fault
		}
		f.Do = []string{fmt.Sprintf("look at MTU and state of %s and of the pod's interface (ip -d link), and at rules inside the pod's namespace", at.out)}
	}
}

// hairpinOff: the bridge does not give a frame back to the port that it came from.
func (r *runner) hairpinOff(f *Fault, p *probe, _ error) bool {
	on, known := r.chains[0].hairpin(r.Node)
	if p.by != byHairpin || !known || on {
		return false
	}
	port := Plain(r.chains[0].host.Attrs().Name)
	f.Lost = fmt.Sprintf("at the bridge %s: hairpin mode is off on the pod's port %s, so that no frame goes back to where it came from",
		Plain(r.chains[0].bridge.Attrs().Name), port)
	f.Do = []string{"run crinetd with --hairpin-mode=hairpin-veth, or set hairpinMode in the bridge's configuration; pods get it when they are made"}
	return true
}
