package hostport

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var updateGolden = flag.Bool("update", false, "write the golden files")

// dumpTable is `nft -j list table inet crinet` without what differs from run to run.
func dumpTable(t testing.TB, ns netns) string {
	t.Helper()
	out := ns.run(t, "nft", "-j", "list", "table", "inet", tableName)
	var parsed struct {
		Nftables []map[string]map[string]any `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(out), &parsed); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	var b bytes.Buffer
	for _, object := range parsed.Nftables {
		if _, ok := object["metainfo"]; ok {
			continue
		}
		for _, fields := range object {
			delete(fields, "handle")
			sortElements(fields)
		}
		line, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(line)
		b.WriteByte('\n')
	}
	return b.String()
}

func golden(t *testing.T, got string) {
	t.Helper()
	path := filepath.Join("testdata", filepath.FromSlash(t.Name())+".golden")
	if *updateGolden {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the table differs from %s (-want +got); -update writes it anew:\n%s", path, diff)
	}
}

func sortElements(fields map[string]any) {
	elements, ok := fields["elem"].([]any)
	if !ok {
		return
	}
	text := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	slices.SortFunc(elements, func(a, b any) int { return strings.Compare(text(a), text(b)) })
}

// TestTable compares the table for many kinds of mappings with golden dumps, and
// the table that is left when the pod goes with the empty one.
func TestTable(t *testing.T) {
	both := []string{"10.1.0.2", "fd00:1::2"}
	for _, test := range []struct {
		name string
		pods []Pod
	}{
		{"empty", nil},
		{"any address", []Pod{testPod(t, "web", both, "tcp 80:8080")}},
		{"IPv4 pod", []Pod{testPod(t, "web", both[:1], "tcp 80:8080")}},
		{"IPv6 pod", []Pod{testPod(t, "web", both[1:], "tcp 80:8080")}},
		{"protocols", []Pod{testPod(t, "web", both, "tcp 80:8080", "udp 80:8081", "sctp 80:8082")}},
		{"wildcards", []Pod{testPod(t, "web", both, "tcp 0.0.0.0 80:8080", "udp :: 80:8080")}},
		{"addresses", []Pod{testPod(t, "web", both, "tcp 192.0.2.1 80:8080", "udp 2001:db8::1 80:8080", "sctp 127.0.0.1 1:65535")}},
		{"several ports and pods", []Pod{
			testPod(t, "web", both, "tcp 80:8080", "tcp 443:8443", "tcp 65535:1"),
			testPod(t, "dns", []string{"10.1.0.3"}, "udp 53:53", "tcp 53:53"),
			testPod(t, strings.Repeat("long-", 30), []string{"10.1.0.4"}, "tcp 1:1"),
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			ns := nftNetNS(t)
			m := newManager(t, ns)
			empty := dumpTable(t, ns)
			for _, pod := range test.pods {
				mustMap(t, m, pod)
			}
			mapped := dumpTable(t, ns)
			golden(t, mapped)
			if err := m.Sync(t.Context(), test.pods); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(mapped, dumpTable(t, ns)); diff != "" {
				t.Errorf("Sync changed the table:\n%s", diff)
			}
			for _, pod := range test.pods {
				mustUnmap(t, m, pod.SandboxID)
				mustUnmap(t, m, pod.SandboxID)
			}
			if diff := cmp.Diff(empty, dumpTable(t, ns)); diff != "" {
				t.Errorf("not empty in the end:\n%s", diff)
			}
		})
	}
}

// TestRandomSequences maps and unmaps at random and compares memory, claims and
// kernel with a model that knows nothing but the pods that should be there.
func TestRandomSequences(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			ns := nftNetNS(t)
			m := newManager(t, ns)
			empty := dumpTable(t, ns)
			random := rand.New(rand.NewPCG(seed, seed))
			model := make(map[string]Pod)
			for step := range 300 {
				pod := randomPod(t, random)
				if random.IntN(3) == 0 {
					mustUnmap(t, m, pod.SandboxID)
					delete(model, pod.SandboxID)
				} else {
					want := modelConflict(model, pod)
					err := m.Map(t.Context(), pod)
					if conflict := new(ConflictError); errors.As(err, &conflict) != want || err != nil && !want {
						t.Fatalf("step %d: mapping %v: %v; conflict expected: %v", step, pod, err, want)
					}
					if !want {
						model[pod.SandboxID] = pod
					}
				}
				if step%20 == 0 {
					compareWithModel(t, ns, m, model)
				}
			}
			compareWithModel(t, ns, m, model)
			for sandbox := range model {
				mustUnmap(t, m, sandbox)
			}
			if diff := cmp.Diff(empty, dumpTable(t, ns)); diff != "" {
				t.Errorf("not empty in the end:\n%s", diff)
			}
			if len(m.claims)+len(m.pods)+len(m.elems)+len(m.inFlight)+len(m.localnet) != 0 {
				t.Errorf("memory is not empty in the end: %+v", m)
			}
		})
	}
}

// randomPod has few ports and addresses to choose from, so that pods collide; some
// have one IP, as stale pods may.
func randomPod(t *testing.T, random *rand.Rand) Pod {
	t.Helper()
	pick := func(choice ...string) string { return choice[random.IntN(len(choice))] }
	seen := make(map[string]bool)
	var mappings []string
	for range random.IntN(4) + 1 {
		where := pick("tcp", "udp", "sctp") + pick("", " 0.0.0.0", " ::", " 192.0.2.1", " 2001:db8::1") + fmt.Sprintf(" %d", random.IntN(12)+1)
		if !seen[where] {
			seen[where] = true
			mappings = append(mappings, where+":80")
		}
	}
	name := fmt.Sprint("pod", random.IntN(10))
	ip := random.IntN(5) + 1
	return testPod(t, name, []string{fmt.Sprintf("10.1.0.%d", ip), fmt.Sprintf("fd00:1::%d", ip)}, mappings...)
}

// modelConflict compares every mapping with every other.
func modelConflict(model map[string]Pod, pod Pod) bool {
	for sandbox, other := range model {
		for _, a := range pod.Mappings {
			for _, b := range other.Mappings {
				if sandbox != pod.SandboxID && samePort(a, b) && overlap(a.HostIP, b.HostIP) {
					return true
				}
			}
		}
	}
	return false
}

func samePort(a, b Mapping) bool { return keyOf(a) == keyOf(b) }

func compareWithModel(t *testing.T, ns netns, m *Manager, model map[string]Pod) {
	t.Helper()
	want := make(map[elemKey]string)
	for _, pod := range model {
		elements, err := elementsOf(pod)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range elements {
			want[e.elemKey] = e.val
		}
	}
	reader := newNFT(ns.fd())
	defer reader.close()
	found, err := reader.elements()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[elemKey]string)
	for key, e := range found {
		got[key] = e.val
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(elemKey{})); diff != "" {
		t.Fatalf("kernel (-model +kernel):\n%s", diff)
	}
	if err := isIntact(ns, m); err != nil {
		t.Fatalf("kernel and memory: %v", err)
	}
}
