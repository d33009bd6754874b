package integration_test

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
)

// otlpAddress is where crinetd and containerd send their traces, in the node.
const otlpAddress = "127.0.0.1:4317"

// span is one that a receiver got.
type span struct {
	Service, Name     string
	Trace, ID, Parent string
	Attributes        map[string]string
	Failed            string // the status' message, if it is an error
}

// receiver is an OpenTelemetry collector that keeps the spans that it gets.
type receiver struct {
	collector.UnimplementedTraceServiceServer
	server *grpc.Server

	mu    sync.Mutex // guards what follows
	spans []span
}

// newReceiver starts a receiver in the node. The end of the test stops it.
func (n *testNode) newReceiver() *receiver {
	n.t.Helper()
	var listener net.Listener
	listener, err := n.Listen("tcp", otlpAddress)
	n.ok(err)
	r := &receiver{server: grpc.NewServer()}
	collector.RegisterTraceServiceServer(r.server, r)
	done := make(chan error, 1)
	go func() { done <- r.server.Serve(listener) }()
	n.t.Cleanup(func() {
		r.server.Stop()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
	})
	return r
}

// Export is the collector's method.
func (r *receiver) Export(_ context.Context, request *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, resource := range request.GetResourceSpans() {
		service := ""
		for _, a := range resource.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				service = a.GetValue().GetStringValue()
			}
		}
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				got := span{
					Service: service, Name: s.GetName(), Trace: hex.EncodeToString(s.GetTraceId()),
					ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()), Attributes: make(map[string]string),
				}
				for _, a := range s.GetAttributes() {
					got.Attributes[a.GetKey()] = a.GetValue().GetStringValue()
				}
				if s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
					got.Failed = "error: " + s.GetStatus().GetMessage()
				}
				r.spans = append(r.spans, got)
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// of returns the spans of a trace; all for an empty one.
func (r *receiver) of(trace string) []span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.spans), func(s span) bool { return trace != "" && s.Trace != trace })
}

// await waits until a trace has a span that fits.
func (r *receiver) await(t *testing.T, trace, what string, fits func(span) bool) span {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		all := r.of(trace)
		if i := slices.IndexFunc(all, fits); i >= 0 {
			return all[i]
		}
		if time.Now().After(deadline) {
			t.Fatalf("no span %s in trace %q:\n%+v", what, trace, all)
		}
	}
}

// crinetds waits for a span of crinetd's, by name and parent; any for an empty one.
func (r *receiver) crinetds(t *testing.T, trace, name, parent string) span {
	t.Helper()
	return r.await(t, trace, name+" below "+parent, func(s span) bool {
		return s.Service == "crinetd" && s.Name == name && (parent == "" || s.Parent == parent)
	})
}

// below waits until a span is below another one, with nothing but spans of containerd
// in between.
func (r *receiver) below(t *testing.T, s, top span) {
	t.Helper()
	for s.Parent != top.ID {
		parent := s.Parent
		s = r.await(t, s.Trace, parent+", the parent of "+s.Name, func(s span) bool { return s.ID == parent })
		if s.Service != "containerd" {
			t.Fatalf("%+v is between", s)
		}
	}
}

// tracedNode starts a node whose containerd and crinetd send traces to a receiver, with
// a chain of a built-in plugin and one that is executed.
func tracedNode(t *testing.T, which node.Containerd, delay string) (*testNode, *receiver) {
	t.Helper()
	n := newNodeOf(t, node.Options{Containerd: which, Environment: []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + otlpAddress, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
		"OTEL_EXPORTER_OTLP_TIMEOUT=1000", "OTEL_BSP_SCHEDULE_DELAY=" + delay,
	}})
	r := n.newReceiver()
	n.ok(n.InstallPlugin("testplugin", kit.Program("testplugin")))
	n.ok(n.WriteConf("10-traced.conflist", chain("traced", "10.58.0.0/16")))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	return n, r
}

// asKubelet is a context with the kubelet's trace context.
func asKubelet(ctx context.Context, trace, id string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "traceparent", "00-"+trace+"-"+id+"-01", "tracestate", "vendor=1")
}

const (
	kubeletTrace = "0af7651916cd43dd8448eb211c80319c"
	kubeletSpan  = "b7ad6b7169203331"
)

// The kubelet's trace goes on through crinetd, each step and plugin, and the runtime,
// as one tree, and so does the end of a pod. containerd 2.4 traces, too, and passes the
// trace on to its CNI plugin; from an older one the plugin's calls come without.
func TestTraceOfAPod(t *testing.T) {
	t.Parallel()
	for _, which := range []node.Containerd{node.Containerd24, node.Containerd17} {
		t.Run(string(which), func(t *testing.T) {
			t.Parallel()
			n, r := tracedNode(t, which, "100")
			traceAPod(n, r, which == node.Containerd24 && os.Getenv(containerdVariable) == "")
		})
	}
}

func traceAPod(n *testNode, r *receiver, runtimeTraces bool) {
	t := n.t
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	ctx := asKubelet(n.ctx, kubeletTrace, kubeletSpan)
	pod, err := client.RunPod(ctx, n.PodConfig("traced"))
	n.ok(err)
	run := r.crinetds(t, kubeletTrace, "RunPodSandbox", kubeletSpan)
	if run.Attributes["k8s.pod.name"] != "traced" || run.Attributes["crinet.sandbox.id"] != pod.ID || run.Failed != "" {
		t.Errorf("RunPodSandbox: %+v", run)
	}
	for _, step := range []string{"create", "start"} {
		r.crinetds(t, kubeletTrace, step, run.ID)
	}
	// containerd 2.4 passes its own span on to its CNI plugin.
	r.below(t, r.crinetds(t, kubeletTrace, "netns", ""), run)
	plugin := r.crinetds(t, kubeletTrace, "plugin", "")
	r.below(t, plugin, run)
	for name, how := range map[string]string{"bridge": "builtin", "testplugin": "exec"} {
		s := r.crinetds(t, kubeletTrace, name+" ADD", plugin.ID)
		for key, want := range map[string]string{
			"crinet.plugin.how": how, "crinet.plugin.type": name, "crinet.network.name": "traced", "crinet.sandbox.id": pod.ID,
		} {
			if s.Attributes[key] != want {
				t.Errorf("%s: %s is %q, want %q", s.Name, key, s.Attributes[key], want)
			}
		}
		if how == "exec" {
			n.toldPlugin("ADD", s)
		}
	}
	if runtimeTraces {
		r.await(t, kubeletTrace, "of containerd below RunPodSandbox", func(s span) bool {
			return s.Service == "containerd" && s.Parent == run.ID
		})
	} else if plugin.Parent != run.ID {
		t.Errorf("ADD is not joined to its RunPodSandbox by the flight: %+v", plugin)
	}
	for _, s := range r.of(kubeletTrace) {
		if s.Service == "containerd" && s.Parent == kubeletSpan {
			t.Errorf("containerd's span %s is beside crinetd's", s.Name)
		}
	}

	// The end of the pod, in the same trace.
	stopSpan, removeSpan := "00000000000000aa", "00000000000000bb"
	n.ok(pod.Stop(asKubelet(n.ctx, kubeletTrace, stopSpan)))
	stop := r.crinetds(t, kubeletTrace, "StopPodSandbox", stopSpan)
	del := r.crinetds(t, kubeletTrace, "CNI DEL", "")
	r.below(t, del, stop)
	n.toldPlugin("DEL", r.crinetds(t, kubeletTrace, "testplugin DEL", del.ID))
	n.ok(pod.Remove(asKubelet(n.ctx, kubeletTrace, removeSpan)))
	r.crinetds(t, kubeletTrace, "RemovePodSandbox", removeSpan)

	// A call that only passes keeps the caller's trace context: containerd's span is
	// below the caller's.
	passing := "00000000000000cc"
	_, err = client.Runtime.ListContainers(asKubelet(n.ctx, kubeletTrace, passing), &runtimeapi.ListContainersRequest{})
	n.ok(err)
	if runtimeTraces {
		r.await(t, kubeletTrace, "of containerd below the caller's", func(s span) bool {
			return s.Service == "containerd" && s.Parent == passing
		})
	}

	// A caller that does not sample is not sampled, whatever the runtime does.
	const quiet = "1af7651916cd43dd8448eb211c80319c"
	unsampled := metadata.AppendToOutgoingContext(n.ctx, "traceparent", "00-"+quiet+"-"+kubeletSpan+"-00")
	second, err := client.RunPod(unsampled, n.PodConfig("quiet"))
	n.ok(err)
	n.ok(second.StopAndRemove(unsampled))

	// A pod that nobody asked crinetd for is a trace of its own.
	direct, err := n.client(node.ContainerdSocket).RunPod(n.ctx, n.PodConfig("direct"))
	n.ok(err)
	add := r.await(t, "", "CNI ADD of a direct pod", func(s span) bool {
		return s.Name == "CNI ADD" && s.Attributes["crinet.sandbox.id"] == direct.ID
	})
	r.crinetds(t, add.Trace, "testplugin ADD", r.crinetds(t, add.Trace, "plugin", add.ID).ID)
	n.ok(direct.StopAndRemove(n.ctx))
	if spans := r.of(quiet); len(spans) != 0 {
		t.Errorf("a trace that is not sampled has the spans %+v", spans)
	}
	n.noLeftovers()
}

// toldPlugin checks that the test plugin was told of the span of its run.
func (n *testNode) toldPlugin(verb string, s span) {
	n.t.Helper()
	want := fmt.Sprintf("00-%s-%s-01", s.Trace, s.ID)
	for _, call := range n.recorded("traced", verb) {
		if call.TraceParent == want {
			return
		}
	}
	n.t.Errorf("no %s of the plugin had TRACEPARENT=%s: %+v", verb, want, n.recorded("traced", verb))
}

// What is queued is sent when crinetd ends. Without a receiver pods live as with one,
// and the log says it once.
func TestTracesAtTheEnd(t *testing.T) {
	t.Parallel()
	n, r := tracedNode(t, node.Containerd24, "60000")
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	pod, err := client.RunPod(asKubelet(n.ctx, kubeletTrace, kubeletSpan), n.PodConfig("flushed"))
	n.ok(err)
	if got := slices.DeleteFunc(r.of(kubeletTrace), func(s span) bool { return s.Service != "crinetd" }); len(got) != 0 {
		t.Errorf("before the end of crinetd there are spans: %+v", got)
	}
	n.ok(n.StopCrinetd())
	r.crinetds(t, kubeletTrace, "RunPodSandbox", kubeletSpan)

	r.server.Stop()
	n.Environment("OTEL_BSP_SCHEDULE_DELAY=50")
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	const lost = "traces cannot be sent"
	for i := range 3 {
		again, err := client.RunPod(asKubelet(n.ctx, kubeletTrace, kubeletSpan), n.PodConfig(fmt.Sprintf("lost-%d", i)))
		n.ok(err)
		n.ok(again.StopAndRemove(n.ctx))
		n.awaitOK(time.Minute, func() error {
			log, err := n.Log("crinetd")
			if err == nil && !strings.Contains(log, lost) {
				err = fmt.Errorf("crinetd's log does not say %q", lost)
			}
			return err
		})
	}
	n.ok(pod.StopAndRemove(n.ctx))
	n.ok(n.StopCrinetd())
	log, err := n.Log("crinetd")
	n.ok(err)
	if got := strings.Count(log, lost); got != 1 {
		t.Errorf("crinetd's log says %q %d times", lost, got)
	}
}
