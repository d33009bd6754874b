package integration_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/crinet-project/crinet/integration/testplugin/script"
)

// A kubelet whose deadline ends an ADD learns which plugin hung, and for how
// long, not only that its time was up. The plugin's DEL hangs as well, as that of
// a network does whose datastore is away (review row A26).
func TestReasonBeforeTheCallersDeadline(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t, "--cni-timeout=10s")
	n.setRules(script.Rule{Verb: "ADD", Do: script.Hang, Text: "waiting for the datastore"}, script.Rule{Verb: "DEL", Do: script.Hang})
	ctx, cancel := context.WithTimeout(n.ctx, 4*time.Second)
	defer cancel()
	began := time.Now()
	_, err := client.RunPod(ctx, n.PodConfig("late"))
	if err == nil {
		t.Fatal("a pod whose ADD hangs came up")
	}
	for _, want := range []string{"default/late", "testplugin", "ADD", "waiting for the datastore", "stopped after"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("after %v RunPodSandbox says %q, want it to say %q", time.Since(began), err, want)
		}
	}
	if ctx.Err() != nil {
		t.Error("the answer came after the deadline")
	}
	if code := status.Code(err); code != codes.DeadlineExceeded {
		t.Errorf("the code is %v, want %v", code, codes.DeadlineExceeded)
	}
	n.setRules()
	n.noLeftovers()
}
