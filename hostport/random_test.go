package hostport

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// TestRandomSequences maps and unmaps at random and compares memory, claims and
// kernel with a model that knows nothing but the pods that should be there.
func TestRandomSequences(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			ns := nftNetNS(t)
			m := newManager(t, ns)
			empty := listTable(t, ns)
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
			if diff := cmp.Diff(empty, listTable(t, ns)); diff != "" {
				t.Errorf("not empty in the end:\n%s", diff)
			}
			isEmpty(t, m)
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
	if random.IntN(4) == 0 {
		mappings = nil
	}
	pod := testPod(t, name, []string{fmt.Sprintf("10.1.0.%d", ip), fmt.Sprintf("fd00:1::%d", ip)}, mappings...)
	if random.IntN(2) == 0 {
		pod.Masquerade = subnets(pod.IPs, 8*random.IntN(4)+8, 64)
	}
	return pod
}

// isEmpty checks that nothing is left of any pod.
func isEmpty(t *testing.T, m *Manager) {
	t.Helper()
	d := m.desired
	if len(m.claims)+len(m.pods)+len(m.inFlight)+len(m.recorded) != 0 || len(d.needs)+len(d.elements)+len(d.sharing)+len(d.localnet) != 0 {
		t.Errorf("memory is not empty in the end: %+v %+v", m, d)
	}
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
	want := make(map[kernel.Key]string)
	for _, sandbox := range slices.Sorted(maps.Keys(model)) {
		pod := model[sandbox]
		needed, err := needOf(pod, facts{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range append(needed.own, needed.shared...) {
			if _, ok := want[e.Key]; !ok { // of pods with one address the first by name counts
				want[e.Key] = e.Value
			}
		}
	}
	k := kernel.New(ns.fd(), newLayout())
	defer k.Close()
	found, err := k.Elements()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[kernel.Key]string)
	for key, e := range found {
		got[key] = e.Value
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("kernel (-model +kernel):\n%s", diff)
	}
	if err := isIntact(ns, m); err != nil {
		t.Fatalf("kernel and memory: %v", err)
	}
}
