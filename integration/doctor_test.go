package integration_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/doctor"
	"github.com/crinet-project/crinet/integration/node"
)

// doctorTime bounds a look at a node whose machine is busy; it is 2 s on one that is
// not.
const doctorTime = 10 * time.Second

// examine runs crinetctl doctor and returns its report.
func (n *testNode) examine(args ...string) doctor.Report {
	n.t.Helper()
	out, err := n.doctor(append([]string{"-o", "json"}, args...)...)
	var report doctor.Report
	if jsonErr := json.Unmarshal([]byte(out), &report); jsonErr != nil {
		n.t.Fatalf("the report cannot be read: %v\n%s\n%v", jsonErr, out, err)
	}
	failed := report.Outcome == doctor.Outcome(doctor.Error)
	if failed != (err != nil) {
		n.t.Errorf("outcome %s, exit: %v", report.Outcome, err)
	}
	return report
}

// doctor runs crinetctl doctor and returns what it printed, also when the node is ill.
func (n *testNode) doctor(args ...string) (string, error) {
	n.t.Helper()
	begun := time.Now()
	out, err := n.Crinetctl(n.ctx, append([]string{"doctor"}, args...)...)
	if took := time.Since(begun); took > doctorTime {
		n.t.Errorf("crinetctl doctor took %v", took)
	}
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		n.t.Fatal(err)
	}
	return out, err
}

// firstScreen is what an operator sees of a text in 24 lines of any width.
func firstScreen(out string) string {
	lines := strings.SplitAfter(out, "\n")
	return strings.Join(lines[:min(24, len(lines))], "")
}

// find returns the result of a check.
func find(t *testing.T, r doctor.Report, check string) doctor.Result {
	t.Helper()
	for _, result := range r.Results {
		if result.Check == check {
			return result
		}
	}
	t.Fatalf("there is no check %s", check)
	return doctor.Result{}
}

// told fails the test unless the first screen names a check, what is wrong and the mend.
func (n *testNode) told(check string, want ...string) {
	n.t.Helper()
	n.awaitThat("crinetctl doctor to tell of "+check, func() (bool, string) {
		out, _ := n.doctor()
		screen := firstScreen(out)
		for _, w := range append(want, check, "mend:") {
			if !strings.Contains(screen, w) {
				return false, fmt.Sprintf("the first screen has no %q:\n%s", w, out)
			}
		}
		return true, ""
	})
}

// mended waits until a check has nothing to say any more.
func (n *testNode) mended(check string) {
	n.t.Helper()
	n.awaitThat(check+" to be well", func() (bool, string) {
		r := find(n.t, n.examine(), check)
		return r.Outcome == doctor.OK || r.Outcome == doctor.Skipped && r.Follows == "", fmt.Sprintf("%+v", r)
	})
}

// awaitThat waits for a condition.
func (n *testNode) awaitThat(what string, holds func() (bool, string)) {
	n.t.Helper()
	last := ""
	for deadline := time.Now().Add(cleanTimeout); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		ok, why := holds()
		if ok {
			return
		}
		last = why
	}
	n.t.Errorf("waited %v for %s: %s", cleanTimeout, what, last)
}

// A node with crinetd and pods is well, with each release of containerd, and without
// crinetd nothing but its absence is told.
func TestDoctorOnAGoodNode(t *testing.T) {
	t.Parallel()
	for _, release := range node.Containerds() {
		t.Run(release.String(), func(t *testing.T) {
			t.Parallel()
			n := newNodeOf(t, node.Options{Containerd: release})
			n.ok(n.WriteConf("10-mynet.conf", seedBridge))
			n.ok(n.StartContainerd(n.ctx))
			n.ok(n.StartCrinetd(n.ctx, cniFlags...))
			client := n.client(node.CrinetdSocket)
			n.awaitNetwork(client, true)
			n.runPod(client, "a")
			report := n.examine()
			for _, r := range report.Results {
				if r.Failed() || r.Outcome == doctor.Unknown || r.Outcome == doctor.Outcome(doctor.Info) {
					t.Errorf("on a good node: %+v", r)
				}
			}
			if well := report.Counts[doctor.OK]; well < 35 {
				t.Errorf("%d checks are well, the others were skipped: %+v", well, report.Results)
			}
			n.ok(n.StopCrinetd())
			for _, r := range n.examine().Results {
				if r.Failed() && r.Check != "crinetd-answers" {
					t.Errorf("without crinetd: %+v", r)
				}
			}
		})
	}
}
