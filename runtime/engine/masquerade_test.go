package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/hostport"
)

// masqueradingPlugin is a network whose plugin bridge runs inside crinetd.
type masqueradingPlugin struct{ *fakePlugin }

func (p masqueradingPlugin) Plan(a cni.Attachment) (*cni.Attachment, error) {
	plan, err := p.fakePlugin.Plan(a)
	if err != nil {
		return nil, err
	}
	plan.ConfList = json.RawMessage(`{"cniVersion":"1.0.0","name":"mynet","plugins":[{"type":"bridge","ipMasq":true}]}`)
	plan.Builtin = []cni.Builtin{{Type: "bridge"}}
	return plan, nil
}

// loggedHostPorts logs in the plugin's log what is in the table when.
type loggedHostPorts struct {
	plugin *fakePlugin
	mu     sync.Mutex
	mapped map[string]hostport.Pod // sandbox ID -> what was asked for
}

func (h *loggedHostPorts) Reserve(context.Context, hostport.Pod) (*hostport.Reservation, error) {
	return nil, fmt.Errorf("reserve: %w", errFake)
}

func (h *loggedHostPorts) Map(ctx context.Context, pod hostport.Pod) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mapped[pod.SandboxID] = pod
	return h.plugin.call(ctx, "map", &cni.Attachment{ContainerID: pod.SandboxID}, nil)
}

func (h *loggedHostPorts) Unmap(ctx context.Context, id string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.mapped, id)
	return h.plugin.call(ctx, "unmap", &cni.Attachment{ContainerID: id}, nil)
}

// A pod is masqueraded before its ADD is answered, and not any more when its address
// is free, also where crinetd maps no hostPorts. At a start the journal says who is.
func TestMasqueradeFollowsTheAttachment(t *testing.T) {
	plugin := masqueradingPlugin{&fakePlugin{name: "cni"}}
	ports := &loggedHostPorts{plugin: plugin.fakePlugin, mapped: make(map[string]hostport.Pod)}
	withTable := func(c *Config) { c.Plugin, c.HostPorts = plugin, ports }
	n := newNode(t, withTable)
	asked := call("a")
	asked.RuntimeConfig = json.RawMessage(`{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"tcp"}]}`)
	if _, err := n.Attach(t.Context(), asked); err != nil {
		t.Fatal(err)
	}
	want := hostport.Pod{
		SandboxID: "a", Namespace: "ns", Name: "pod-a", UID: "uid-a", NetNS: thisNetNS,
		IPs: []netip.Addr{netip.MustParseAddr("10.10.0.2")}, Masquerade: []netip.Prefix{netip.MustParsePrefix("10.10.0.2/16")},
	}
	same := cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})
	if diff := cmp.Diff(want, ports.mapped["a"], same); diff != "" {
		t.Errorf("the pod's needs (-want +got):\n%s", diff)
	}
	after := nodeOver(t, plugin.fakePlugin, n.journal, withTable)
	pods, err := after.MappedPods()
	if diff := cmp.Diff([]hostport.Pod{want}, pods, same); err != nil || diff != "" {
		t.Errorf("after a restart (%v) (-want +got):\n%s", err, diff)
	}
	if err := after.Detach(t.Context(), call("a")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"ADD a", "map a", "unmap a", "DEL a"}, plugin.log()); diff != "" {
		t.Errorf("the order (-want +got):\n%s", diff)
	}
}
