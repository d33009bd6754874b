package engine

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/cni"
)

// A network whose every ADD fails is told, from the third failure in a row on,
// until one succeeds (review row A24).
func TestFailedAddsInARowAreTold(t *testing.T) {
	n := newNode(t)
	fails := func(context.Context, *cni.Attachment) error { return errors.New("no subnet.env") }
	add := func(id string, setUp func(context.Context, *cni.Attachment) error) {
		t.Helper()
		n.plugin.setUp = setUp
		if _, err := n.Attach(t.Context(), call(id)); (err == nil) != (setUp == nil) {
			t.Fatalf("ADD of %s = %v", id, err)
		}
	}
	tells := func(count int, told bool) {
		t.Helper()
		if notice := n.Notice(); n.AddFailures() != count || strings.Contains(notice, "no subnet.env") != told || told == (notice == "") {
			t.Errorf("%d failures in a row, notice %q; want %d, told: %t", n.AddFailures(), notice, count, told)
		}
	}
	tells(0, false)
	add("a", fails)
	add("b", fails)
	tells(2, false)
	add("c", nil)
	tells(0, false)
	for range manyFailures {
		add("d", fails)
	}
	tells(manyFailures, true)
	add("d", fails)
	tells(manyFailures+1, true)
	add("d", nil)
	tells(0, false)
	for range manyFailures {
		add("e", fails)
	}
	tells(manyFailures, true)
	n.failures.note("another", errors.New("no subnet.env"), time.Now(), n.log)
	tells(1, false)
}
