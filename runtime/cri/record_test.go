package cri

import (
	"context"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/runtime/journal"
)

// fakeRecorder keeps a line for each failure.
type fakeRecorder struct{ lines []string }

func (r *fakeRecorder) Failed(verb, by string, about *journal.Record, err error) {
	r.lines = append(r.lines, verb+" by "+by+" "+about.Pod.String()+" "+about.Attachment.ContainerID+about.Attachment.Network+": "+err.Error())
}

// What crinetd answers, and not what the ADD says for itself, is recorded: refusals,
// sandboxes that the runtime did not make, and those that it networked itself.
func TestFailuresAreRecorded(t *testing.T) {
	forEachMaker(t, func(t *testing.T, m maker) {
		config := podConfig("a", runtimeapi.NamespaceMode_POD)
		request := m.request(config, "")
		fails := func(context.Context, []byte) ([]byte, error) { return nil, status.Error(codes.Unknown, "no runc") }
		silent := func(context.Context, []byte) ([]byte, error) { return m.answer, nil }
		for _, c := range []struct {
			name string
			run  func(n *testNode) error
			want string // empty: nothing
		}{
			{"not ready", func(n *testNode) error {
				n.installation.err = errFake
				_, err := m.hook(n)(t.Context(), request, silent)
				return err
			}, "RunPodSandbox by cri ns/pod-a : pod ns/pod-a: network not ready: fake failure"},
			{"no address", func(n *testNode) error {
				n.addresses = func() (string, error) { return "small", errFake }
				_, err := m.hook(n)(t.Context(), request, silent)
				return err
			}, "RunPodSandbox by cri ns/pod-a small: pod ns/pod-a: fake failure"},
			{"the runtime fails", func(n *testNode) error {
				_, err := m.hook(n)(t.Context(), request, fails)
				return err
			}, "RunPodSandbox by cri ns/pod-a : no runc"},
			{"bypassed", func(n *testNode) error {
				_, err := m.hook(n)(t.Context(), request, silent)
				return err
			}, "RunPodSandbox by cri ns/pod-a a: pod ns/pod-a: the runtime networked the pod without calling crinet"},
			{"its ADD fails", func(n *testNode) error {
				n.network.setUp = errFake
				_, err := m.hook(n)(t.Context(), request, n.runtimeThatAdds(t, request, nil, nil))
				return err
			}, ""},
			{"all is well", func(n *testNode) error {
				_, err := m.hook(n)(t.Context(), request, n.runtimeThatAdds(t, request, m.answer, nil))
				return err
			}, ""},
		} {
			kept := new(fakeRecorder)
			err := c.run(newNode(t, func(c *Config) { c.Recorder = kept }))
			var want []string
			if c.want != "" {
				want = []string{c.want}
			}
			if !slices.Equal(kept.lines, want) {
				t.Errorf("%s: recorded %q, want %q (the answer is %v)", c.name, kept.lines, want, err)
			}
		}
	})
}
