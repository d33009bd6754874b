package runtime

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/crinet-project/crinet/runtime/journal"
)

const (
	// askTimeout bounds a question to the container runtime.
	askTimeout = 10 * time.Second
	// reconcileInterval is how often the journal is held against the runtime's
	// sandboxes.
	reconcileInterval = time.Minute
	// reconcileRetry is the wait after the runtime could not be asked.
	reconcileRetry = time.Second
	// youngest is the age below which a sandbox that the runtime does not list
	// may still be in the making: the kubelet gives RunPodSandbox four minutes.
	youngest = 4 * time.Minute
)

// Recover hands everything to the undo queue that the journal holds as begun
// and not finished, or from another boot. It asks nobody and returns at once;
// call it before serving.
func (m *Manager) Recover() error {
	records, err := m.Journal.Sandbox("")
	if err != nil {
		return err
	}
	if len(records) == 0 {
		if records, err = m.rebuild(); err != nil {
			return fmt.Errorf("rebuild the journal: %w", err)
		}
	}
	undo := 0
	for _, r := range records {
		if r.State == journal.Attached && r.BootID == m.BootID {
			continue
		}
		undo++
		m.undo.add(&journal.Record{Attachment: r.Attachment, Created: r.Created})
	}
	if len(records) > 0 {
		m.Log.Info("journal read", "attachments", len(records), "toUndo", undo)
	}
	return nil
}

// Run reconciles, at first as soon as the runtime answers and then in intervals,
// until ctx ends; then it cuts off the undo queue. What is left stays in the
// journal.
func (m *Manager) Run(ctx context.Context) {
	defer m.undo.close()
	var gc sync.WaitGroup
	gc.Go(func() { m.runGC(ctx) })
	defer gc.Wait()
	wait := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = reconcileInterval
		if err := m.reconcile(ctx); err != nil {
			m.Log.Debug("cannot compare the journal with the runtime's sandboxes", "err", err)
			wait = reconcileRetry
		}
	}
}

// reconcile undoes the attachments of sandboxes that the runtime does not have.
func (m *Manager) reconcile(ctx context.Context) error {
	before, err := m.Journal.Sandbox("")
	if err != nil || len(before) == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	sandboxes, err := m.Sandboxes.List(ctx)
	if err != nil {
		return err
	}
	for _, r := range before {
		id := r.Attachment.ContainerID
		if r.State != journal.Attached || sandboxes[id] || m.inTheMaking(r) {
			continue
		}
		m.Log.Info("the runtime has no such sandbox: removing its network", "pod", r.Pod, "sandbox", id)
		m.undo.add(r)
	}
	return nil
}

// inTheMaking says whether a sandbox that the runtime does not list may yet
// come: it is young, and its network namespace stands.
func (m *Manager) inTheMaking(r *journal.Record) bool {
	return r.BootID == m.BootID && m.now().Sub(r.Created) < youngest && isNetNS(r.Attachment.NetNS)
}
