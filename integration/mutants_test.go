package integration_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/history"
	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/runtime/failpoint"
)

// mutantRules are the rules of the model of which each mutant must break one.
var mutantRules = map[failpoint.Mutant][]history.Rule{
	failpoint.LostWrite:           {history.NetworkLost},
	failpoint.ForgottenHostPorts:  {history.HostPortLost},
	failpoint.TodaysConfiguration: {history.DelOfAnother},
	failpoint.StaleState:          {history.NetworkLost},
	failpoint.RecordFirst:         {history.DelOfAnother},
	failpoint.DroppedDel:          {history.AddWithoutDel},
	failpoint.AddAfterDel:         {history.AfterRemoval},
	failpoint.EarlierAnswer:       {history.ResultOfAnother},
	failpoint.FreedAddresses:      {history.AddressTwice},
	failpoint.ElementLeft:         {history.HostPortLeft},
	failpoint.LateUnmap:           {history.HostPortLeft},
}

// undoneAtStart are mutants whose pods the next crinetd undoes while it starts. What it
// undoes it undoes in order all the same.
var undoneAtStart = map[failpoint.Mutant]bool{failpoint.LostWrite: true, failpoint.StaleState: true}

// The checker is worth what it finds: each mutant of crinetd breaks the rule that it
// should, in a run of pods, a changed configuration and a kill that is clean without.
func TestCheckerFindsMutants(t *testing.T) {
	if os.Getenv("CRINET_TEST_BIN") != "" {
		t.Skip("the binaries that CRINET_TEST_BIN names have no mutants")
	}
	t.Parallel()
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		n, client := newMutant(t, "")
		n.shortHistory(client, "")
		n.checkHistory()
	})
	for _, mutant := range failpoint.Mutants() {
		t.Run(strings.ReplaceAll(string(mutant), " ", "_"), func(t *testing.T) {
			t.Parallel()
			n, client := newMutant(t, mutant)
			n.shortHistory(client, mutant)
			n.findsMutant(mutant)
		})
	}
}

// newMutant starts a node with a mutant of crinetd, and records its history.
func newMutant(t *testing.T, mutant failpoint.Mutant) (*testNode, *node.Client) {
	t.Helper()
	n := newNode(t)
	n.Environment(failpoint.MutantVariable + "=" + string(mutant))
	client := n.startRecorded()
	n.recordHistory(client)
	return n, client
}

// shortHistory runs two pods, changes the network's configuration, kills crinetd, runs
// one more pod and removes all. The faults show at these moments, so that none is left
// to chance.
func (n *testNode) shortHistory(client *node.Client, mutant failpoint.Mutant) {
	n.t.Helper()
	for i := range 2 {
		n.tryPod(client, mutant, i)
	}
	n.ok(n.WriteConf("10-recorded.conflist", strings.Replace(recordedBridge, `"type": "testplugin"`, `"type": "testplugin", "later": true`, 1)))
	n.history.kills("crinetd")
	n.ok(n.KillCrinetd())
	n.restartMutant(client)
	n.tryPod(client, mutant, 2)
	if mutant == failpoint.RecordFirst {
		n.arm("exec DEL testplugin before") // where the record should still be there
	}
	n.removeMutants(client)
}

// tryPod runs a pod. With a mutant it may fail.
func (n *testNode) tryPod(client *node.Client, mutant failpoint.Mutant, i int) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.ctx, killCall)
	defer cancel()
	if _, err := client.RunPod(ctx, n.portPodAt(fmt.Sprintf("pod-%d", i), int32(8080+i))); err != nil && mutant == "" {
		n.t.Error(err)
	}
}

func (n *testNode) restartMutant(client *node.Client) {
	n.t.Helper()
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.history.started("crinetd")
	n.awaitNetwork(client, true)
}

// removeMutants removes all pods as a kubelet does, which tries again while crinetd is
// away. A crinetd that has died is started.
func (n *testNode) removeMutants(client *node.Client) {
	n.t.Helper()
	for _, id := range n.sandboxIDs(client) {
		n.eventually("sandbox "+id+" is removed", func() bool {
			ctx, cancel := context.WithTimeout(n.ctx, killCall)
			defer cancel()
			_, err := client.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
			if err == nil {
				_, err = client.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
			}
			if _, dead := n.CrinetdPID(); dead != nil {
				n.history.kills("crinetd")
				n.restartMutant(client)
			}
			return err == nil
		})
	}
}

// findsMutant ends the history and wants one of the mutant's rules broken, with the
// events that prove it.
func (n *testNode) findsMutant(mutant failpoint.Mutant) {
	n.t.Helper()
	rules := mutantRules[mutant]
	time.Sleep(settle) // what a mutant does late is part of the history
	path := n.history.path
	n.ok(n.endHistory(nil)) // what a mutant leaves is found by the other rules
	events, err := history.ReadFile(path)
	n.ok(err)
	var report strings.Builder
	found := history.Check(events)
	history.Report(&report, events, found)
	if !slices.ContainsFunc(found, func(v history.Violation) bool { return slices.Contains(rules, v.Rule) && len(v.Proof) > 0 }) {
		n.t.Errorf("the checker does not find the mutant by %q; the history is kept in %s\n%s", rules, path, report.String())
		return
	}
	if undoneAtStart[mutant] && slices.ContainsFunc(found, func(v history.Violation) bool { return v.Rule == history.HostPortLeft }) {
		n.t.Errorf("crinetd undid at its start in the wrong order; the history is kept in %s\n%s", path, report.String())
		return
	}
	n.t.Logf("%d events\n%s", len(events), report.String())
	n.putAway(path)
}

// settle is longer than any mutant is late.
const settle = time.Second
