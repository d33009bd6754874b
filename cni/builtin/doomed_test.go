package builtin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/crinet-project/crinet/cni/builtin"
)

// plainConf is a bridge with gateway and one range.
func plainConf(typ string) map[string]any {
	conf := map[string]any{
		"cniVersion": "1.0.0", "name": "net", "type": typ,
		"ipam": map[string]any{"type": "host-local", "dataDir": "DATADIR", "subnet": "10.1.0.0/24", "routes": []any{map[string]any{"dst": "0.0.0.0/0"}}},
	}
	if typ == "bridge" {
		conf["isGateway"] = true
	}
	return conf
}

// add runs ADD for a sandbox.
func (w *world) add(typ, id string, pod netns) json.RawMessage {
	w.t.Helper()
	result, err := w.call(invocation{verb: "ADD", id: id, netns: pod.path(), conf: plainConf(typ), builtin: true})
	if err != nil {
		w.t.Fatal(err)
	}
	return result
}

func (w *world) del(typ, id, path string) {
	w.t.Helper()
	if _, err := w.call(invocation{verb: "DEL", id: id, netns: path, conf: plainConf(typ), builtin: true}); err != nil {
		w.t.Fatal(err)
	}
}

// hears listens on the gateway's address and says whether a packet of the pod arrives.
func (w *world) hears(pod netns, prepare ...string) bool {
	w.t.Helper()
	var conn net.PacketConn
	err := w.host.do(func() (err error) {
		conn, err = net.ListenPacket("udp4", ":4242")
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	for _, command := range prepare {
		if out, err := pod.try("sh", "-c", command); err != nil {
			w.t.Logf("%v %s", err, out)
		}
	}
	for range 5 {
		_ = pod.do(func() error {
			c, err := net.Dial("udp4", "10.1.0.1:4242")
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = io.WriteString(c, "hello")
			return err
		})
		if err := conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			w.t.Fatal(err)
		}
		if _, _, err := conn.ReadFrom(make([]byte, 16)); err == nil {
			return true
		}
	}
	return false
}

// doomed counts the links that are to be removed.
func (w *world) doomed() (n int) {
	w.t.Helper()
	err := w.host.do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if l.Attrs().Group == builtin.Doomed {
				n++
			}
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// When DEL has answered, nothing passes any more, also if the sandbox's processes try
// to open the way again, and the address can be another's at once.
func TestDelClosesTheWay(t *testing.T) {
	t.Parallel()
	for _, typ := range []string{"bridge", "ptp"} {
		t.Run(typ, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, needReference(t))
			w.add(typ, "one", w.pod)
			if !w.hears(w.pod) {
				t.Fatal("the pod is not heard before DEL")
			}
			w.del(typ, "one", w.pod.path())
			if n := w.doomed(); n != 1 {
				t.Errorf("%d links are to be removed, want 1", n)
			}
			again := "ip link set crinetdel0 up; ip address add 10.1.0.2/24 dev crinetdel0; ip route replace 10.1.0.1 dev crinetdel0; ip neighbour replace 10.1.0.1 lladdr 02:00:00:00:00:09 dev crinetdel0"
			if w.hears(w.pod, again) {
				t.Error("the pod is heard after DEL")
			}
			next := newNetNS(t)
			conf := plainConf(typ)
			conf["runtimeConfig"], conf["capabilities"] = map[string]any{"ips": []string{"10.1.0.2"}}, map[string]bool{"ips": true}
			if _, err := w.call(invocation{verb: "ADD", id: "two", netns: next.path(), conf: conf, builtin: true}); err != nil {
				t.Fatalf("the address is not free: %v", err)
			}
			if !w.hears(next) {
				t.Error("the next pod with the address is not heard")
			}
			w.reap()
			if n := w.doomed(); n != 0 {
				t.Errorf("%d links are left", n)
			}
			if !w.hears(next) {
				t.Error("the next pod is not heard after the links are removed")
			}
		})
	}
}

// A sandbox can get a network again before its old link is removed, by a binary too.
func TestAddAfterDel(t *testing.T) {
	t.Parallel()
	w := newWorld(t, needReference(t))
	for i := range 3 {
		w.add("bridge", "one", w.pod)
		w.del("bridge", "one", w.pod.path())
		if n := w.doomed(); n != i+1 {
			t.Errorf("%d links are to be removed, want %d", n, i+1)
		}
	}
	if _, err := w.call(invocation{verb: "ADD", id: "one", netns: w.pod.path(), conf: plainConf("bridge")}); err != nil {
		t.Error(err)
	}
	w.reap()
	if out := w.pod.run(t, "ip", "-br", "link"); strings.Contains(out, "crinetdel") || !strings.Contains(out, "eth0") {
		t.Errorf("the pod has the links\n%s", out)
	}
}

// Links that a crinetd has left are removed by the next one, all together, and what
// DEL leaves while it runs soon after.
func TestLinksAreRemoved(t *testing.T) {
	t.Parallel()
	w := newWorld(t, needReference(t))
	const pods = 20
	for i := range pods {
		pod := newNetNS(t)
		w.add("bridge", fmt.Sprint("pod", i), pod)
		w.del("bridge", fmt.Sprint("pod", i), pod.path())
	}
	if n := w.doomed(); n != pods {
		t.Fatalf("%d links are to be removed, want %d", n, pods)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w.plugins = builtin.New(slog.New(slog.NewTextHandler(t.Output(), nil)))
	running := w.plugins
	ended := make(chan error)
	go func() { ended <- w.host.do(func() error { running.Run(ctx); return nil }) }()
	w.await("the links of the crinetd before are removed", func() bool { return w.doomed() == 0 })
	w.add("bridge", "last", w.pod)
	w.del("bridge", "last", w.pod.path())
	w.await("the last link is removed", func() bool { return w.doomed() == 0 })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("not seen: %s", what)
		}
	}
}

// A namespace that is gone, or goes while its link waits, is no error.
func TestNamespaceVanishes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, needReference(t))
	pod := newNetNS(t)
	w.add("bridge", "one", pod)
	path := filepath.Join(t.TempDir(), "netns")
	if err := os.Symlink(pod.path(), path); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), pod.file.Close()); err != nil {
		t.Fatal(err)
	}
	w.await("the kernel removes the link", func() bool {
		return !strings.Contains(w.host.run(t, "ip", "-br", "link"), "veth")
	})
	w.del("bridge", "one", path)
	w.del("bridge", "one", "")
	other := newNetNS(t)
	w.add("bridge", "two", other)
	w.del("bridge", "two", other.path())
	other.file.Close()
	w.reap()
	w.reap()
	if left := w.files(); strings.Contains(strings.Join(left, "\n"), "10.1.0.2 ") {
		t.Errorf("addresses are left: %q", left)
	}
	if _, err := w.call(invocation{verb: "ADD", id: "three", netns: path, conf: plainConf("bridge"), builtin: true}); code(t, err) != 999 {
		t.Errorf("ADD into a namespace that is gone: %v", err)
	}
}

// A link that is no veth, or whose other end is not on the node, is removed at once.
func TestDelOfAnotherLink(t *testing.T) {
	t.Parallel()
	w := newWorld(t, needReference(t))
	w.pod.run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
	w.del("bridge", "one", w.pod.path())
	w.pod.run(t, "ip", "link", "add", "eth0", "type", "bridge")
	w.del("bridge", "one", w.pod.path())
	if out := w.pod.run(t, "ip", "-br", "link"); strings.Contains(out, "eth0") || strings.Contains(out, "crinetdel") {
		t.Errorf("the pod has the links\n%s", out)
	}
}

// A range without a free address, and a disk without space, fail like the binary, and
// leave what is there alone.
func TestNoAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t, needReference(t))
	conf := plainConf("bridge")
	conf["ipam"].(map[string]any)["subnet"] = "10.1.0.0/29" // five without the gateway
	for i := range 5 {
		if _, err := w.call(invocation{verb: "ADD", id: fmt.Sprint("pod", i), netns: newNetNS(t).path(), conf: conf, builtin: i%2 == 0}); err != nil {
			t.Fatal(err)
		}
	}
	before := strings.Join(w.files(), "\n")
	for _, builtIn := range []bool{false, true} {
		id := fmt.Sprint("late", builtIn)
		_, err := w.call(invocation{verb: "ADD", id: id, netns: w.pod.path(), conf: conf, builtin: builtIn})
		if code(t, err) != 999 || !strings.Contains(err.Error(), "no IP addresses available") {
			t.Errorf("ADD without a free address (built in: %t): %v", builtIn, err)
		}
		w.del("bridge", id, w.pod.path())
		w.reap()
	}
	if after := strings.Join(w.files(), "\n"); after != before {
		t.Errorf("files before\n%s\nafter\n%s", before, after)
	}
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	w := newWorld(t, needReference(t))
	w.data = "/dev/full/x" // below no folder
	for _, builtIn := range []bool{false, true} {
		if _, err := w.call(invocation{verb: "ADD", id: "one", netns: w.pod.path(), conf: plainConf("ptp"), builtin: builtIn}); code(t, err) != 999 {
			t.Errorf("ADD without a folder for addresses (built in: %t): %v", builtIn, err)
		}
	}
	w.data = t.TempDir()
	mount := func(args ...string) {
		w.host.run(t, "mount", args...)
	}
	mount("-t", "tmpfs", "-o", "size=4k,nr_inodes=4", "tmpfs", w.data)
	t.Cleanup(func() { w.host.run(t, "umount", w.data) })
	if err := os.WriteFile(w.data+"/filler", make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, builtIn := range []bool{false, true} {
		if _, err := w.call(invocation{verb: "ADD", id: "one", netns: w.pod.path(), conf: plainConf("ptp"), builtin: builtIn}); code(t, err) != 999 {
			t.Errorf("ADD on a full disk (built in: %t): %v", builtIn, err)
		}
	}
	if err := os.Remove(w.data + "/filler"); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		_, err := w.call(invocation{verb: "DEL", id: "one", netns: w.pod.path(), conf: plainConf("ptp"), builtin: i == 1})
		if err != nil {
			t.Errorf("DEL when there is space again: %v", err)
		}
	}
	for _, file := range w.files() {
		if strings.Contains(file, "10.1.0.2 ") {
			t.Errorf("an address is left: %s", file)
		}
	}
}

// ADD gives up on a lock that another process holds.
func TestLockedAddresses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, needReference(t))
	w.add("bridge", "one", w.pod)
	hold, err := os.Open(w.data + "/net/lock")
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	lock(t, hold)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err = w.host.do(func() error {
		i := invocation{verb: "ADD", id: "two", netns: newNetNS(t).path(), conf: plainConf("ptp")}
		_, err := w.plugins.Execute(ctx, &builtin.Call{Type: "ptp", Command: "ADD", ContainerID: i.id, NetNS: i.netns, IfName: "eth0", Config: w.stdin(i)})
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "which another process holds") {
		t.Errorf("ADD while the addresses are locked: %v", err)
	}
	if err := hold.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Fatal(err)
	}
	w.add("ptp", "three", newNetNS(t))
}

// Sandboxes that come at once, where there is no bridge yet, agree on it: the bridge
// keeps the MAC address that all of them were told.
func TestFirstPodsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, needReference(t))
	conf := plainConf("bridge")
	const pods = 12
	var group sync.WaitGroup
	results, namespaces := make([]json.RawMessage, pods), make([]netns, pods)
	for i := range pods {
		namespaces[i] = newNetNS(t)
	}
	for i := range pods {
		group.Go(func() {
			var err error
			results[i], err = w.call(invocation{verb: "ADD", id: fmt.Sprint("pod", i), netns: namespaces[i].path(), conf: conf, builtin: true})
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for i := range pods {
		for _, builtIn := range []bool{true, false} {
			_, err := w.call(invocation{verb: "CHECK", id: fmt.Sprint("pod", i), netns: namespaces[i].path(), conf: conf, prev: results[i], builtin: builtIn})
			if err != nil {
				t.Errorf("pod %d (built in: %t): %v", i, builtIn, err)
			}
		}
	}
}

// CHECK takes neither a bridge on which somebody listens for a fault, nor one whose MAC
// address the kernel chooses from its ports; one that is not promiscuous, and is to be, is.
func TestCheckOfABridgeOfOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, needReference(t))
	conf := plainConf("bridge")
	conf["isGateway"] = false // who adds the gateway's address fixes the MAC address
	check := func(result json.RawMessage) error {
		_, err := w.call(invocation{verb: "CHECK", id: "one", netns: w.pod.path(), conf: conf, prev: result, builtin: true})
		return err
	}
	w.host.run(t, "ip", "link", "add", "cni0", "type", "bridge")
	result, err := w.call(invocation{verb: "ADD", id: "one", netns: w.pod.path(), conf: conf, builtin: true})
	if err != nil {
		t.Fatal(err)
	}
	before := w.host.run(t, "ip", "-o", "link", "show", "cni0")
	w.host.run(t, "ip", "link", "add", "low", "address", "02:00:00:00:00:01", "type", "veth", "peer", "name", "far")
	w.host.run(t, "ip", "link", "set", "low", "master", "cni0")
	if after := w.host.run(t, "ip", "-o", "link", "show", "cni0"); !strings.Contains(after, "ether 02:00:00:00:00:01") {
		t.Fatalf("the bridge keeps its address: before %s, now %s", before, after)
	}
	if err := check(result); err != nil {
		t.Errorf("the bridge has the address of another port: %v", err)
	}
	w.host.run(t, "ip", "link", "set", "cni0", "promisc", "on")
	if err := check(result); err != nil {
		t.Errorf("somebody listens on the bridge: %v", err)
	}
	w.host.run(t, "ip", "link", "set", "cni0", "promisc", "off")
	conf["promiscMode"] = true
	if err := check(result); err == nil || !strings.Contains(err.Error(), "not promiscuous") {
		t.Errorf("a bridge that is not promiscuous, and is to be: %v", err)
	}
}
