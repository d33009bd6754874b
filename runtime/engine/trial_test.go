package engine

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/internal/testkit"
	"github.com/crinet-project/crinet/runtime/journal"
)

// fakeNamespaces makes namespaces by name only: each is the test's own.
type fakeNamespaces struct {
	mu     sync.Mutex
	made   []string
	remove error // of Remove
	there  map[string]bool
}

func (f *fakeNamespaces) Path(string) string { return thisNetNS }

func (f *fakeNamespaces) Make(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.made = append(f.made, name)
	f.there[thisNetNS] = true
	return nil
}

func (f *fakeNamespaces) Remove(path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.remove == nil {
		delete(f.there, path)
	}
	return f.remove
}

func (f *fakeNamespaces) left() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.there)
}

func withTrials(limit int) (*fakeNamespaces, func(*Config)) {
	spaces := &fakeNamespaces{there: make(map[string]bool)}
	return spaces, func(c *Config) { c.Namespaces, c.FailedAdds = spaces, limit }
}

// So many failures in a row have new pods refused. A trial that fails changes
// nothing but the reason, one that succeeds ends it, and neither counts as a pod
// (review row A24).
func TestFailedAddsRefusePodsUntilATrialSucceeds(t *testing.T) {
	spaces, options := withTrials(2)
	n := newNode(t, options)
	fail := func(words string) {
		n.plugin.setUp = func(context.Context, *cni.Attachment) error { return errors.New(words) }
	}
	fail("no subnet.env")
	for range 2 {
		if err := n.Ready(); err != nil {
			t.Errorf("after %d failures: %v", n.AddFailures(), err)
		}
		if _, err := n.Attach(t.Context(), call("a")); err == nil {
			t.Fatal("ADD succeeds")
		}
	}
	if err := n.Ready(); err == nil || !strings.Contains(err.Error(), "no subnet.env") {
		t.Errorf("after two failures: %v", err)
	}
	fail("subnet.env is empty")
	if _, err := n.Try(t.Context()); err == nil || !strings.Contains(err.Error(), "subnet.env is empty") {
		t.Errorf("the trial ends with %v", err)
	}
	if err := n.Ready(); err == nil || !strings.Contains(err.Error(), "subnet.env is empty") || n.AddFailures() != 2 {
		t.Errorf("after a trial that failed: %v, and %d failures", err, n.AddFailures())
	}
	n.plugin.setUp = nil
	trial, err := n.Try(t.Context())
	if err != nil || trial.Network != "mynet" || !slices.Equal(trial.Addresses, []string{"10.10.0.2/16"}) {
		t.Errorf("the trial shows %+v, %v", trial, err)
	}
	if err := n.Ready(); err != nil || n.AddFailures() != 0 {
		t.Errorf("after a trial that succeeded: %v, and %d failures", err, n.AddFailures())
	}
	records, err := n.Records()
	if err != nil || len(records) != 0 || spaces.left() != 0 || len(spaces.made) != 2 || spaces.made[0] != n.trialName {
		t.Errorf("left: %v, %v, %d namespaces of %v", records, err, spaces.left(), spaces.made)
	}
}

// crinetd tries by itself while pods are refused, and stops when a trial succeeds.
func TestTrialsEndTheRefusal(t *testing.T) {
	_, options := withTrials(1)
	n := newNode(t, options)
	n.plugin.setUp = failTimes(2) // the pod's and the first trial's
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { n.runTrials(ctx) })
	defer func() { stop(); running.Wait() }()
	if _, err := n.Attach(t.Context(), call("a")); err == nil {
		t.Fatal("ADD succeeds")
	}
	testkit.Eventually(t, "the node is ready again", func() bool { return n.Ready() == nil })
}

// Another network is not refused for the failures of this one.
func TestAnotherNetworkIsNotRefused(t *testing.T) {
	_, options := withTrials(1)
	n := newNode(t, options)
	n.failures.note("another", errFake, time.Now(), n.log)
	if err := n.Ready(); err != nil {
		t.Error(err)
	}
}

// A trial whose DEL fails is undone before the next one begins.
func TestTrialThatCannotBeRemoved(t *testing.T) {
	spaces, options := withTrials(1)
	n := newNode(t, options)
	var mended atomic.Bool
	n.plugin.tear = func(context.Context, *cni.Attachment) error {
		if mended.Load() {
			return nil
		}
		return errFake
	}
	for range 2 {
		if _, err := n.Try(t.Context()); !errors.Is(err, errFake) {
			t.Errorf("the trial ends with %v", err)
		}
	}
	r, err := n.journal.Get(journal.Key{ContainerID: n.trialName, IfName: "eth0"})
	if err != nil || r == nil || r.State != journal.Detaching || !r.Trial || len(spaces.made) != 1 {
		t.Errorf("the journal has %+v, %v, and %v was made", r, err, spaces.made)
	}
	mended.Store(true)
	testkit.Eventually(t, "the trial is undone", func() bool { return n.Pending() == 0 && spaces.left() == 0 })
}

// What a crash leaves of a trial is undone at the start, whether its ADD had ended
// or not, also when only the cache of CNI results knows it.
func TestTrialOfACrashIsUndone(t *testing.T) {
	for _, from := range []string{"journal", "cache"} {
		t.Run(from, func(t *testing.T) {
			spaces, options := withTrials(1)
			n := newNode(t, options, func(c *Config) { c.Cache = &fakeCache{} })
			r := &journal.Record{
				State: journal.Attaching, Plugin: "cni", Trial: true, BootID: "boot", Created: time.Now(),
				Attachment: cni.Attachment{ContainerID: "crinet-trial-OLD", IfName: "eth0", NetNS: thisNetNS, Network: "mynet"},
			}
			spaces.there[thisNetNS] = true
			var err error
			if from == "journal" {
				err = n.journal.Put(r)
			} else {
				r.Attachment.Note, err = note(r)
				n.cache.(*fakeCache).attachments = []cni.Attachment{r.Attachment}
			}
			if err == nil {
				err = n.Recover()
			}
			if err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, "the trial is undone", func() bool { return n.Pending() == 0 && spaces.left() == 0 })
			if calls := n.plugin.log(); !slices.Equal(calls, []string{"DEL crinet-trial-OLD"}) {
				t.Errorf("the plugins were called %q", calls)
			}
			if left, err := n.Records(); err != nil || len(left) != 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// A trial that crinetd's end cuts off is undone all the same.
func TestTrialAtTheEnd(t *testing.T) {
	spaces, options := withTrials(1)
	n := newNode(t, options)
	ctx, stop := context.WithCancel(t.Context())
	n.plugin.setUp = func(ctx context.Context, _ *cni.Attachment) error {
		stop()
		<-ctx.Done()
		return ctx.Err()
	}
	if _, err := n.Try(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("the trial ends with %v", err)
	}
	if left, err := n.Records(); err != nil || len(left) != 0 || spaces.left() != 0 {
		t.Errorf("left: %v, %v, %d namespaces", left, err, spaces.left())
	}
}
