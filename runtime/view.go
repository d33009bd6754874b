package runtime

import (
	"github.com/crinet-project/crinet/runtime/admin"
	"github.com/crinet-project/crinet/runtime/journal"
)

// View is the manager's part of what crinetd tells: in Status' verbose info and
// on admin.sock.
func (m *Manager) View() admin.Status {
	view := admin.Status{Plugin: m.Plugin.Name(), Ready: true, UndoPending: m.undo.waiting()}
	if err := m.Plugin.Status(); err != nil {
		view.Ready, view.Reason = false, err.Error()
	}
	for _, cidr := range m.PodCIDRs.Get() {
		view.PodCIDRs = append(view.PodCIDRs, cidr.String())
	}
	return view
}

// Pods are the sandboxes in the journal, in the order of their ids.
func (m *Manager) Pods() ([]admin.Pod, error) {
	records, err := m.Journal.Sandbox("")
	if err != nil {
		return nil, err
	}
	pods := make([]admin.Pod, 0, len(records))
	for _, r := range records {
		pods = append(pods, podView(r))
	}
	return pods, nil
}

func podView(r *journal.Record) admin.Pod {
	pod := admin.Pod{
		Namespace: r.Pod.Namespace, Name: r.Pod.Name, UID: r.Pod.UID,
		SandboxID: r.Attachment.ContainerID, State: string(r.State),
		Network: r.Attachment.Network, NetNS: r.Attachment.NetNS,
		Addresses: append([]string{}, addresses(r.Attachment.Result)...),
		HostPorts: []string{}, Steps: []admin.Step{},
		Tries: r.Tries, LastError: r.LastError,
	}
	for _, mapping := range r.HostPorts {
		pod.HostPorts = append(pod.HostPorts, mapping.String())
	}
	for _, s := range r.Steps {
		pod.Steps = append(pod.Steps, admin.Step{Step: s.Step, Start: s.Start, Duration: s.Duration.Seconds()})
	}
	return pod
}
