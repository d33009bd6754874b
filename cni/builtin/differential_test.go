package builtin_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
)

const (
	// cases is how many random configurations are tried.
	cases = 320
	// atOnce is how many are tried at a time.
	atOnce = 8
	// container is the sandbox's id.
	container = "0123456789abcdef"
	// settle is how long two worlds may take to become the same: the kernel does some
	// of its work later.
	settle = 20 * time.Second
)

// seed is the random numbers' seed: CRINET_TEST_SEED, or the time.
func seed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv("CRINET_TEST_SEED")
	if text == "" {
		return uint64(time.Now().UnixNano())
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("CRINET_TEST_SEED: %v", err)
	}
	return n
}

// What the built-in plugins leave on a node, and what they answer, is what the
// reference plugins leave and answer, and each accepts and undoes what the other did.
func TestSameAsReference(t *testing.T) {
	t.Parallel()
	bin, first := needReference(t), seed(t)
	t.Logf("CRINET_TEST_SEED=%d", first)
	// Most of the time the kernel waits for grace periods: more of them at once than
	// there are processors.
	var workers errgroup.Group
	workers.SetLimit(atOnce)
	for i := range cases {
		typ := []string{"bridge", "bridge", "ptp", "flannel"}[i%4]
		workers.Go(func() error {
			t.Run(fmt.Sprintf("%s-%d", typ, i), func(t *testing.T) {
				g := generator{rand.New(rand.NewPCG(first, uint64(i)))}
				compareTwins(t, bin, g.testCase(typ), g.oneIn(2))
			})
			return nil
		})
	}
	if err := workers.Wait(); err != nil {
		t.Error(err)
	}
}

// twins are two worlds in which the same is done: in one by the binaries, in the other
// built in.
type twins struct {
	t             *testing.T
	c             *testCase
	exec, builtin *world
}

// compareTwins does ADD, CHECK and DEL in both worlds. With swap, DEL is the other's.
func compareTwins(t *testing.T, bin string, c *testCase, swap bool) {
	t.Helper()
	w := &twins{t: t, c: c, exec: newWorld(t, bin), builtin: newWorld(t, bin)}
	text, err := json.Marshal(c.conf)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			t.Logf("configuration %s\nCNI_ARGS %s\nbefore %q %q earlier %t\n%s", text, c.args, c.before, c.inPod, c.earlier, c.env)
		}
	}()
	w.prepare(w.exec)
	w.prepare(w.builtin)
	results, failed := w.add()
	if !failed {
		w.same("after ADD")
		w.check(results)
	}
	for range 2 { // a second DEL changes nothing
		failed = w.del(results, swap)
	}
	if !failed {
		w.same("after DEL")
	}
}

func (w *twins) prepare(world *world) {
	w.t.Helper()
	for _, command := range w.c.before {
		world.host.run(w.t, command[0], command[1:]...)
	}
	for _, command := range w.c.inPod {
		world.pod.run(w.t, command[0], command[1:]...)
	}
	for name, text := range map[string]string{"resolv.conf": "# c\nnameserver 192.0.2.53\nsearch x y\noptions a\ndomain z\n", "subnet.env": w.c.env} {
		if err := os.WriteFile(filepath.Join(world.data, name), []byte(text), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	if w.c.earlier {
		dir := filepath.Join(world.data, "twin")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			w.t.Fatal(err)
		}
		for _, address := range []string{"10.1.0.2", "10.20.0.2"} {
			if err := os.WriteFile(filepath.Join(dir, address), []byte(container+"\r\neth0"), 0o600); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

func (w *twins) invocation(world *world, verb string, builtIn bool) invocation {
	i := invocation{verb: verb, id: container, netns: world.pod.path(), args: w.c.args, conf: w.c.conf, builtin: builtIn}
	if w.c.noNetNS {
		i.netns = filepath.Join(world.data, "no-such-namespace")
	}
	return i
}

// add runs ADD in both worlds and compares the answers.
func (w *twins) add() (results map[*world]json.RawMessage, failed bool) {
	w.t.Helper()
	theirs, theirErr := w.exec.call(w.invocation(w.exec, "ADD", false))
	ours, ourErr := w.builtin.call(w.invocation(w.builtin, "ADD", true))
	if code(w.t, theirErr) != code(w.t, ourErr) {
		w.t.Errorf("ADD: the binary says %v, built in %v", theirErr, ourErr)
	}
	if diff := cmp.Diff(w.exec.plainResult(theirs, w.c.mac), w.builtin.plainResult(ours, w.c.mac)); diff != "" {
		w.t.Errorf("results (-binary +built in):\n%s", diff)
	}
	return map[*world]json.RawMessage{w.exec: theirs, w.builtin: ours}, theirErr != nil || ourErr != nil
}

// del runs DEL in both worlds and compares the answers. With swap, it is the other's.
func (w *twins) del(results map[*world]json.RawMessage, swap bool) (failed bool) {
	w.t.Helper()
	var errs [2]error
	for n, world := range []*world{w.exec, w.builtin} {
		i := w.invocation(world, "DEL", (world == w.builtin) != swap)
		i.prev = results[world]
		_, errs[n] = world.call(i)
		world.reap()
	}
	if code(w.t, errs[0]) != code(w.t, errs[1]) {
		w.t.Errorf("DEL (swapped: %t) after the binary's ADD: %v, after the built-in one: %v", swap, errs[0], errs[1])
	}
	return errs[0] != nil || errs[1] != nil
}

// check has both check both worlds.
func (w *twins) check(results map[*world]json.RawMessage) {
	w.t.Helper()
	if v := w.c.conf["cniVersion"]; v == "0.3.0" || v == "0.3.1" {
		return
	}
	for world, prev := range results {
		var codes [2]uint
		var errs [2]error
		for n, builtIn := range []bool{false, true} {
			i := w.invocation(world, "CHECK", builtIn)
			i.prev = prev
			_, errs[n] = world.call(i)
			codes[n] = code(w.t, errs[n])
		}
		if codes[0] != codes[1] {
			w.t.Errorf("CHECK (of the binary's ADD: %t): the binary says %v, built in %v", world == w.exec, errs[0], errs[1])
		}
	}
}

// same waits until the worlds are the same.
func (w *twins) same(when string) {
	w.t.Helper()
	diff := ""
	for deadline := time.Now().Add(settle); ; time.Sleep(50 * time.Millisecond) {
		diff = cmp.Diff(w.exec.snapshot(w.c.mac), w.builtin.snapshot(w.c.mac))
		if diff == "" {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	w.t.Errorf("%s (-binary +built in):\n%s", when, diff)
}
