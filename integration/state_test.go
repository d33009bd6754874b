package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/integration/testplugin/script"
)

const (
	stateDir    = "/var/lib/crinet"
	journalFile = stateDir + "/journal.db"
)

// A reboot leaves the state dir and nothing else. The addresses of the last boot's
// pods are free soon after the start, although their network namespaces are gone.
func TestReboot(t *testing.T) {
	t.Parallel()
	const pods = 20
	n, client := newRecordedNode(t)
	for i := range pods {
		_, err := client.RunPod(n.ctx, n.portPodAt(fmt.Sprintf("old-%d", i), int32(8000+i)))
		n.ok(err)
	}
	n.ok(n.PowerCycle(n.ctx))
	began := time.Now()
	n.ok(n.StartContainerd(n.ctx))
	// containerd's start, which takes half a second on a machine with nothing else to
	// do, tells how busy this one is.
	within := max(5*time.Second, 10*time.Since(began))
	began = time.Now()
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.eventually("all addresses free", func() bool {
		left, err := n.Leftovers(n.ctx)
		n.ok(err)
		return !slices.ContainsFunc(left, func(s string) bool { return strings.HasPrefix(s, "address ") })
	})
	took := time.Since(began)
	t.Logf("%d addresses free %v after crinetd's start", pods, took.Round(time.Millisecond))
	if took > within {
		t.Errorf("%d addresses were free after %v, want %v", pods, took, within)
	}
	n.awaitNetwork(client, true)
	n.removeAll(client)
	n.clean()
	n.ok(n.runPod(client, "new").StopAndRemove(n.ctx))
	n.clean()
}

// When the disk under the state dir is full, pods are refused with the reason,
// others are removed, and nothing is lost.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("mount -t tmpfs -o size=512k tmpfs " + stateDir)
	client := n.startRecorded()
	stays, goes := n.runPod(client, "stays"), n.runPod(client, "goes")
	n.sh("dd if=/dev/zero of=%s/filler bs=4k 2>/dev/null || true", stateDir)
	var up []*node.Pod
	var refused error
	for i := 0; refused == nil && i < 60; i++ {
		pod, err := client.RunPod(n.ctx, n.PodConfig(fmt.Sprintf("more-%d", i)))
		if refused = err; err == nil {
			up = append(up, pod)
		}
	}
	if refused == nil || !strings.Contains(refused.Error(), "no space left on device") || !strings.Contains(refused.Error(), stateDir) {
		t.Errorf("after %d pods, a pod that cannot be journalled is answered with %v, want the reason and the file", len(up), refused)
	}
	t.Logf("%d pods were journalled in the room that the file had, then: %v", len(up), refused)
	for _, pod := range append(up, goes) {
		n.ok(pod.StopAndRemove(n.ctx))
	}
	n.ok(n.KillCrinetd())
	n.sh("rm %s/filler", stateDir)
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	n.ok(n.runPod(client, "after").StopAndRemove(n.ctx))
	states, err := n.PodStates(n.ctx)
	n.ok(err)
	if len(states) != 1 || states[0].Name != "stays" {
		t.Errorf("the journal has %+v, want the pod stays", states)
	}
	n.ok(stays.StopAndRemove(n.ctx))
	n.removeAll(client)
	n.clean()
}

// When the state dir is read-only, pods are refused with the reason, others are
// removed, and nothing is lost.
func TestReadOnlyStateDir(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	first, second := n.runPod(client, "first"), n.runPod(client, "second")
	n.ok(n.KillCrinetd())
	n.sh("mount --bind %[1]s %[1]s && mount -o remount,ro,bind %[1]s", stateDir)
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	if _, err := client.RunPod(n.ctx, n.PodConfig("refused")); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("RunPodSandbox answers %v, want an error that says read-only", err)
	}
	n.ok(first.StopAndRemove(n.ctx))
	addresses, err := os.ReadDir(n.Path("/var/lib/cni/networks/recorded"))
	n.ok(err)
	if names := fmt.Sprint(addresses); strings.Contains(names, "10.20.0.2") || !strings.Contains(names, "10.20.0.3") {
		t.Errorf("the addresses %s are taken, want that of the second pod alone", names)
	}
	n.ok(n.KillCrinetd())
	n.sh("umount %s", stateDir)
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	n.ok(second.StopAndRemove(n.ctx))
	n.removeAll(client)
	n.clean()
}

// Without file descriptors left, pods are refused; all is well when there are
// some again.
func TestNoFileDescriptors(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	pod := n.runPod(client, "before")
	pid, err := n.CrinetdPID()
	n.ok(err)
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	n.ok(err)
	var usual unix.Rlimit
	n.ok(unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &usual))
	n.ok(unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(open) + 3), Max: usual.Max}, nil))
	ctx, cancel := context.WithTimeout(n.ctx, 5*time.Second)
	defer cancel()
	_, err = client.RunPod(ctx, n.PodConfig("refused"))
	if err == nil {
		t.Error("a pod came up without file descriptors")
	}
	t.Logf("refused with: %v", err)
	n.ok(unix.Prlimit(pid, unix.RLIMIT_NOFILE, &usual, nil))
	n.ok(n.runPod(client, "after").StopAndRemove(n.ctx))
	n.ok(pod.StopAndRemove(n.ctx))
	n.removeAll(client)
	n.clean()
}

// A damaged journal is moved aside, and filled again from the cache of results:
// pods that run keep their network, and lose it when they are removed.
func TestDamagedJournal(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	stays, err := client.RunPod(n.ctx, n.portPod("stays"))
	n.ok(err)
	other := n.runPod(client, "other")
	n.ok(n.KillCrinetd())
	n.sh("dd if=/dev/urandom of=%s bs=1k count=64 conv=notrunc 2>/dev/null", journalFile)
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	states, err := n.PodStates(n.ctx)
	n.ok(err)
	i := slices.IndexFunc(states, func(s node.PodState) bool { return s.SandboxID == stays.ID })
	if i < 0 || states[i].Name != "stays" || len(states[i].Addresses) != 1 {
		t.Errorf("the journal has %+v, want the pod stays with its address", states)
	}
	if !strings.Contains(strings.Join(n.traces(), "\n"), "nft ") {
		t.Error("the hostPort of the pod that stays is not mapped")
	}
	moved, err := filepath.Glob(n.Path(journalFile) + ".damaged-*")
	n.ok(err)
	if len(moved) != 1 {
		t.Errorf("the damaged journal was moved to %q, want one file", moved)
	}
	n.ok(stays.StopAndRemove(n.ctx))
	n.ok(other.StopAndRemove(n.ctx))
	n.clean()
	if dels := n.calls("DEL"); len(dels) < 2 || !strings.Contains(string(dels[0].Config), "prevResult") {
		t.Errorf("DEL was called with %+v, want the result of ADD", dels)
	}
}

// A record with the required fields alone, as an earlier crinetd wrote it, is enough
// for DEL.
func TestRecordOfOlderVersion(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	pod := n.runPod(client, "older")
	n.ok(n.StopCrinetd())
	n.olderRecords()
	n.ok(n.WriteConf(recordedFile, otherBridge))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	n.ok(pod.StopAndRemove(n.ctx))
	n.clean()
	if dels := n.calls("DEL"); len(dels) == 0 || !strings.Contains(string(dels[0].Config), `"name":"recorded"`) {
		t.Errorf("DEL was called with %+v, want that of the recorded network", dels)
	}
}

// olderRecords takes the optional fields out of the journal's records.
func (n *testNode) olderRecords() {
	n.t.Helper()
	db, err := bbolt.Open(n.Path(journalFile), 0o600, &bbolt.Options{Timeout: time.Second})
	n.ok(err)
	n.ok(db.Update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket([]byte("records"))
		older := make(map[string][]byte)
		err := bucket.ForEach(func(key, data []byte) error {
			var record map[string]json.RawMessage
			if err := json.Unmarshal(data, &record); err != nil {
				return err
			}
			for _, optional := range []string{"steps", "hostPorts", "tries", "lastError"} {
				delete(record, optional)
			}
			record["version"] = json.RawMessage("1")
			older[string(key)], err = json.Marshal(record)
			return err
		})
		if err != nil || len(older) == 0 {
			return fmt.Errorf("the journal has %d records: %w", len(older), err)
		}
		for key, data := range older {
			if err := bucket.Put([]byte(key), data); err != nil {
				return err
			}
		}
		return nil
	}))
	n.ok(db.Close())
}

// An attachment in the cache whose sandbox nobody knows is removed with the
// configuration of its ADD, whatever network is selected. Plugins of CNI 1.1 are
// told which attachments are valid. Running pods are left alone.
func TestGarbageCollection(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	stale, stays := n.runPod(client, "stale"), n.runPod(client, "stays")
	// The journal forgets one pod, and the cache does not.
	n.ok(n.StopCrinetd())
	n.ok(n.WriteConf("05-new.conflist", strings.NewReplacer("recorded", "collected", "10.20.", "10.22.", `"1.0.0"`, `"1.1.0"`).Replace(recordedBridge)))
	n.forgetRecord(stale.ID)
	cacheEntry := n.sh("cat /var/lib/crinet/cni/results/recorded-%s-eth0", stale.ID)
	n.ok(n.StartCrinetd(n.ctx, append([]string{"--cni-gc-interval=300ms"}, cniFlags...)...))
	n.awaitNetwork(client, true)
	n.ok(stale.StopAndRemove(n.ctx)) // an unknown sandbox: DEL is of the new network
	n.ok(n.WriteFile("/var/lib/crinet/cni/results/recorded-"+stale.ID+"-eth0", cacheEntry))
	n.eventually("stale attachment removed", func() bool {
		left, err := n.Leftovers(n.ctx)
		n.ok(err)
		return !slices.ContainsFunc(left, func(s string) bool {
			return strings.Contains(s, stale.ID) || strings.HasPrefix(s, "address 10.20.0.2 ")
		})
	})
	n.eventually("GC of the network of CNI 1.1", func() bool { return len(n.calls("GC")) > 0 })
	pod := n.runPod(client, "valid")
	n.eventually("GC with the pod as valid", func() bool {
		return slices.ContainsFunc(n.calls("GC"), func(c script.Call) bool {
			return strings.Contains(string(c.Config), pod.ID)
		})
	})
	n.address(pod)
	n.ok(pod.StopAndRemove(n.ctx))
	n.ok(stays.StopAndRemove(n.ctx))
	n.clean()
}

// forgetRecord takes a sandbox out of the journal.
func (n *testNode) forgetRecord(id string) {
	n.t.Helper()
	db, err := bbolt.Open(n.Path(journalFile), 0o600, &bbolt.Options{Timeout: time.Second})
	n.ok(err)
	n.ok(db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte("records")).Delete([]byte(id + "/eth0")) }))
	n.ok(db.Close())
}
