package cri

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/internal/testkit"
	"github.com/crinet-project/crinet/runtime/proxy"
)

// maker is one of the two verbs that make a sandbox.
type maker struct {
	name    string
	hook    func(*testNode) proxy.Hook
	request func(config *runtimeapi.PodSandboxConfig, handler string) []byte
	answer  []byte
}

func makers(t *testing.T) []maker {
	return []maker{
		{"RunPodSandbox", func(n *testNode) proxy.Hook { return n.RunPodSandbox },
			func(config *runtimeapi.PodSandboxConfig, handler string) []byte {
				return append(encode(t, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler}), unknownField...)
			}, encode(t, &runtimeapi.RunPodSandboxResponse{PodSandboxId: "a"})},
		{"RestorePod", func(n *testNode) proxy.Hook { return n.RestorePod },
			func(config *runtimeapi.PodSandboxConfig, handler string) []byte {
				return append(encode(t, &runtimeapi.RestorePodRequest{Config: config, RuntimeHandler: handler}), unknownField...)
			}, encode(t, &runtimeapi.RestorePodResponse{PodSandboxId: "a"})},
	}
}

// forEachMaker runs a test for both verbs that make a sandbox (review row B20).
func forEachMaker(t *testing.T, test func(t *testing.T, m maker)) {
	for _, m := range makers(t) {
		t.Run(m.name, func(t *testing.T) { test(t, m) })
	}
}

// runtimeThatAdds calls ADD as the runtime does, and then answers or fails.
func (n *testNode) runtimeThatAdds(t *testing.T, want, answer []byte, failure error) proxy.Forward {
	return func(ctx context.Context, request []byte) ([]byte, error) {
		if diff := cmp.Diff(want, request); diff != "" {
			t.Errorf("the request was changed (-want +got):\n%s", diff)
		}
		if err := n.add(ctx, "a"); err != nil {
			return nil, status.Error(codes.Unknown, err.Error())
		}
		return answer, failure
	}
}

func TestSandboxGetsItsNetwork(t *testing.T) {
	forEachMaker(t, func(t *testing.T, m maker) {
		n := newNode(t)
		request := m.request(podConfig("a", runtimeapi.NamespaceMode_POD), "")
		answer, err := m.hook(n)(t.Context(), request, n.runtimeThatAdds(t, request, m.answer, nil))
		if err != nil || !cmp.Equal(answer, m.answer) {
			t.Fatalf("%s = %q, %v", m.name, answer, err)
		}
		testkit.Eventually(t, "the four steps' times in the journal", func() bool { return len(n.record(t, "a").Steps) == 4 })
	})
}

func TestSandboxesThatCrinetLeavesAlone(t *testing.T) {
	forEachMaker(t, func(t *testing.T, m maker) {
		for name, request := range map[string][]byte{
			"hostNetwork":                        m.request(podConfig("a", runtimeapi.NamespaceMode_NODE), ""),
			"handler with a conf dir of its own": m.request(podConfig("a", runtimeapi.NamespaceMode_POD), "kata"),
			"undecodable":                        {0xff},
		} {
			n := newNode(t)
			n.network.unready, n.installation.err, n.installation.own = errFake, errFake, "kata"
			answer, err := m.hook(n)(t.Context(), request, func(_ context.Context, got []byte) ([]byte, error) { return got, nil })
			if err != nil || !cmp.Equal(answer, request) {
				t.Errorf("%s: %s = %q, %v", name, m.name, answer, err)
			}
		}
		n := newNode(t, func(c *Config) { c.Noop, c.Installation = true, nil })
		request := m.request(podConfig("a", runtimeapi.NamespaceMode_POD), "")
		if answer, err := m.hook(n)(t.Context(), request, func(_ context.Context, got []byte) ([]byte, error) { return got, nil }); err != nil || !cmp.Equal(answer, request) {
			t.Errorf("noop: %s = %q, %v", m.name, answer, err)
		}
	})
}

func TestRefusals(t *testing.T) {
	forEachMaker(t, func(t *testing.T, m maker) {
		badPorts := podConfig("a", runtimeapi.NamespaceMode_POD)
		badPorts.PortMappings = []*runtimeapi.PortMapping{{HostPort: 70000, ContainerPort: 1}}
		for _, c := range []struct {
			name   string
			config *runtimeapi.PodSandboxConfig
			change func(*testNode)
			code   codes.Code
			want   string
		}{
			{"network not ready", podConfig("a", runtimeapi.NamespaceMode_POD), func(n *testNode) { n.network.unready = errors.New("no usable network") },
				codes.FailedPrecondition, "no usable network"},
			{"runtime does not use crinet", podConfig("a", runtimeapi.NamespaceMode_POD), func(n *testNode) { n.installation.err = errors.New("conf_dir is another") },
				codes.FailedPrecondition, "conf_dir is another"},
			{"no address", podConfig("a", runtimeapi.NamespaceMode_POD), func(n *testNode) {
				n.addresses = func() (string, error) { return "small", errors.New("all 5 are given out") }
			}, codes.ResourceExhausted, "all 5 are given out"},
			{"bad hostPort", badPorts, func(*testNode) {}, codes.InvalidArgument, "70000"},
		} {
			n := newNode(t)
			c.change(n)
			_, err := m.hook(n)(t.Context(), m.request(c.config, ""), func(context.Context, []byte) ([]byte, error) {
				t.Errorf("%s: the call went to the runtime", c.name)
				return nil, nil
			})
			if status.Code(err) != c.code || !strings.Contains(err.Error(), "ns/pod-a") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %v with pod and reason", c.name, err, c.code)
			}
		}
	})
}

func TestSandboxThatFailsAfterAdd(t *testing.T) {
	for _, c := range []struct {
		name    string
		failure error
		has     bool
		gone    bool
	}{
		{"forgotten by the runtime", status.Error(codes.Unknown, "shim died"), false, true},
		{"kept by the runtime for StopPodSandbox", status.Error(codes.Unknown, "shim died"), true, false},
		{"outcome unknown", status.Error(codes.Unavailable, "connection lost"), false, false},
		{"caller gone", status.Error(codes.Canceled, "cancelled"), false, false},
		{"caller's time is up", status.Error(codes.DeadlineExceeded, "deadline"), false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			forEachMaker(t, func(t *testing.T, m maker) {
				n := newNode(t)
				n.runtime.ids["a"] = c.has
				request := m.request(podConfig("a", runtimeapi.NamespaceMode_POD), "")
				if _, err := m.hook(n)(t.Context(), request, n.runtimeThatAdds(t, request, nil, c.failure)); !errors.Is(err, c.failure) {
					t.Errorf("%s = %v, want %v", m.name, err, c.failure)
				}
				if gone := n.record(t, "a") == nil; gone != c.gone {
					t.Errorf("network gone: %v, want %v", gone, c.gone)
				}
			})
		})
	}
}

// A sandbox whose network went while it started is removed, and the caller gets
// an error: it would run without a network (review row A9).
func TestSandboxThatLostItsNetwork(t *testing.T) {
	forEachMaker(t, func(t *testing.T, m maker) {
		n := newNode(t)
		request := m.request(podConfig("a", runtimeapi.NamespaceMode_POD), "")
		_, err := m.hook(n)(t.Context(), request, func(ctx context.Context, _ []byte) ([]byte, error) {
			if err := n.add(ctx, "a"); err != nil {
				t.Error(err)
			}
			return m.answer, n.engine.DetachSandbox(ctx, "a")
		})
		if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "ns/pod-a") {
			t.Errorf("%s = %v, want Internal that names the pod", m.name, err)
		}
		if diff := cmp.Diff([]string{"a"}, n.runtime.removed); diff != "" {
			t.Errorf("sandboxes removed at the runtime (-want +got):\n%s", diff)
		}
	})
}

// When ADD has failed and the runtime takes longer than the caller waits, the
// caller learns why ADD failed before its time is up (review row A26).
func TestReasonBeforeTheDeadline(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.network.setUp = errors.New("plugin calico: the datastore does not answer")
	m := makers(t)[0]
	// So long that the margin, a fiftieth, is enough on a loaded machine.
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	_, err := n.RunPodSandbox(ctx, m.request(podConfig("a", runtimeapi.NamespaceMode_POD), ""), func(ctx context.Context, _ []byte) ([]byte, error) {
		if err := n.add(ctx, "a"); err == nil {
			t.Error("ADD succeeded")
		}
		<-ctx.Done() // the runtime's DEL hangs as well
		return nil, status.FromContextError(ctx.Err()).Err()
	})
	if ctx.Err() != nil {
		t.Error("the answer came after the caller's time was up")
	}
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "the datastore does not answer") {
		t.Errorf("RunPodSandbox = %v, want the plugin's reason", err)
	}
}

// A pod that the runtime networked itself is counted each time and logged once
// (review row B18).
func TestBypassedPods(t *testing.T) {
	n := newNode(t)
	m := makers(t)[0]
	request := m.request(podConfig("a", runtimeapi.NamespaceMode_POD), "")
	began := 0
	for range 3 {
		if !n.bypass.holds.Load() {
			began++
		}
		if answer, err := n.RunPodSandbox(t.Context(), request, func(context.Context, []byte) ([]byte, error) { return m.answer, nil }); err != nil || !cmp.Equal(answer, m.answer) {
			t.Errorf("RunPodSandbox = %q, %v: the pod works, so the call does", answer, err)
		}
	}
	if counted := n.counted(t, "crinet_bypassed_pods_total"); counted != 3 || began != 1 {
		t.Errorf("%v pods counted and %d logged, want 3 and 1", counted, began)
	}
}

func TestUpdateRuntimeConfig(t *testing.T) {
	n := newNode(t)
	update := func(cidr string) (passed bool, err error) {
		request := append(encode(t, &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{
			NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr},
		}}), unknownField...)
		_, err = n.UpdateRuntimeConfig(t.Context(), request, func(_ context.Context, got []byte) ([]byte, error) {
			passed = cmp.Equal(got, request)
			return nil, nil
		})
		return passed, err
	}
	if passed, err := update("10.1.0.0/16,2001:db8::/64"); err != nil || !passed {
		t.Errorf("UpdateRuntimeConfig = %v, passed on: %v", err, passed)
	}
	if got := n.podCIDRs.Get(); len(got) != 2 || got[0].String() != "10.1.0.0/16" || got[1].String() != "2001:db8::/64" {
		t.Errorf("pod CIDRs %v", got)
	}
	if passed, err := update("nonsense"); status.Code(err) != codes.InvalidArgument || passed {
		t.Errorf("UpdateRuntimeConfig(nonsense) = %v, passed on: %v; want InvalidArgument", err, passed)
	}
	if passed, err := update(""); err != nil || !passed {
		t.Errorf("UpdateRuntimeConfig without a CIDR = %v, passed on: %v", err, passed)
	}
}

// counted returns a counter's value.
func (n *testNode) counted(t *testing.T, name string) float64 {
	t.Helper()
	families, err := n.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			return family.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
