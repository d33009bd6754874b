package main

import (
	"context"
	"path/filepath"

	"github.com/crinet-project/crinet/cni/dhcpd"
	"github.com/crinet-project/crinet/internal/netns"
	"github.com/crinet-project/crinet/runtime/engine"
	"github.com/crinet-project/crinet/runtime/journal"
)

// namespaces makes the network namespaces of trials.
type namespaces struct{}

func (namespaces) Path(name string) string  { return filepath.Join(netnsDir, name) }
func (n namespaces) Make(name string) error { return netns.Make(n.Path(name)) }
func (namespaces) Remove(path string) error { return netns.Remove(path) }

// leases shows package dhcpd the journal and the engine's CHECK.
type leases struct{ *parts }

func (l leases) Attachments() ([]dhcpd.Attachment, error) {
	records, err := l.engine.Records()
	if err != nil {
		return nil, err
	}
	var all []dhcpd.Attachment
	for _, r := range records {
		all = append(all, dhcpd.Attachment{Attachment: &r.Attachment, Pod: r.Pod.String(), Up: l.engine.Stands(r)})
	}
	return all, nil
}

func (l leases) Check(ctx context.Context, a dhcpd.Attachment) error {
	return l.engine.Check(engine.OnOwnBehalf(ctx), journal.Key{ContainerID: a.ContainerID, IfName: a.IfName})
}
