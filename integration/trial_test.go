package integration_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/testplugin/script"
)

// trialName begins the names of crinetd's own attachments.
const trialName = "crinet-trial-"

// trialWait is longer than crinetd waits from one trial to the next.
const trialWait = time.Minute

// Review row A24: a network without STATUS whose ADDs fail makes the node not
// ready, if a flag says so, until an attachment of crinetd's own works. That one
// is no pod, and a crinetd that is killed during it leaves nothing.
func TestFailedAddsTakeReadinessAway(t *testing.T) {
	t.Parallel()
	const told = "no subnet.env"
	flags := append([]string{"--cni-failed-adds-not-ready=3"}, cniFlags...)
	n, client := newRecordedNode(t, flags[0])
	fails := func() {
		n.setRules(script.Rule{Verb: "ADD", Do: script.Fail, Text: told})
		for range 3 {
			if _, err := client.RunPod(n.ctx, n.PodConfig("fails")); err == nil || !strings.Contains(err.Error(), told) {
				t.Errorf("the pod ends with %v, want the plugin's words", err)
			}
		}
		n.notReady(client, "the last 3 ADDs of network recorded failed", told, "an attachment of its own")
		n.eventually("crinetd tries the network", func() bool { return n.trials("") > 0 })
	}
	fails()
	n.setRules(script.Rule{Verb: "ADD", Do: script.Hang})
	n.awaitOK(trialWait, func() error {
		if hung := n.trials(script.Hang); hung != 1 {
			return fmt.Errorf("%d trials hang, want one", hung)
		}
		return nil
	})
	if states, err := n.PodStates(n.ctx); err != nil || len(states) != 0 {
		t.Errorf("crinetctl pods shows a trial: %+v, %v", states, err)
	}
	if left := n.leftovers(); !strings.Contains(strings.Join(left, "\n"), trialName) {
		t.Errorf("the trial has no network namespace, the kill would show nothing: %q", left)
	}
	n.ok(n.KillCrinetd())
	n.setRules()
	n.ok(n.StartCrinetd(n.ctx, flags...))
	n.clean()
	dels := n.calls("DEL")
	if last := dels[len(dels)-1]; !strings.HasPrefix(last.ContainerID, trialName) || !last.NetNSExists {
		t.Errorf("the last DEL is %+v, want the trial's, with its namespace", last)
	}

	n.awaitNetwork(client, true)
	fails()
	n.setRules()
	n.awaitOK(trialWait, func() error {
		condition, err := client.NetworkReady(n.ctx)
		if err == nil && !condition.GetStatus() {
			err = errors.New(condition.GetMessage())
		}
		return err
	})
	n.worksAgain(client, "mended")
	if failures, err := n.Metric(n.ctx, "crinet_add_failures_in_a_row"); err != nil || failures != 0 {
		t.Errorf("after the mend %v ADDs have failed in a row, %v", failures, err)
	}
	trial, err := n.admin().Try(n.ctx)
	if err != nil || trial.Network != "recorded" || len(trial.Addresses) != 1 {
		t.Errorf("an operator's trial shows %+v, %v", trial, err)
	}
	n.clean()
}

// trials counts the trials' ADDs with which the test plugin did something; an
// empty action counts all.
func (n *testNode) trials(do script.Action) (count int) {
	n.t.Helper()
	for _, call := range n.calls("ADD") {
		if strings.HasPrefix(call.ContainerID, trialName) && (do == "" || call.Do == do) {
			count++
		}
	}
	return count
}
