package engine

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/runtime/journal"
)

// An attachment is held while it stands, and nothing changes it meanwhile. One in the
// making, in removal, of another boot, of a trial or that is gone is not.
func TestHold(t *testing.T) {
	kept := &fakeRecorder{}
	n := newNode(t, func(c *Config) { c.Recorder = kept })
	n.mustAdd(t, "a")
	holds := func(when string, want bool) {
		t.Helper()
		got, err := n.Hold(t.Context(), key("a"), func(r *journal.Record) {
			if r.Attachment.ContainerID != "a" {
				t.Errorf("%s: held is %+v", when, r)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			if err := n.Detach(ctx, call("a")); err == nil {
				t.Errorf("%s: a removal went on meanwhile", when)
			}
		})
		if err != nil || got != want {
			t.Errorf("%s: held %t, %v; want %t", when, got, err, want)
		}
	}
	holds("as it stands", true)
	over := n.Ending("a")
	holds("while its sandbox is ended", false)
	over()
	for when, change := range map[string]func(*journal.Record){
		"of another boot": func(r *journal.Record) { r.BootID = "other" },
		"in the making":   func(r *journal.Record) { r.State = journal.Attaching },
		"a trial's":       func(r *journal.Record) { r.Trial = true },
	} {
		before := n.record(t, "a")
		r := *before
		change(&r)
		if err := n.journal.Put(&r); err != nil {
			t.Fatal(err)
		}
		holds(when, false)
		if err := n.journal.Put(before); err != nil {
			t.Fatal(err)
		}
	}
	recorded := len(kept.kept())
	held, said, err := n.CheckHeld(t.Context(), key("a"))
	if !held || said != nil || err != nil {
		t.Errorf("CHECK: %t, %v, %v", held, said, err)
	}
	moved := errors.New("the address has moved")
	n.plugin.check = func(context.Context, *cni.Attachment) error { return moved }
	if held, said, err = n.CheckHeld(t.Context(), key("a")); !held || !errors.Is(said, moved) || err != nil {
		t.Errorf("CHECK that fails: %t, %v, %v", held, said, err)
	}
	if now := len(kept.kept()); now != recorded {
		t.Errorf("%d operations were recorded", now-recorded)
	}
	if err := n.Detach(t.Context(), call("a")); err != nil {
		t.Fatal(err)
	}
	holds("gone", false)
	if held, _, err := n.CheckHeld(t.Context(), key("a")); held || err != nil {
		t.Errorf("CHECK of what is gone: %t, %v", held, err)
	}
}
