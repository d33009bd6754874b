package hostport

import (
	"context"
	"errors"
	"testing"
)

// Before Sync nobody knows what an earlier run mapped: Unmap does not say that a sandbox
// has nothing, since its caller frees the address next.
func TestUnmapWaitsForSync(t *testing.T) {
	m := newManagerFor(t, nftNetNS(t))
	ended, end := context.WithCancel(t.Context())
	end()
	if err := m.Unmap(ended, "sandbox"); !errors.Is(err, context.Canceled) {
		t.Errorf("Unmap before Sync: %v", err)
	}
	unmapped := make(chan error, 1)
	go func() { unmapped <- m.Unmap(t.Context(), "sandbox") }()
	if err := m.Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := <-unmapped; err != nil {
		t.Errorf("Unmap of a sandbox without ports after Sync: %v", err)
	}
}
