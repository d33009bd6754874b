package runtime

import (
	"context"
	"errors"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A runtime that takes its time for Status is answered for by what it said last;
// one that fails, or was never heard or not for long, is not.
func TestStatusOfSlowRuntime(t *testing.T) {
	n := newNode(t)
	request := encode(t, &runtimeapi.StatusRequest{})
	answer := statusResponse(t, &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true})
	prompt := func(context.Context, []byte) ([]byte, error) { return answer, nil }
	hung := func(ctx context.Context, _ []byte) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }
	broken := func(context.Context, []byte) ([]byte, error) { return nil, errFake }

	ctx, cancel := context.WithTimeout(t.Context(), 10*statusPatience)
	defer cancel()
	if _, err := n.Status(ctx, request, hung); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without an earlier answer Status = %v, want the caller's deadline", err)
	}
	if _, err := n.Status(t.Context(), request, prompt); err != nil {
		t.Fatal(err)
	}
	if response, err := n.Status(t.Context(), request, hung); err != nil || len(response) == 0 {
		t.Errorf("with an earlier answer Status = %v", err)
	}
	if _, err := n.Status(t.Context(), encode(t, &runtimeapi.StatusRequest{Verbose: true}), broken); !errors.Is(err, errFake) {
		t.Errorf("Status of a broken runtime = %v, want its failure", err)
	}
	if _, err := n.Status(t.Context(), request, broken); !errors.Is(err, errFake) {
		t.Errorf("Status of a broken runtime = %v, want its failure", err)
	}
	later := time.Now().Add(statusMemory)
	n.now = func() time.Time { return later }
	ctx, cancel = context.WithTimeout(t.Context(), 10*statusPatience)
	defer cancel()
	if _, err := n.Status(ctx, request, hung); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with an old answer Status = %v, want the caller's deadline", err)
	}
}
