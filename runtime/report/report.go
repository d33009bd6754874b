package report

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/dhcpd"
	"github.com/crinet-project/crinet/cni/headroom"
	"github.com/crinet-project/crinet/config"
	"github.com/crinet-project/crinet/hostport"
	"github.com/crinet-project/crinet/probe"
	"github.com/crinet-project/crinet/runtime/admin"
	"github.com/crinet-project/crinet/runtime/drift"
	"github.com/crinet-project/crinet/runtime/engine"
	"github.com/crinet-project/crinet/runtime/install"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/recorder"
	"github.com/crinet-project/crinet/runtime/upstream"
)

// Source are the parts that are asked. Watcher and Keeper are nil
// under noop.
type Source struct {
	Version   string
	Plugin    string // the selected network plugin's name
	Ready     func() error
	Notice    func() string
	Engine    *engine.Engine
	PodCIDRs  *engine.PodCIDRs
	Selection *config.Selection
	Watcher   *config.Watcher
	Chain     *cni.Plugin
	DHCP      *dhcpd.Manager
	Runtime   *upstream.Watcher
	Keeper    *install.Keeper
	HostPorts *hostport.Manager // nil if crinetd maps none
	Headroom  *headroom.Counter // nil under noop
	// Probe looks at the plugins of a candidate in the bin dirs, MTU is
	// --network-plugin-mtu.
	Probe    func(types []string) (*probe.Plugins, error)
	MTU      int
	Recorder *recorder.Recorder
	// Table keeps the table inet crinet. Hairpin says that crinetd sets hairpin mode.
	Table   *hostport.Manager
	Hairpin bool
	// Drift is nil if nobody looks for it; DriftMode is what is done about it.
	Drift     *drift.Watcher
	DriftMode string
}

// Status is what crinetctl status shows.
func (s *Source) Status() admin.Status {
	status := admin.Status{
		Version: s.Version, Plugin: s.Plugin, Ready: true, Notice: s.Notice(),
		UndoPending: s.Engine.Pending(), AddFailures: s.Engine.AddFailures(), Runtime: s.runtime(),
	}
	load, retries := s.Chain.Pressure()
	status.Adds = admin.Adds{Running: load.Running, Waiting: load.Waiting, Limit: load.Limit, Retries: retries}
	if err := s.Ready(); err != nil {
		status.Ready, status.Reason = false, err.Error()
	}
	for _, cidr := range s.PodCIDRs.Get() {
		status.PodCIDRs = append(status.PodCIDRs, cidr.String())
	}
	for _, daemon := range s.DHCP.Daemons() {
		status.DHCPDaemons = append(status.DHCPDaemons, admin.DHCPDaemon(daemon))
	}
	if s.Watcher != nil {
		s.networks(&status)
		if what, since := s.waiting(); what != "" {
			status.Waiting, status.WaitingSince = what, &since
		}
		status.OtherNetwork = s.otherNetwork()
	}
	if s.Headroom != nil {
		status.Addresses = addressRanges(s.Headroom.Ranges())
	}
	if s.HostPorts != nil {
		said := s.HostPorts.Report()
		pods, mappings := s.HostPorts.Count()
		status.HostPorts = &admin.HostPorts{
			Pods: pods, Mappings: mappings, Unavailable: said.Unavailable, Listeners: said.Listeners, Flows: said.Flows,
		}
	}
	if s.Drift != nil {
		status.Drift = &admin.Drift{Mode: s.DriftMode, Remaking: len(s.Drift.Remaking())}
		for _, d := range s.Drift.Drifted() {
			status.Drift.Pods = append(status.Drift.Pods, d.Pod.String())
		}
	}
	return status
}

// networks adds the networks of the conf dir.
func (s *Source) networks(status *admin.Status) {
	now := s.Watcher.Snapshot()
	if network, err := s.Selection.Selected(); err == nil {
		status.Network, status.NetworkFile, status.Selected = network.Name, network.File, s.Selection.Reason()
		for _, how := range s.Chain.How(network) {
			status.NetworkPlugins = append(status.NetworkPlugins, admin.NetworkPlugin(how))
		}
	}
	if said := s.Chain.StatusReport(); said.Network != "" {
		status.NetworkStatus = "good"
		if said.Err != nil {
			status.NetworkStatus = fmt.Sprintf("fails since %s: %v", said.FailingSince.Format(time.RFC3339), said.Err)
		}
	}
	stats := s.Watcher.Stats()
	status.Watch = &admin.Watch{
		Scans: stats.Scans, Probes: stats.Probes, Rearms: stats.Rearms, LastScan: stats.LastScan, Error: stats.WatchError,
	}
	for _, r := range s.Selection.Reloads() {
		status.Reloads = append(status.Reloads, admin.Reload(r))
	}
	for _, network := range now.Networks {
		view := admin.Network{Name: network.Name, File: network.File, CNIVersion: network.CNIVersion, Stale: network.Stale}
		for _, p := range network.Plugins {
			view.Plugins = append(view.Plugins, p.Type)
		}
		status.Networks = append(status.Networks, view)
	}
	for _, p := range now.Problems {
		status.Problems = append(status.Problems, admin.Problem{File: p.File, Line: p.Line, Col: p.Col, Kind: string(p.Kind), Reason: p.Reason})
	}
	for _, p := range now.Plugins.All() {
		if p.Asked && !p.Usable() {
			status.Problems = append(status.Problems, admin.Problem{File: p.Path, Reason: p.Reason})
		}
	}
}

// runtime tells of the container runtime's side.
func (s *Source) runtime() *admin.Runtime {
	answer := s.Runtime.Last()
	view := new(admin.Runtime)
	if facts := answer.Facts; facts != nil {
		view.Name, view.Version = facts.Name, facts.Version
		view.ConfDir, view.BinDirs, view.Loaded = facts.ConfDir, facts.BinDirs, facts.Loaded
	}
	switch {
	case answer.Err != nil:
		view.Problem = answer.Err.Error()
	case answer.Silent >= upstream.Hung:
		view.Problem = fmt.Sprintf("it has not answered for %s", answer.Silent.Round(time.Second))
	}
	if s.Keeper != nil {
		view.Unserved = s.Keeper.Unserved()
		if err := s.Keeper.Ready(); err != nil && view.Problem == "" {
			view.Problem = err.Error()
		}
	}
	return view
}

// Plugins are what crinetctl probe shows.
func (s *Source) Plugins() admin.Plugins {
	all := admin.Plugins{Dirs: []admin.BinDir{}, Plugins: []admin.Plugin{}}
	if s.Watcher == nil {
		return all
	}
	found := s.Watcher.Snapshot().Plugins
	for _, dir := range found.Dirs() {
		all.Dirs = append(all.Dirs, admin.BinDir(dir))
	}
	for _, p := range found.All() {
		all.Plugins = append(all.Plugins, admin.Plugin{
			Name: p.Name, Path: p.Path, Versions: p.Versions, Reason: cmp.Or(p.Reason, p.Doubt), Shadowed: p.Shadowed,
		})
	}
	return all
}

// Pods are what crinetctl pods shows.
func (s *Source) Pods() ([]admin.Pod, error) {
	records, err := s.Engine.Records()
	if err != nil {
		return nil, err
	}
	pods := podViews(records)
	if s.Watcher != nil {
		s.flag(pods, records)
	}
	if s.HostPorts != nil {
		limited := s.HostPorts.Report().Limited
		for i := range pods {
			pods[i].HostPortsLimited = limited[pods[i].SandboxID]
		}
	}
	if s.Drift != nil {
		drifted := make(map[string]drift.Drift)
		for _, d := range s.Drift.Drifted() {
			drifted[d.Sandbox] = d
		}
		for i := range pods {
			if d, ok := drifted[pods[i].SandboxID]; ok {
				pods[i].Drift, pods[i].DriftSince = d.String(), &d.Since
			}
		}
	}
	return pods, nil
}

// flag marks the pods that are on another network than new pods get.
func (s *Source) flag(pods []admin.Pod, records []*journal.Record) {
	wanted := s.Selection.Wanted()
	elsewhere := make(map[string]bool)
	for _, r := range records {
		elsewhere[r.Attachment.ContainerID] = isElsewhere(r, wanted)
	}
	for i := range pods {
		pods[i].OtherNetwork = elsewhere[pods[i].SandboxID]
	}
}

// Forget is crinetctl forget.
func (s *Source) Forget(ctx context.Context, what admin.Forget) ([]admin.Pod, error) {
	forgotten, err := s.Engine.Forget(ctx, what.Sandbox, what.Reason)
	if err != nil {
		return nil, err
	}
	return podViews(forgotten), nil
}

// Try is a trial of the selected network.
func (s *Source) Try(ctx context.Context) (admin.Trial, error) {
	trial, err := s.Engine.Try(ctx)
	if err != nil {
		return admin.Trial{}, err
	}
	return admin.Trial{
		Network: trial.Network, Addresses: trial.Addresses, Add: trial.Add.Seconds(), Del: trial.Del.Seconds(),
	}, nil
}

func podViews(records []*journal.Record) []admin.Pod {
	pods := make([]admin.Pod, 0, len(records))
	for _, r := range records {
		if r.Trial && r.Tries == 0 {
			continue // no pod's; one that cannot be removed must be seen
		}
		pod := admin.Pod{
			Namespace: r.Pod.Namespace, Name: r.Pod.Name, UID: r.Pod.UID,
			SandboxID: r.Attachment.ContainerID, State: string(r.State),
			Network: r.Attachment.Network, NetNS: r.Attachment.NetNS, Addresses: engine.Addresses(r),
			HostPorts: []string{}, Steps: []admin.Step{}, Adopted: r.Adopted, Tries: r.Tries, LastError: r.LastError,
		}
		for _, mapping := range r.HostPorts {
			pod.HostPorts = append(pod.HostPorts, mapping.String())
		}
		for _, step := range r.Steps {
			pod.Steps = append(pod.Steps, admin.Step{Step: step.Step, Start: step.Start, Duration: step.Duration.Seconds()})
		}
		pods = append(pods, pod)
	}
	return pods
}
