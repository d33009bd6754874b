package integration_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/integration/testplugin/script"
)

// refused checks that a pod is refused because of its hostPorts before containerd
// hears of it, and that the error has these words.
func (n *testNode) refused(client *node.Client, config *runtimeapi.PodSandboxConfig, words ...string) {
	n.t.Helper()
	n.refusedWith(codes.FailedPrecondition, client, config, words...)
}

func (n *testNode) refusedWith(code codes.Code, client *node.Client, config *runtimeapi.PodSandboxConfig, words ...string) {
	n.t.Helper()
	name := config.GetMetadata().GetName()
	before := n.sandboxIDs(client)
	_, err := client.RunPod(n.ctx, config)
	if status.Code(err) != code {
		n.t.Errorf("RunPodSandbox of %s answers %v, want %v", name, err, code)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			n.t.Errorf("the refusal of %s is %q, want it to say %q", name, err, word)
		}
	}
	if after := n.sandboxIDs(client); !slices.Equal(before, after) {
		n.t.Errorf("after the refusal of %s containerd has the sandboxes %q, before %q", name, after, before)
	}
	if n.containerdKnows(name) {
		n.t.Errorf("containerd was asked to run %s", name)
	}
}

// containerdKnows says whether containerd was ever asked to run a pod.
func (n *testNode) containerdKnows(name string) bool {
	n.t.Helper()
	log, err := n.Log("containerd")
	n.ok(err)
	return strings.Contains(log, name)
}

// admitted runs a pod with these ports and removes it.
func (n *testNode) admitted(client *node.Client, name string, ports ...*runtimeapi.PortMapping) {
	n.t.Helper()
	pod, err := client.RunPod(n.ctx, n.withPorts(name, ports...))
	n.ok(err)
	if !n.containerdKnows(name) {
		n.t.Errorf("containerd's log does not name %s, and so shows nothing", name)
	}
	n.ok(pod.StopAndRemove(n.ctx))
}

// A pod that wants a port of another pod is refused, and the error names that pod.
// Ports that do not overlap are mapped. Invalid ports are refused.
func TestHostPortOfAnotherPod(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	holder, err := client.RunPod(n.ctx, n.withPorts("holder",
		hostPort(tcp, "", 8080, 80), hostPort(tcp, node.NodeIPv4, 8081, 80)))
	n.ok(err)
	for name, port := range map[string]*runtimeapi.PortMapping{
		"refused-same":     hostPort(tcp, "", 8080, 8080),
		"refused-specific": hostPort(tcp, node.NodeIPv4, 8080, 80),
		"refused-any":      hostPort(tcp, "0.0.0.0", 8080, 80),
		"refused-wildcard": hostPort(tcp, "", 8081, 80),
		"refused-address":  hostPort(tcp, node.NodeIPv4, 8081, 80),
	} {
		// The first port is free, and must be so again afterwards.
		n.refused(client, n.withPorts(name, hostPort(tcp, "", 8090, 80), port),
			fmt.Sprint(port.GetHostPort()), "default/holder", holder.ID)
	}
	n.admitted(client, "beside", hostPort(tcp, "", 8090, 80), hostPort(tcp, "127.0.0.1", 8081, 80),
		hostPort(udp, "", 8080, 80), hostPort(runtimeapi.Protocol_SCTP, "", 8080, 80))
	for name, port := range map[string]*runtimeapi.PortMapping{
		"refused-negative":  hostPort(tcp, "", -1, 80),
		"refused-high":      hostPort(tcp, "", 65536, 80),
		"refused-container": hostPort(udp, "", 8091, 0),
		"refused-junk":      hostPort(tcp, "node.example", 8091, 80),
	} {
		n.refusedWith(codes.InvalidArgument, client, n.withPorts(name, hostPort(tcp, "", 8090, 80), port), "default/"+name,
			fmt.Sprintf("port mapping 1 (protocol \"%v\", hostIP %q, hostPort %d", port.GetProtocol(), port.GetHostIp(), port.GetHostPort()))
	}
	// A sandbox that containerd can't make holds nothing.
	config := n.withPorts("failed", hostPort(tcp, "", 8090, 80))
	_, err = client.Runtime.RunPodSandbox(n.ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "nosuch"})
	if err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("RunPodSandbox with an unknown runtime handler answers %v", err)
	}
	n.admitted(client, "after-failed", hostPort(tcp, "", 8090, 80))
	// A stopped pod has lost its ports.
	n.ok(holder.Stop(n.ctx))
	n.admitted(client, "after-stop", hostPort(tcp, "", 8080, 80))
	n.ok(holder.Remove(n.ctx))
	n.noMappings()
	n.noLeftovers()
}

// Of two pods that want one port at once, one gets it.
func TestHostPortRace(t *testing.T) {
	t.Parallel()
	const rounds, rivals = 3, 2
	n, client := newSeedNode(t)
	for round := range rounds {
		pods, errs := make([]*node.Pod, rivals), make([]error, rivals)
		var group sync.WaitGroup
		for i := range rivals {
			config := n.withPorts(fmt.Sprintf("rival-%d-%d", round, i), hostPort(tcp, "", 8080, 80))
			group.Go(func() { pods[i], errs[i] = client.RunPod(n.ctx, config) })
		}
		group.Wait()
		won := slices.Index(errs, nil)
		if won < 0 {
			t.Fatalf("round %d: nobody got the port: %v", round, errs)
		}
		winner := fmt.Sprintf("default/rival-%d-%d", round, won)
		for i, err := range errs {
			if i != won && (status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), winner)) {
				t.Errorf("round %d: the pod that lost is answered %v, want a refusal that names %s", round, err, winner)
			}
		}
		if got := n.sandboxIDs(client); !slices.Equal(got, []string{pods[won].ID}) {
			t.Errorf("round %d: containerd has the sandboxes %q, want that of the winner", round, got)
		}
		n.ok(pods[won].StopAndRemove(n.ctx))
	}
	n.noLeftovers()
}

// When a pod is being removed, its ports are free before its plugins have ended.
func TestHostPortOfPodBeingRemoved(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	leaving, err := client.RunPod(n.ctx, n.withPorts("leaving", hostPort(tcp, "", 8080, 80)))
	n.ok(err)
	const slow = 3 * time.Second
	n.setRules(script.Rule{Verb: "DEL", Pod: "leaving", Do: script.Late, Delay: slow})
	stopped := make(chan error, 1)
	go func() { stopped <- leaving.Stop(n.ctx) }()
	n.awaitOK(answerTimeout, func() error {
		if len(n.calls("DEL")) == 0 {
			return fmt.Errorf("DEL is not called")
		}
		return nil
	})
	coming := n.servePod(client, "coming", hostPort(tcp, "", 8080, 80))
	select {
	case err := <-stopped:
		t.Errorf("StopPodSandbox was over, with %v, before the other pod ran: nothing was shown", err)
	default:
		n.ok(<-stopped)
	}
	name, _, err := n.ask(n.Outside, tcp, node.NodeIPv4, 8080, answerTimeout)
	if err != nil || name != "coming" {
		t.Errorf("the port is answered by %q, want coming: %v", name, err)
	}
	n.ok(leaving.Remove(n.ctx))
	n.ok(coming.StopAndRemove(n.ctx))
	n.noMappings()
	n.noLeftovers()
}

// A pod that wants a port on which a process of the host listens is refused, and
// the error names the process. With --hostport-conflict=warn it is mapped.
func TestHostPortOfHostProcess(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	pid, stop := n.hostServer(":9000")
	for name, port := range map[string]*runtimeapi.PortMapping{
		"refused-tcp":      hostPort(tcp, "", 9000, 80),
		"refused-udp":      hostPort(udp, "", 9000, 53),
		"refused-specific": hostPort(tcp, node.NodeIPv4, 9000, 80),
		"refused-loopback": hostPort(udp, "127.0.0.1", 9000, 53),
	} {
		n.refused(client, n.withPorts(name, port), "9000", "testimage", "pid "+pid+")")
	}
	stop()
	n.admitted(client, "after-process", bothPorts("", 9000)...)

	pid, stop = n.hostServer("127.0.0.1:9000")
	n.refused(client, n.withPorts("refused-wildcard", bothPorts("", 9000)...), "testimage", "pid "+pid+")")
	n.admitted(client, "beside-process", bothPorts(node.NodeIPv4, 9000)...)
	stop()

	pid, _ = n.hostServer(":9001")
	n.ok(n.StopCrinetd())
	n.ok(n.StartCrinetd(n.ctx, append(slices.Clone(cniFlags), "--hostport-conflict=warn")...))
	n.awaitNetwork(client, true)
	pod := n.servePod(client, "warned", bothPorts("", 9001)...)
	log, err := n.Log("crinetd")
	n.ok(err)
	if !strings.Contains(log, "pid "+pid+")") || !strings.Contains(log, "level=WARN") {
		t.Errorf("no warning names the process %s", pid)
	}
	n.answers(n.Outside, node.NodeIPv4, 9001, "warned")
	n.answers(n.Place, "127.0.0.1", 9001, "warned")
	// A conflict between pods is refused in this mode as well.
	n.refused(client, n.withPorts("refused-twice", bothPorts("", 9001)...), "default/warned")
	n.ok(pod.StopAndRemove(n.ctx))
	n.noLeftovers()
}

// flow is a client that never stops sending datagrams from one port.
type flow struct {
	what   string
	latest atomic.Pointer[string] // who answered last
}

func (n *testNode) startFlow(from *node.Place, local, remote string) *flow {
	n.t.Helper()
	f := &flow{what: local + " to " + remote}
	var conn net.PacketConn
	// The socket is not connected, so that an ICMP error does not end the flow.
	n.ok(from.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", local)
		return err
	}))
	target := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(remote))
	done := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				_, _ = conn.WriteTo([]byte("hello"), target) // it may be refused
			}
		}
	})
	group.Go(func() {
		buf := make([]byte, 1500)
		for {
			length, _, err := conn.ReadFrom(buf)
			if err != nil {
				return // closed
			}
			name, _, _ := strings.Cut(string(buf[:length]), " ")
			f.latest.Store(&name)
		}
	})
	n.t.Cleanup(func() {
		close(done)
		conn.Close()
		group.Wait()
	})
	return f
}

// A UDP client that goes on sending from one port reaches the pod that has the
// hostPort now, whether another pod or nobody had it before.
func TestUDPFlowGoesOver(t *testing.T) {
	t.Parallel()
	n, client := newDualNode(t)
	other := n.runPod(client, "other")
	other4, _ := n.addresses(other)
	flows := []*flow{
		n.startFlow(n.Outside, node.OutsideIPv4+":40000", node.NodeIPv4+":5300"),
		n.startFlow(n.Outside, "["+node.OutsideIPv6+"]:40000", "["+node.NodeIPv6+"]:5300"),
		n.startFlow(n.Place, "127.0.0.1:40000", "127.0.0.1:5300"),
		n.startFlow(n.podPlace(other), other4+":40000", node.NodeIPv4+":5300"),
	}
	for _, name := range []string{"first", "second", "third"} {
		pod := n.servePod(client, name, hostPort(udp, "", 5300, 53))
		for _, f := range flows {
			// Long before the kernel forgets a flow by itself, after 30 s or more.
			n.awaitOK(2*time.Second, func() error {
				if latest := f.latest.Load(); latest == nil || *latest != name {
					return fmt.Errorf("the flow %s is not answered by %s", f.what, name)
				}
				return nil
			})
		}
		n.ok(pod.StopAndRemove(n.ctx))
	}
	n.noMappings()
}
