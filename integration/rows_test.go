package integration_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/runtime/admin"
)

// Review row A21: where br_netfilter is missing, modprobe runs at growing
// intervals. The node's sysctls are hidden, and a modprobe of the test's own
// says when it was run.
func TestModprobeRunsAtGrowingIntervals(t *testing.T) {
	t.Parallel()
	const bridge = "/proc/sys/net/bridge"
	n := newSharedNode(t)
	n.ok(n.WriteConf("10-runtimes.conflist", runtimeNetwork))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.WriteFile("/run/fake/modprobe", "#!/bin/sh\ndate +%s >>/run/modprobes\necho no such module >&2\nexit 1\n"))
	n.sh("chmod +x /run/fake/modprobe; : >/run/modprobes; mount -t tmpfs tmpfs %s", bridge)
	n.ok(n.StartCrinetdBy(n.ctx, []string{"env", "PATH=/run/fake:/usr/sbin:/usr/bin:/sbin:/bin"}))
	client := n.client(node.CrinetdSocket)
	says := func() string {
		condition, err := client.NetworkReady(n.ctx)
		if err != nil {
			return "" // crinetd does not serve yet
		}
		return condition.GetMessage()
	}
	n.eventually("the lack is told", func() bool { return strings.Contains(says(), "no such module") })
	var runs []string
	n.awaitOK(2*time.Minute, func() error {
		if runs = strings.Fields(n.sh("cat /run/modprobes")); len(runs) < 3 {
			return fmt.Errorf("modprobe ran %d times", len(runs))
		}
		return nil
	})
	var at [3]int
	for i := range at {
		var err error
		at[i], err = strconv.Atoi(runs[i])
		n.ok(err)
	}
	// The waits are 5 s and 10 s; a second each is lost to rounding.
	if at[1]-at[0] < 4 || at[2]-at[1] < 9 {
		t.Errorf("modprobe ran at %q, want growing intervals", runs)
	}
	n.sh("umount %s", bridge)
	n.awaitOK(time.Minute, func() error {
		if message := says(); strings.Contains(message, "noop") {
			return fmt.Errorf("NetworkReady says %q although the sysctls are there", message)
		}
		return nil
	})
	n.awaitSysctls()
}

// Review row B6: a helper that a plugin left running on purpose outlives a kill of
// crinetd and the start of the next, in a session of its own or in the plugin's.
func TestHelpersOutliveCrinetd(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(n.WriteFile(node.BinDir+"/helper", `#!/bin/sh
input=$(cat)
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["1.0.0"]}' ;;
ADD)
	setsid sleep 86401 </dev/null >/dev/null 2>&1 &
	sleep 86402 </dev/null >/dev/null 2>&1 &
	printf %s "$input" | sed 's/.*"prevResult":\(.*\),"type":"helper".*/\1/' ;;
esac
`))
	n.sh("chmod +x %s/helper", node.BinDir)
	n.ok(n.WriteConf("10-helped.conflist", `{"cniVersion": "1.0.0", "name": "helped", "plugins": [
		{"type": "bridge", "bridge": "helped0", "isDefaultGateway": true, "ipam": {"type": "host-local", "subnet": "10.22.0.0/16"}},
		{"type": "helper"}]}`))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	pod := n.runPod(client, "helped")
	helpers := func(when string) {
		t.Helper()
		if found := strings.TrimSpace(n.sh(`cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' ' | grep -o 'sleep 8640[12]' | sort`)); found != "sleep 86401\nsleep 86402" {
			t.Errorf("%s: the helpers %q run, want both", when, found)
		}
	}
	helpers("after ADD")
	n.ok(n.KillCrinetd())
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	helpers("after a restart")
	n.ok(pod.StopAndRemove(n.ctx))
	n.noLeftovers()
}

// Review row B7: GC of a network completes while pods come and go, and one without
// the verb is not asked.
func TestGarbageCollectionUnderChurn(t *testing.T) {
	t.Parallel()
	const metric = `crinet_network_operation_duration_seconds_count{outcome="ok",verb="GC"}`
	n, client := newRecordedNode(t, "--cni-gc-interval=1s")
	n.ok(n.runPod(client, "old").StopAndRemove(n.ctx))
	n.ok(n.replaceConf(recordedFile, strings.Replace(recordedBridge, "1.0.0", "1.1.0", 1)))
	n.awaitStatus("a network with GC", cleanTimeout, func(s admin.Status) bool {
		return s.Ready && len(s.Networks) == 1 && s.Networks[0].CNIVersion == "1.1.0"
	})
	collected := func() float64 {
		count, err := n.Metric(n.ctx, metric)
		if err != nil {
			return 0 // before the first
		}
		return count
	}
	before := collected()
	if before > 0 && len(n.calls("GC")) == 0 {
		t.Error("a network without GC was collected")
	}
	pods := 0
	for deadline := time.Now().Add(2 * time.Minute); collected() < before+3; pods += 8 {
		if time.Now().After(deadline) {
			t.Fatalf("GC completed %v times while %d pods came and went, want 3", collected()-before, pods)
		}
		n.each(8, 2, func(i int) error {
			pod, err := client.RunPod(n.ctx, n.PodConfig(fmt.Sprintf("churn-%d", pods+i)))
			if err != nil {
				return err
			}
			return pod.StopAndRemove(n.ctx)
		})
	}
	t.Logf("GC completed %v times while %d pods came and went", collected()-before, pods)
	n.clean()
}

// Review row B9: the newest word on the pod CIDR counts: UpdateRuntimeConfig's over
// an older flag, a changed flag over an older UpdateRuntimeConfig, and a new one
// on a full disk, in memory.
func TestNewestWordOnThePodCIDR(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("mount -t tmpfs -o size=512k tmpfs " + stateDir)
	n.ok(n.WriteConf("10-ranges.conflist", strings.Replace(rangesNetwork, `true`, `true, "forceAddress": true`, 1)))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, append([]string{"--pod-cidr=10.60.0.0/24"}, cniFlags...)...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	check := func(name, cidr string) {
		t.Helper()
		pod := n.runPod(client, name)
		n.checkAddresses(pod, cidr)
		n.ok(pod.StopAndRemove(n.ctx))
	}
	check("flag", "10.60.0.0/24")
	n.ok(n.setPodCIDR(client, "10.61.0.0/24"))
	check("told", "10.61.0.0/24")
	n.restart(client, append([]string{"--pod-cidr=10.62.0.0/24"}, cniFlags...)...)
	check("changed", "10.62.0.0/24")
	n.sh("dd if=/dev/zero of=%s/filler bs=4k 2>/dev/null || true", stateDir)
	// The journal may have room for some.
	last := ""
	for i := range 60 {
		last = fmt.Sprintf("10.63.%d.0/24", i)
		n.ok(n.setPodCIDR(client, last))
	}
	if now := n.status().PodCIDRs; len(now) != 1 || now[0] != last {
		t.Errorf("on a full disk the pod CIDR is %q, want %s", now, last)
	}
	n.noLeftovers()
}

// Review row B10: the lease of a pod whose network has no CHECK is not taken up by
// the next daemon, and the log says so.
func TestLeaseThatCannotBeTakenUpIsTold(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.startDHCP()
	n.ok(n.WriteConf("10-lan.conflist", strings.Replace(dhcpNetwork, `"plugins"`, `"disableCheck": true, "plugins"`, 1)))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	daemon := n.awaitDHCP("started", func(d admin.DHCPDaemon) bool { return d.PID != 0 })
	pod := n.runPod(client, "leased")
	n.sh("kill -KILL %d", daemon.PID)
	n.eventually("the lease is told as not renewed", func() bool {
		log, err := n.Log("crinetd")
		n.ok(err)
		for line := range strings.Lines(log) {
			if strings.Contains(line, "the pod's dhcp lease is not renewed") && strings.Contains(line, "default/leased") {
				return true
			}
		}
		return false
	})
	n.awaitNetwork(client, true)
	n.ok(pod.StopAndRemove(n.ctx))
	n.cleanBut("veth lan1", "plugin "+node.BinDir+"/dhcp") // the daemon of the selected network
}

// Review row B16: route_localnet is switched off after the table that had the
// record of it was deleted while crinetd was away.
func TestRouteLocalnetIsInTheJournal(t *testing.T) {
	t.Parallel()
	n, client := newDualNode(t)
	n.servePod(client, "web", bothPorts("", 8080)...)
	if got := n.routeLocalnet(dualDevice); got != "1" {
		t.Fatalf("route_localnet is %s on the bridge, want 1 for the pod", got)
	}
	n.ok(n.KillCrinetd())
	n.sh("nft delete table inet crinet")
	n.ok(n.StartCrinetd(n.ctx, append([]string{"--hostport=off"}, cniFlags...)...))
	n.eventually("route_localnet is off", func() bool { return n.routeLocalnet(dualDevice) == "0" })
	n.awaitNetwork(client, true)
	n.removeAll(client)
	n.noLeftovers()
}

// Review row B17: crinetd does not read its files again and again to see whether
// they are as they were. The shim has three megabytes; with two looks in this time
// each reading it twice, that would be twelve.
func TestIdleNodeReadsNoFiles(t *testing.T) {
	t.Parallel()
	const idle, most = 10 * time.Second, 3 << 20
	n, _ := newSeedNode(t)
	n.awaitQuiet()
	pid, err := n.CrinetdPID()
	n.ok(err)
	read := func() (bytes int) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
		n.ok(err)
		_, err = fmt.Sscanf(string(text), "rchar: %d", &bytes)
		n.ok(err)
		return bytes
	}
	before := read()
	time.Sleep(idle) // what is measured is this time
	if got := read() - before; got > most {
		t.Errorf("crinetd read %d bytes in %v without anything to do, want %d at most", got, idle, most)
	} else {
		t.Logf("crinetd read %d bytes in %v", got, idle)
	}
}

// Review row B20: RestorePod of a containerd that does not know it ends as without
// crinetd, and leaves nothing.
func TestRestorePodOfARuntimeWithout(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	request := &runtimeapi.RestorePodRequest{CheckpointPath: "/run/checkpoint", Config: n.PodConfig("restored")}
	_, direct := n.client(node.ContainerdSocket).Runtime.RestorePod(n.ctx, request)
	_, through := client.Runtime.RestorePod(n.ctx, request)
	if status.Code(direct) != codes.Unimplemented || status.Code(through) != codes.Unimplemented {
		t.Errorf("RestorePod ends with %v, and without crinetd with %v; want Unimplemented", through, direct)
	}
	if states, err := n.PodStates(n.ctx); err != nil || len(states) != 0 {
		t.Errorf("crinetctl pods shows %+v, %v", states, err)
	}
	n.noLeftovers()
}
