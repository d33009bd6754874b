package node_test

import (
	"bufio"
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/integration/testplugin/script"
)

var kit *node.Kit // made by TestMain, read by the tests

func TestMain(m *testing.M) {
	os.Exit(node.Main(m, false, func(k *node.Kit) { kit = k }))
}

const bridgeConf = `{"cniVersion":"1.0.0","name":"mynet","plugins":[
 {"type":"bridge","bridge":"mynet0","isDefaultGateway":true,"ipMasq":true,"hairpinMode":true,
  "ipam":{"type":"host-local","subnet":"10.10.0.0/16"}}]}`

// start starts a node with containerd and a bridge network.
func start(t *testing.T) (context.Context, *node.Node, *node.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	n, err := kit.Start(ctx, node.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(n.LogTails(60))
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := n.WriteConf("10-mynet.conflist", bridgeConf); err != nil {
		t.Fatal(err)
	}
	if err := n.StartContainerd(ctx); err != nil {
		t.Fatal(err)
	}
	client, err := n.Client(node.ContainerdSocket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.AwaitNetwork(ctx, true); err != nil {
		t.Fatal(err)
	}
	return ctx, n, client
}

// The node does what a real one does, without crinetd. A failure of another test is
// therefore crinetd's.
func TestPodOnBareContainerd(t *testing.T) {
	t.Parallel()
	ctx, n, client := start(t)
	pod, err := client.RunPod(ctx, n.PodConfig("web"))
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := pod.Addresses(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(addrs) != 1 || !netip.MustParsePrefix("10.10.0.0/16").Contains(netip.MustParseAddr(addrs[0])) {
		t.Fatalf("addresses %v, want one of 10.10.0.0/16", addrs)
	}
	web, err := pod.RunContainer(ctx, "web", node.TestImage)
	if err != nil {
		t.Fatal(err)
	}
	checkContainer(ctx, t, n, web, addrs[0])
	checkPortForward(ctx, t, n, pod)

	if out, err := n.Crictl(ctx, node.ContainerdSocket, "pods", "-o", "json"); err != nil || !strings.Contains(out, pod.ID) {
		t.Errorf("crictl pods does not show the pod: %v\n%s", err, out)
	}
	checkTraces(ctx, t, n)
	if err := pod.StopAndRemove(ctx); err != nil {
		t.Fatal(err)
	}
	clean, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if left, err := n.AwaitClean(clean); err != nil || len(left) != 0 {
		t.Errorf("left after the pod's removal: %q, %v", left, err)
	}
}

// checkTraces is the proof that Leftovers sees what a pod leaves behind.
func checkTraces(ctx context.Context, t *testing.T, n *node.Node) {
	t.Helper()
	left, err := n.Leftovers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"address", "containerd result", "network namespace", "sandbox", "veth"} {
		if !slices.ContainsFunc(left, func(s string) bool { return strings.HasPrefix(s, kind+" ") }) {
			t.Errorf("no %s among the traces of a running pod: %q", kind, left)
		}
	}
}

func checkContainer(ctx context.Context, t *testing.T, n *node.Node, web *node.Container, addr string) {
	t.Helper()
	page, err := n.AwaitGet(ctx, "http://"+addr+"/")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(page, "web 10.10.0.1:") {
		t.Errorf("page %q, want the pod's host name and the bridge's address", page)
	}
	if out, err := web.Exec(ctx, "sh", "-c", "echo $((6*7)); /nodetest udp 127.0.0.1:80 hello"); err != nil ||
		!strings.HasPrefix(out, "42\nweb 127.0.0.1:") {
		t.Errorf("exec printed %q, %v", out, err)
	}
	if log, err := web.Log(); err != nil || !strings.Contains(log, "GET / 10.10.0.1:") {
		t.Errorf("the container's log is %q, %v", log, err)
	}
}

func checkPortForward(ctx context.Context, t *testing.T, n *node.Node, pod *node.Pod) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	cmd := n.Command(ctx, "crictl", "--runtime-endpoint", "unix://"+node.ContainerdSocket, "port-forward", pod.ID, "8080:80")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // killed
	}()
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("crictl port-forward said %q: %v", line, err)
	}
	if page, err := n.Get(ctx, "http://127.0.0.1:8080/"); err != nil || !strings.HasPrefix(page, "web 127.0.0.1:") {
		t.Errorf("forwarded page is %q, %v", page, err)
	}
}

// The fault-injecting plugin does what its script says, and records its calls.
func TestScriptedPlugin(t *testing.T) {
	t.Parallel()
	const dir = "/run/testplugin"
	ctx, n, client := start(t)
	if err := n.InstallPlugin("testplugin", kit.Program("testplugin")); err != nil {
		t.Fatal(err)
	}
	conf := strings.Replace(bridgeConf, `}}]}`, `}},{"type":"testplugin","dir":"`+dir+`"}]}`, 1)
	if err := n.WriteConf("10-mynet.conflist", conf); err != nil {
		t.Fatal(err)
	}
	set := func(rules ...script.Rule) {
		t.Helper()
		if err := script.SetRules(n.Path(dir), rules...); err != nil {
			t.Fatal(err)
		}
	}
	// containerd picks the file up in its own time.
	set(script.Rule{Verb: "ADD", Do: script.Fail, Text: "not today"})
	for {
		pod, err := client.RunPod(ctx, n.PodConfig("refused"))
		if err == nil {
			err = pod.StopAndRemove(ctx)
		} else if strings.Contains(err.Error(), "not today") {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, rule := range []script.Rule{
		{Do: script.Garbage}, {Do: script.Silent}, {Do: script.Crash}, {Do: script.Die},
	} {
		rule.Verb = "ADD"
		set(rule)
		if _, err := client.RunPod(ctx, n.PodConfig("refused")); err == nil {
			t.Errorf("%s: the pod runs", rule.Do)
		}
	}
	set(script.Rule{Verb: "ADD", Pod: "other", Do: script.Fail}, script.Rule{Verb: "ADD", Do: script.Late, Delay: time.Second})
	began := time.Now()
	pod, err := client.RunPod(ctx, n.PodConfig("late"))
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("the late pod took %v", took)
	}
	calls, err := script.Calls(n.Path(dir))
	if err != nil {
		t.Fatal(err)
	}
	last := calls[len(calls)-1]
	if last.Verb != "ADD" || last.Number < 6 || last.Do != script.Late || last.Pod != "late" ||
		last.ContainerID != pod.ID || !last.NetNSExists || len(last.Processes) != 0 {
		t.Errorf("the last call is %+v", last)
	}
	if err := pod.StopAndRemove(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestUplink(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	n, err := kit.Start(ctx, node.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for _, addr := range []string{node.OutsideIPv4, node.OutsideIPv6, node.NodeIPv4, node.NodeIPv6} {
		if _, err := n.Run(ctx, "busybox", "ping", "-c", "1", "-W", "5", addr); err != nil {
			t.Errorf("from the node: %v", err)
		}
		if _, err := n.Outside.Run(ctx, "busybox", "ping", "-c", "1", "-W", "5", addr); err != nil {
			t.Errorf("from outside: %v", err)
		}
	}
}

// A node that is closed while pods run leaves nothing on the machine: no
// process, mount, control group or file.
func TestCloseLeavesNothing(t *testing.T) {
	t.Parallel()
	ctx, n, client := start(t)
	pod, err := client.RunPod(ctx, n.PodConfig("left"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pod.RunContainer(ctx, "left", node.TestImage); err != nil {
		t.Fatal(err)
	}
	// One without a parent group, as crictl's users write it.
	config := n.PodConfig("noparent")
	config.Linux.CgroupParent = ""
	bare, err := client.RunPod(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	dir := n.Dir()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the node's directory is there: %v", err)
	}
	for _, id := range []string{pod.ID, bare.ID, dir[strings.LastIndexByte(dir, '/')+1:]} {
		for what, pattern := range map[string]string{
			"control group": "/sys/fs/cgroup/*/" + id,
			"nested group":  "/sys/fs/cgroup/*/*/" + id,
		} {
			if found, err := filepath.Glob(pattern); err != nil || len(found) != 0 {
				t.Errorf("%s left: %q %v", what, found, err)
			}
		}
		for _, file := range []string{"/proc/self/mountinfo", "/proc/[0-9]*/cmdline"} {
			if found := filesWith(t, file, id); len(found) != 0 {
				t.Errorf("%s is still in %q", id, found)
			}
		}
	}
}

// filesWith returns the files of that pattern that contain text; those that
// vanish meanwhile do not.
func filesWith(t *testing.T, pattern, text string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(files, func(file string) bool {
		content, err := os.ReadFile(file)
		return err != nil || !strings.Contains(string(content), text)
	})
}
