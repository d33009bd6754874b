package nettest

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// budget is how long steps may take in all before what fails is not sent a second
// time any more, so that a broken node is told of soon as well.
const budget = 6 * time.Second

// maxAlso is how many more failures of a step are told.
const maxAlso = 3

// Pod is a namespace that stands for a pod.
type Pod struct {
	Space  *Space
	IfName string
	// Addresses are the pod's, with prefix lengths.
	Addresses []netip.Prefix
}

// Config is what is tested. All fields but those of hostPorts are required.
type Config struct {
	Node *Space
	// Pods are two. The first one has the hostPort.
	Pods [2]Pod
	// ServerPort is the port on which the pods answer, TCP and UDP.
	ServerPort uint16
	// HostPort leads to ServerPort of the first pod; NoHostPort says why none does.
	// MappedBy says who maps it. NoLoopback says why it does not answer on 127.0.0.1,
	// and is empty if it does.
	HostPort                         uint16
	NoHostPort, MappedBy, NoLoopback string
	// Begin, which may be nil, is told which step begins; Done what it has shown.
	Begin func(step string)
	Done  func(Result)
}

// runner is one test.
type runner struct {
	Config
	servers  servers
	nodeAddr []netip.Addr
	nodeAt   map[netip.Addr][2]netip.AddrPort // the node's servers, TCP and UDP
	chains   [2]chain
	started  time.Time
	settled  string // what was waited for
}

// podName is what a pod is called.
func podName(i int) string { return fmt.Sprintf("pod %d", i+1) }

const nodeName = "the node"

// firstStep begins with what the others need as well.
const firstStep = "pod to node"

// Run sends all traffic and returns what the steps have shown. The error says that
// it could not begin.
func Run(ctx context.Context, c Config) ([]Result, error) {
	if c.Begin != nil {
		c.Begin(firstStep)
	}
	r := &runner{Config: c, servers: servers{token: rand.Text()}, started: time.Now(), nodeAt: make(map[netip.Addr][2]netip.AddrPort)}
	defer r.servers.close()
	if err := r.prepare(ctx); err != nil {
		return nil, err
	}
	steps := []struct {
		name string
		run  func(context.Context) Result
	}{
		{firstStep, r.podToNode},
		{"node to pod", r.nodeToPod},
		{"pod to pod", r.podToPod},
		{"pod to outside", r.podToOutside},
		{"hairpin", r.hairpin},
		{"hostPort", r.hostPort},
		{"hostPort by 127.0.0.1", r.loopback},
		{"path MTU", r.pathMTU},
	}
	var results []Result
	for i, s := range steps {
		if ctx.Err() != nil {
			return results, context.Cause(ctx)
		}
		if c.Begin != nil && i > 0 {
			c.Begin(s.name)
		}
		result := timed(s.name, func() Result { return s.run(ctx) })
		if i == 0 {
			result.Seconds = time.Since(r.started).Seconds()
			if result.Status == Passed {
				result.Note += r.settled
			}
		}
		results = append(results, result)
		c.Done(result)
	}
	return results, nil
}

// prepare starts the servers.
func (r *runner) prepare(ctx context.Context) (err error) {
	families := make(map[int]bool)
	for i, pod := range r.Pods {
		r.chains[i] = chainOf(pod.Space, r.Node, pod.IfName)
		for _, addr := range pod.addrs() {
			families[familyOf(addr)] = true
			any := netip.IPv4Unspecified()
			if addr.Is6() {
				any = netip.IPv6Unspecified()
			}
			if _, _, err := r.servers.listen(ctx, pod.Space, podName(i), netip.AddrPortFrom(any, r.ServerPort)); err != nil {
				return err
			}
		}
	}
	if families[netlink.FAMILY_V6] {
		r.settled = r.settle(ctx)
	}
	if r.nodeAddr, err = r.Node.addresses(families); err != nil {
		return fmt.Errorf("the node's addresses: %w", err)
	}
	for _, addr := range r.nodeAddr {
		tcpAt, udpAt, err := r.servers.listen(ctx, r.Node, nodeName, netip.AddrPortFrom(addr, 0))
		if err != nil {
			return err
		}
		r.nodeAt[addr] = [2]netip.AddrPort{tcpAt, udpAt}
	}
	return nil
}

// detection is how long the kernel's duplicate address detection may take.
const detection = 3 * time.Second

// settle waits until the kernel answers for the IPv6 addresses of the node's ends, as
// it does not at once on a bridge that has just been made. It says what it waited for.
func (r *runner) settle(ctx context.Context) (note string) {
	start := time.Now()
	waiting := func() (addrs []string) {
		for _, c := range r.chains {
			if link := cmp.Or(c.bridge, c.host); link != nil {
				addrs = append(addrs, r.Node.tentative(link)...)
			}
		}
		return addrs
	}
	for addrs := waiting(); len(addrs) > 0 && time.Since(start) < detection && ctx.Err() == nil; addrs = waiting() {
		note = fmt.Sprintf("; first the kernel made sure for %s that nobody else has the new address %s", time.Since(start).Round(10*time.Millisecond), addrs[0])
		time.Sleep(20 * time.Millisecond)
	}
	return note
}

// addrs are the pod's addresses, the first one of each family.
func (p Pod) addrs() (addrs []netip.Addr) {
	have := make(map[int]bool)
	for _, prefix := range p.Addresses {
		if addr := prefix.Addr().Unmap(); !have[familyOf(addr)] {
			have[familyOf(addr)] = true
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// addr is the pod's address of the family of another one; the zero Addr if there is none.
func (p Pod) addr(like netip.Addr) netip.Addr {
	for _, addr := range p.addrs() {
		if addr.Is4() == like.Is4() {
			return addr
		}
	}
	return netip.Addr{}
}

// try sends probes and tells what they have shown. What fails is sent once more,
// traced.
func (r *runner) try(ctx context.Context, probes []*probe) Result {
	if len(probes) == 0 {
		return Result{Status: Skipped, Note: "there is no address to send to"}
	}
	for _, p := range probes {
		p.token = r.servers.token
	}
	before := r.Node.counter(reversePathFilter)
	failed, errs := failing(probes, sendAll(ctx, probes, firstTry))
	if len(failed) == 0 {
		return Result{Status: Passed, Note: seen(probes)}
	}
	patience := firstTry
	var trace *trace
	if time.Since(r.started) < budget && ctx.Err() == nil {
		patience = secondTry
		slow := len(failed)
		trace, errs = r.traced(ctx, failed)
		if failed, errs = failing(failed, errs); len(failed) == 0 {
			return Result{Status: Passed, Note: fmt.Sprintf("%s; %d of %d were answered only at the second try", seen(probes), slow, len(probes))}
		}
	}
	first := failed[0]
	fault := &Fault{Sent: first.String(), Came: came(errs[0], patience)}
	r.explain(fault, first, errs[0], trace, r.Node.counter(reversePathFilter)-before)
	for i, p := range failed[1:] {
		if i == maxAlso {
			fault.Also = append(fault.Also, fmt.Sprintf("and %d more", len(failed)-1-i))
			break
		}
		fault.Also = append(fault.Also, p.short()+": "+came(errs[i+1], patience))
	}
	return Result{Status: Failed, Fault: fault}
}

// failing are the probes that have an error, and their errors.
func failing(probes []*probe, errs []error) (failed []*probe, why []error) {
	for i, p := range probes {
		if errs[i] != nil {
			failed, why = append(failed, p), append(why, errs[i])
		}
	}
	return failed, why
}

// traced sends probes once more while the node traces them. Without a trace, as on a
// kernel that cannot, they are sent all the same.
func (r *runner) traced(ctx context.Context, probes []*probe) (*trace, []error) {
	tracer, err := startTrace(r.Node, r.traceFilter())
	errs := sendAll(ctx, probes, secondTry)
	if err != nil {
		return &trace{unavailable: err}, errs
	}
	return tracer.stop(), errs
}

// traceFilter says which packets are the test's own.
func (r *runner) traceFilter() (f traceFilter) {
	for _, pod := range r.Pods {
		f.addrs = append(f.addrs, pod.addrs()...)
	}
	if r.HostPort != 0 {
		f.ports = []uint16{r.HostPort}
	}
	return f
}

// seen says by which transports and families the probes went.
func seen(probes []*probe) string {
	var words []string
	add := func(word string) {
		for _, w := range words {
			if w == word {
				return
			}
		}
		words = append(words, word)
	}
	for _, p := range probes {
		family := " over IPv4"
		if p.to.Addr().Is6() {
			family = " over IPv6"
		}
		add(map[string]string{tcp: "TCP", udp: "UDP", icmp: "ICMP", knock: "TCP"}[p.transport] + family)
	}
	return strings.Join(words, ", ")
}

// families of netlink by a person's name.
func familyName(family int) string {
	if family == netlink.FAMILY_V4 {
		return "IPv4"
	}
	return "IPv6"
}
