package engine

import (
	"strings"
	"testing"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/internal/testkit"
	"github.com/crinet-project/crinet/runtime/journal"
)

// A DEL that can never work has a way out (review row B3).
func TestForget(t *testing.T) {
	cache := &fakeCache{[]cni.Attachment{{ContainerID: "stuck0123"}, {ContainerID: "stuck4567"}}}
	n := newNode(t, func(c *Config) { c.Cache = cache })
	n.mustAdd(t, "stuck0123")
	n.mustAdd(t, "stuck4567")
	for id, why := range map[string]string{"": "no sandbox", "nobody": "no sandbox", "stuck": "more than one", "stuck0": "remove the pod"} {
		if _, err := n.Forget(t.Context(), id, "test"); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("Forget(%q) = %v, want %q", id, err, why)
		}
	}
	n.plugin.tear = failTimes(1000)
	if err := n.Detach(t.Context(), call("stuck0123")); err == nil {
		t.Fatal("DEL succeeded")
	}
	forgotten, err := n.Forget(t.Context(), "stuck0", "its plugin is gone")
	if err != nil || len(forgotten) != 1 || forgotten[0].State != journal.Detaching {
		t.Fatalf("Forget = %+v, %v", forgotten, err)
	}
	if r := n.record(t, "stuck0123"); r != nil {
		t.Errorf("record left: %+v", r)
	}
	if len(cache.attachments) != 1 || cache.attachments[0].ContainerID != "stuck4567" {
		t.Errorf("the cache has %+v, and what it alone knows is journalled again", cache.attachments)
	}
	if err := n.Detach(t.Context(), call("stuck0123")); err != nil {
		t.Errorf("the runtime's next DEL = %v, want success: the pod must be free to go", err)
	}
	testkit.Eventually(t, "nothing pending", func() bool { return n.Pending() == 0 })
}
