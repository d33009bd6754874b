package engine

import (
	"context"
	"fmt"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/runtime/journal"
)

// Pending is the number of attachments that are still to be undone.
func (e *Engine) Pending() int { return e.queue.waiting() }

// Removing says whether pods are being removed, or are still to be: their addresses
// become free.
func (e *Engine) Removing() bool { return e.Pending() > 0 || e.ending.any() }

// Records returns the journal's records, in the order of their sandboxes' ids.
func (e *Engine) Records() ([]*journal.Record, error) { return e.journal.Sandbox("") }

// Attachments returns the attachments that the journal holds.
func (e *Engine) Attachments() ([]*cni.Attachment, error) {
	records, err := e.Records()
	all := make([]*cni.Attachment, 0, len(records))
	for _, r := range records {
		all = append(all, &r.Attachment)
	}
	return all, err
}

// Addresses returns the addresses of an attachment's pod, with prefix lengths.
func Addresses(r *journal.Record) []string {
	all := []string{}
	for _, prefix := range addresses(r.Attachment.Result) {
		all = append(all, prefix.String())
	}
	return all
}

// Forget takes the records of a sandbox out of the journal without calling its
// plugins, for an operator who knows that a DEL can never work: the pod is then
// free to go, and what its network holds stays on the node. hostPorts are
// unmapped all the same. It refuses a sandbox that has no removal under way:
// its network is in use. id may be a unique prefix. It returns what it forgot.
func (e *Engine) Forget(ctx context.Context, id, reason string) ([]*journal.Record, error) {
	records, err := e.journal.Sandbox(id)
	if err != nil {
		return nil, err
	}
	if id == "" || len(records) == 0 {
		return nil, fmt.Errorf("no sandbox %q in the journal: crinetctl pods lists them", id)
	}
	for _, r := range records {
		if r.Attachment.ContainerID != records[0].Attachment.ContainerID {
			return nil, fmt.Errorf("%q fits more than one sandbox: give more of the id", id)
		}
	}
	for _, r := range records {
		if r.State != journal.Detaching {
			return nil, fmt.Errorf("sandbox %s of pod %s is %s: remove the pod; only what cannot be removed is forgotten",
				r.Attachment.ContainerID, r.Pod, r.State)
		}
	}
	for _, r := range records {
		if err := e.forget(ctx, r, reason); err != nil {
			return nil, err
		}
	}
	return records, nil
}

func (e *Engine) forget(ctx context.Context, r *journal.Record, reason string) error {
	unlock, err := e.locks.lock(ctx, r.Key(), "forget")
	if err != nil {
		return err
	}
	defer unlock()
	if err := e.unmapPorts(ctx, r); err != nil {
		return fmt.Errorf("the sandbox's hostPorts are still mapped, so it is not forgotten: %w", err)
	}
	// The cache first: what it alone knows would be journalled again.
	if e.cache != nil {
		if err := e.cache.Forget(ctx, &r.Attachment); err != nil {
			return fmt.Errorf("the sandbox is still in the cache of CNI results, so it is not forgotten: %w", err)
		}
	}
	if err := e.journal.Delete(r.Key()); err != nil {
		return err
	}
	e.removed.add(r.Key()) // the runtime's next DEL succeeds
	e.log.Warn("an operator had crinetd forget a pod's network; what it holds stays on the node", "pod", r.Pod,
		"sandbox", r.Attachment.ContainerID, "network", r.Attachment.Network, "addresses", Addresses(r),
		"netns", r.Attachment.NetNS, "lastError", r.LastError, "reason", reason)
	return nil
}
