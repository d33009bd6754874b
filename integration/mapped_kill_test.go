package integration_test

import (
	"testing"
)

// A crinetd that was killed when a pod's hostPorts were mapped and its ADD was not
// recorded as done undoes that ADD at its next start in the order of every removal:
// hostPorts first, then the address.
func TestHostPortsGoFirstAfterAKill(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	n.recordHistory(client)
	for range 3 {
		n.arm("journal attached before")
		if _, err := client.RunPod(n.ctx, n.portPod("cut")); err == nil {
			t.Error("the pod came up although crinetd died")
		}
		n.recoverFrom("journal attached before", client)
	}
	n.checkHistory()
}
