package why

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/recorder"
)

// Tell tells the story of the pod that a text names: by its name, namespace/name, uid,
// or the beginning of its sandbox's id. If several pods are meant, the story names
// them. The error is ErrUnknown if there is none.
func Tell(ctx context.Context, s Sources, pod string) (*Story, error) {
	if pod == "" {
		return nil, fmt.Errorf("%q: %w", pod, ErrUnknown)
	}
	operations, records, err := s.about(pod)
	if err != nil {
		return nil, err
	}
	story := &Story{Told: s.Told, Sandboxes: gather(operations, records, s.Records != nil)}
	pods := candidates(operations, records)
	switch {
	case len(pods) == 0:
		return nil, fmt.Errorf("%q: %w", pod, ErrUnknown)
	case len(pods) > 1:
		return &Story{Told: s.Told, Candidates: pods, Sandboxes: []Sandbox{}}, nil
	}
	story.Pod = pods[0].Pod
	standingFirst(story.Sandboxes)
	newest := &story.Sandboxes[0]
	if r := newest.record; r != nil {
		if s.Stands == nil || s.Stands(r) {
			newest.Findings = s.Inspect(ctx, r)
			if s.Drift != nil {
				newest.Drift = s.Drift(r)
			}
		} else {
			newest.record, newest.State = nil, string(journal.Detaching)
			newest.undo = "the node was restarted since, and its network is to be removed"
		}
	}
	story.judge()
	return story, nil
}

// standingFirst puts a sandbox that has a network before later attempts to make another
// one for the same pod: a caller that lost patience, and then asks again, is told that
// the sandbox is there already.
func standingFirst(all []Sandbox) {
	if all[0].ID != "" {
		return
	}
	uid := all[0].Operations[0].Pod.UID
	for i := range all {
		if r := all[i].record; r != nil && r.Pod.UID == uid {
			standing := all[i]
			copy(all[1:i+1], all[:i])
			all[0] = standing
			return
		}
	}
}

// about returns the operations and records of the pods that a text names. Names and
// uids win over ids of sandboxes that begin so.
func (s Sources) about(pod string) ([]recorder.Operation, []*journal.Record, error) {
	operations, err := s.Find(recorder.Query{Pod: pod})
	if err != nil {
		return nil, nil, fmt.Errorf("read what was recorded: %w", err)
	}
	var all []*journal.Record
	if s.Records != nil {
		if all, err = s.Records(); err != nil {
			return nil, nil, err
		}
	}
	named := func(p journal.Pod) bool { return recorder.Names(pod, p, "") }
	records := slices.DeleteFunc(slices.Clone(all), func(r *journal.Record) bool {
		return !recorder.Names(pod, r.Pod, r.Attachment.ContainerID)
	})
	exact := slices.ContainsFunc(operations, func(o recorder.Operation) bool { return named(o.Pod) }) ||
		slices.ContainsFunc(records, func(r *journal.Record) bool { return named(r.Pod) })
	if exact {
		operations = slices.DeleteFunc(operations, func(o recorder.Operation) bool { return !named(o.Pod) })
		records = slices.DeleteFunc(records, func(r *journal.Record) bool { return !named(r.Pod) })
	}
	return operations, records, nil
}

// gather makes the sandboxes of operations and records, the newest first.
func gather(operations []recorder.Operation, records []*journal.Record, journalled bool) []Sandbox {
	byKey := make(map[string]*Sandbox)
	var all []*Sandbox
	at := func(key string) *Sandbox {
		if byKey[key] == nil {
			byKey[key] = new(Sandbox)
			all = append(all, byKey[key])
		}
		return byKey[key]
	}
	for _, o := range slices.Backward(operations) { // the oldest first
		key := o.Sandbox + "/" + cmp.Or(o.IfName, "eth0")
		if o.Sandbox == "" {
			key = "\x00" + o.Pod.String() + o.Err // the same refusal again and again is one
		}
		at(key).take(o)
	}
	for _, r := range records {
		at(r.Key().String()).takeRecord(r)
	}
	sandboxes := make([]Sandbox, 0, len(all))
	for _, sandbox := range all {
		if !journalled {
			sandbox.assume()
		}
		sandboxes = append(sandboxes, *sandbox)
	}
	slices.SortStableFunc(sandboxes, func(a, b Sandbox) int { return b.Start.Compare(a.Start) })
	return sandboxes
}

// take adds an operation, which is newer than those before it.
func (s *Sandbox) take(o recorder.Operation) {
	if s.Start.IsZero() || o.Sandbox == "" { // of refusals the last one counts
		s.Start = o.Start
	}
	s.ID, s.IfName = o.Sandbox, cmp.Or(o.IfName, s.IfName)
	s.NetNS, s.Network = cmp.Or(o.NetNS, s.NetNS), cmp.Or(o.Network, s.Network)
	s.File, s.Selected = cmp.Or(o.File, s.File), cmp.Or(o.Selected, s.Selected)
	if len(o.Addresses) > 0 {
		s.Addresses = o.Addresses
	}
	if len(o.HostPorts) > 0 {
		s.HostPorts = o.HostPorts
	}
	if len(o.Steps) >= len(s.Steps) {
		s.Steps = o.Steps
	}
	s.Operations = append(s.Operations, o)
}

// takeRecord adds what the journal has.
func (s *Sandbox) takeRecord(r *journal.Record) {
	if s.Start.IsZero() {
		s.Start = r.Created
	}
	a := &r.Attachment
	s.ID, s.IfName, s.NetNS, s.Network = a.ContainerID, a.IfName, a.NetNS, a.Network
	s.State, s.Adopted, s.undo = string(r.State), r.Adopted, r.LastError
	if addresses, err := cni.Addresses(a.Result); err == nil {
		s.Addresses = nil
		for _, address := range addresses {
			s.Addresses = append(s.Addresses, address.String())
		}
	}
	s.HostPorts = nil
	for _, mapping := range r.HostPorts {
		s.HostPorts = append(s.HostPorts, mapping.String())
	}
	if len(r.Steps) >= len(s.Steps) && len(r.Steps) > 0 {
		s.Steps = nil
		for _, step := range r.Steps {
			s.Steps = append(s.Steps, recorder.Step{Step: step.Step, Start: step.Start, Took: step.Duration.Seconds()})
		}
	}
	if r.State == journal.Attached {
		s.record = r
	}
}

// assume makes a record of the operations where the journal cannot be read: of an ADD
// that succeeded, and that no DEL has undone.
func (s *Sandbox) assume() {
	add, del := s.last(recorder.Add), s.last(recorder.Del)
	if add == nil || add.Failed() || add.State != recorder.Done || add.By == recorder.ByTrial ||
		del != nil && !del.Failed() && del.State == recorder.Done && del.Start.After(add.Start) {
		return
	}
	result := add.Result
	if json.Unmarshal(result, new(struct{})) != nil {
		return // it was cut
	}
	s.State = string(journal.Attached)
	s.record = &journal.Record{
		State: journal.Attached, Pod: add.Pod,
		Attachment: cni.Attachment{ContainerID: add.Sandbox, IfName: add.IfName, NetNS: add.NetNS, Network: add.Network, Result: result},
	}
}

// last returns the newest operation with one of the verbs; nil if there is none.
func (s *Sandbox) last(verbs ...string) *recorder.Operation {
	for i := range slices.Backward(s.Operations) {
		if slices.Contains(verbs, s.Operations[i].Verb) {
			return &s.Operations[i]
		}
	}
	return nil
}

// candidates are the pods that were found, the one with the newest sandbox first.
func candidates(operations []recorder.Operation, records []*journal.Record) []Candidate {
	found := make(map[string]*Candidate)
	note := func(pod journal.Pod, sandbox string, at time.Time) {
		c := found[pod.String()]
		if c == nil {
			c = &Candidate{Pod: pod}
			found[pod.String()] = c
		}
		if !at.Before(c.Last) {
			c.Pod, c.Sandbox, c.Last = pod, cmp.Or(sandbox, c.Sandbox), at
		}
	}
	for _, r := range records {
		note(r.Pod, r.Attachment.ContainerID, r.Created)
	}
	for _, o := range operations {
		note(o.Pod, o.Sandbox, o.Start)
	}
	var all []Candidate
	for _, c := range found {
		all = append(all, *c)
	}
	slices.SortFunc(all, func(a, b Candidate) int {
		return cmp.Or(b.Last.Compare(a.Last), strings.Compare(a.Pod.String(), b.Pod.String()))
	})
	return all
}
