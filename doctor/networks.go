package doctor

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/crinet-project/crinet/config"
)

// networks are what the conf dir holds.
type networks struct {
	// all are those of the files that can be read, in the order of their files.
	all []*network
	// broken are the files that cannot: file:line:column: reason.
	broken []string
	err    error // why the conf dir cannot be read
}

// network is one network configuration, as far as checks read it. Unknown keys are
// other people's.
type network struct {
	File    string   `json:"-"`
	Name    string   `json:"name"`
	Plugins []plugin `json:"plugins"`
}

// plugin is one plugin of a network's chain.
type plugin struct {
	Type         string          `json:"type"`
	Bridge       string          `json:"bridge"`
	MTU          int             `json:"mtu"`
	IsGateway    bool            `json:"isGateway"`
	IsDefault    bool            `json:"isDefaultGateway"`
	IPAM         ipam            `json:"ipam"`
	Capabilities map[string]bool `json:"capabilities"`
	// SubnetFile, DataDir and Delegate are flannel's.
	SubnetFile string  `json:"subnetFile"`
	DataDir    string  `json:"dataDir"`
	Delegate   *plugin `json:"delegate"`
}

// ipam is the configuration of addresses, as host-local has it.
type ipam struct {
	Type    string        `json:"type"`
	DataDir string        `json:"dataDir"`
	Ranges  [][]addrRange `json:"ranges"`
	addrRange
}

// addrRange is one range of addresses.
type addrRange struct {
	Subnet  string `json:"subnet"`
	Start   string `json:"rangeStart"`
	End     string `json:"rangeEnd"`
	Gateway string `json:"gateway"`
}

// defaultBridge is the plugin bridge's default (plugins/main/bridge).
const defaultBridge = "cni0"

// confDir returns what crinetd's conf dir holds.
func (n *Node) confDir(ctx context.Context) (*networks, error) {
	return n.networks.get(ctx, func(context.Context) (*networks, error) { return n.readNetworks(n.Options.CNIConfDir), nil })
}

// readNetworks reads a conf dir.
func (n *Node) readNetworks(dir string) *networks {
	found := config.ReadDir(n.path(dir))
	s := &networks{err: found.Err}
	for _, f := range found.Files {
		path := filepath.Join(dir, f.Name)
		if _, problem := config.ValidateFile(n.path(path), nil); problem != nil {
			problem.File = strings.TrimPrefix(problem.File, strings.TrimSuffix(filepath.Clean(n.Root), "/"))
			s.broken = append(s.broken, problem.String())
			continue
		}
		net, err := decodeNetwork(f.Data)
		if err != nil {
			s.broken = append(s.broken, path+": "+err.Error())
			continue
		}
		for name, folder := range found.Folders { // plugins in the network's folder
			for _, extra := range folder.Files {
				var p plugin
				if name == net.Name && json.Unmarshal(extra.Data, &p) == nil && p.Type != "" {
					net.Plugins = append(net.Plugins, p)
				}
			}
		}
		net.File = path
		n.expand(net)
		s.all = append(s.all, net)
	}
	return s
}

// decodeNetwork reads a configuration list, or a single plugin's configuration.
func decodeNetwork(data []byte) (*network, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	net := &network{}
	if err := json.Unmarshal(data, net); err != nil {
		return nil, err
	}
	if len(net.Plugins) == 0 {
		var only plugin
		if err := json.Unmarshal(data, &only); err != nil {
			return nil, err
		}
		if only.Type != "" {
			net.Plugins = []plugin{only}
		}
	}
	return net, nil
}

// expand puts flannel's delegate in its place, as flanneld's file describes it.
func (n *Node) expand(net *network) {
	for i, p := range net.Plugins {
		if p.Type != "flannel" {
			continue
		}
		delegate := plugin{Type: "bridge"}
		if p.Delegate != nil {
			delegate = *p.Delegate
			delegate.Type = cmp.Or(delegate.Type, "bridge")
		}
		delegate.IsGateway = true
		for _, l := range n.grep([]string{cmp.Or(p.SubnetFile, flannelEnv)}, func(string) bool { return true }) {
			key, value, _ := strings.Cut(l.Text, "=")
			switch {
			case strings.HasSuffix(key, "SUBNET") && strings.HasPrefix(key, "FLANNEL_"):
				delegate.IPAM.Type = "host-local"
				delegate.IPAM.Ranges = append(delegate.IPAM.Ranges, []addrRange{{Subnet: masked(value)}})
			case key == "FLANNEL_MTU" && delegate.MTU == 0:
				_, _ = fmt.Sscanf(value, "%d", &delegate.MTU) // stays 0
			}
		}
		net.Plugins[i].Delegate = &delegate
	}
}

// flannelEnv is where flanneld tells its subnet.
const flannelEnv = "/run/flannel/subnet.env"

// masked is a prefix without its host part.
func masked(text string) string {
	if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
		return p.Masked().String()
	}
	return text
}

// interfaces are the plugins of the chain that make the pod's interface, with those
// that flannel delegates to in their places.
func (net *network) interfaces() []plugin {
	var all []plugin
	for _, p := range net.Plugins {
		if p.Delegate != nil {
			p = *p.Delegate
		}
		all = append(all, p)
	}
	return all
}

// has says whether the chain has a plugin of the type.
func (net *network) has(typ string) bool {
	return slices.ContainsFunc(net.Plugins, func(p plugin) bool { return p.Type == typ })
}

// bridges are the bridges that the network's pods are at.
func (net *network) bridges() []string {
	var names []string
	for _, p := range net.interfaces() {
		if p.Type == "bridge" {
			names = append(names, cmp.Or(p.Bridge, defaultBridge))
		}
	}
	return names
}

// rangeSets are the sets of ranges of a plugin's addresses: its own, or else the
// node's pod CIDRs where it takes those.
func (p *plugin) rangeSets(podCIDRs []string) [][]addrRange {
	sets := slices.Clone(p.IPAM.Ranges)
	if p.IPAM.Subnet != "" {
		sets = append([][]addrRange{{p.IPAM.addrRange}}, sets...)
	}
	if len(sets) == 0 && p.Capabilities["ipRanges"] {
		for _, cidr := range podCIDRs {
			sets = append(sets, []addrRange{{Subnet: cidr}})
		}
	}
	return sets
}

// subnets are the prefixes that the network's pods have addresses from.
func (net *network) subnets(podCIDRs []string) []netip.Prefix {
	var all []netip.Prefix
	for _, p := range net.interfaces() {
		for _, set := range p.rangeSets(podCIDRs) {
			for _, r := range set {
				if prefix, err := netip.ParsePrefix(r.Subnet); err == nil {
					all = append(all, prefix.Masked())
				}
			}
		}
	}
	return all
}

// podCIDRs are the node's, as crinetd knows them.
func (n *Node) podCIDRs(ctx context.Context) []string {
	if c, err := n.askCrinetd(ctx); err == nil && len(c.PodCIDRs) > 0 {
		return c.PodCIDRs
	}
	var cidrs []string
	for _, p := range n.Options.PodCIDRs {
		cidrs = append(cidrs, p.String())
	}
	return cidrs
}

// selected returns the network that new pods get: crinetd's word, or else what its
// flags say. nil if there is none.
func (n *Node) selected(ctx context.Context) *network {
	all, err := n.confDir(ctx)
	if err != nil || n.Options.Noop() {
		return nil
	}
	want := n.Options.NetworkPlugin
	if c, err := n.askCrinetd(ctx); err == nil && c.Network != "" {
		want = c.Network
	}
	if want == config.PluginCNI {
		if len(all.all) == 0 {
			return nil
		}
		return all.all[0]
	}
	for _, net := range all.all {
		if net.Name == want {
			return net
		}
	}
	for _, net := range all.all {
		if len(net.Plugins) > 0 && net.Plugins[0].Type == want {
			return net
		}
	}
	return nil
}

// podSubnets are the selected network's, by IP family.
func (n *Node) podSubnets(ctx context.Context) (v4, v6 []netip.Prefix) {
	net := n.selected(ctx)
	if net == nil {
		return nil, nil
	}
	for _, p := range net.subnets(n.podCIDRs(ctx)) {
		if p.Addr().Is4() {
			v4 = append(v4, p)
		} else {
			v6 = append(v6, p)
		}
	}
	return v4, v6
}
