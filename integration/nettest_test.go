package integration_test

import (
	"encoding/json"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/nettest"
)

// nettestNetworks are networks on which everything works.
var nettestNetworks = map[string]string{
	"bridge": seedBridge,
	"dual stack": `{
	"cniVersion": "1.0.0", "name": "dual",
	"plugins": [{"type": "bridge", "bridge": "dual0", "isDefaultGateway": true, "ipMasq": true,
		"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.20.0.0/24"}], [{"subnet": "fd00:20::/64"}]]}}]
}`,
	"ptp": `{
	"cniVersion": "1.0.0", "name": "points",
	"plugins": [{"type": "ptp", "ipMasq": true, "mtu": 1400,
		"ipam": {"type": "host-local", "subnet": "10.21.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}}]
}`,
	"scripted": recordedBridge,
}

// connectivity is what crinetctl test -o json prints.
type connectivity struct {
	Network   string           `json:"network"`
	File      string           `json:"file"`
	Candidate bool             `json:"candidate"`
	Passed    bool             `json:"passed"`
	Seconds   float64          `json:"seconds"`
	Steps     []nettest.Result `json:"steps"`
}

// nettestMost is how long crinetctl test may take here; on a machine of its own it
// is done within 10 s.
const nettestMost = 25 * time.Second

// connectivity runs crinetctl test.
func (n *testNode) connectivity(args ...string) (all connectivity) {
	n.t.Helper()
	start := time.Now()
	out, err := n.Crinetctl(n.ctx, append([]string{"test", "-o", "json"}, args...)...)
	if took := time.Since(start); took > nettestMost {
		n.t.Errorf("crinetctl test took %s", took)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		err = nil
	}
	n.ok(err)
	n.ok(json.Unmarshal([]byte(out), &all))
	return all
}

// newNettestNode starts a node with a network and crinetd, without a runtime.
func newNettestNode(t *testing.T, conf string, flags ...string) *testNode {
	t.Helper()
	n := newNode(t)
	file := "10-network.conf"
	if strings.Contains(conf, `"plugins"`) {
		file = "10-network.conflist"
	}
	n.ok(n.WriteConf(file, conf))
	n.ok(n.StartCrinetd(n.ctx, slices.Concat(runtimeFlags, cniFlags, flags)...))
	n.eventually("a network is selected", func() bool {
		out, err := n.Crinetctl(n.ctx, "status")
		return err == nil && strings.Contains(out, "Selected as:")
	})
	return n
}

// On a node where all is well every step passes, and nothing is left.
func TestConnectivity(t *testing.T) {
	t.Parallel()
	for name, conf := range nettestNetworks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNettestNode(t, conf)
			out, err := n.Crinetctl(n.ctx, "test")
			n.ok(err)
			t.Log(out)
		})
	}
}
