package builtin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/crinet-project/crinet/internal/dirs"
)

// Defaults of the plugin flannel.
const (
	defaultSubnetFile = "/run/flannel/subnet.env"
	defaultFlannelDir = "/var/lib/cni/flannel"
)

// flannelConf is the configuration of the plugin flannel. It delegates to another plugin
// what it is itself told of addresses by flanneld, in a file.
type flannelConf struct {
	CNIVersion    string          `json:"cniVersion"`
	Name          string          `json:"name"`
	Type          string          `json:"type"`
	Capabilities  map[string]bool `json:"capabilities"`
	SubnetFile    string          `json:"subnetFile"`
	DataDir       string          `json:"dataDir"`
	Delegate      map[string]any  `json:"delegate"`
	IPAM          map[string]any  `json:"ipam"`
	RuntimeConfig json.RawMessage `json:"runtimeConfig"`
	PrevResult    json.RawMessage `json:"prevResult"`
}

func readFlannelConf(config []byte) (*flannelConf, error) {
	conf := &flannelConf{SubnetFile: defaultSubnetFile, DataDir: defaultFlannelDir}
	return conf, strict(config, conf)
}

// knownFlannel returns what Known does: its delegate must be one that can run here.
func knownFlannel(config []byte) (parts []string, delegate []byte, err error) {
	conf, err := readFlannelConf(config)
	if err != nil {
		return nil, nil, err
	}
	env, err := readSubnetEnv(conf.SubnetFile)
	if err != nil {
		return nil, nil, err
	}
	if delegate, err = conf.render(env); err != nil {
		return nil, nil, err
	}
	var to types.PluginConf
	if err := json.Unmarshal(delegate, &to); err != nil {
		return nil, nil, fmt.Errorf("its delegate: %w", err)
	}
	if to.Type != Bridge && to.Type != PTP {
		return nil, nil, fmt.Errorf("its delegate %q is not built in", to.Type)
	}
	if parts, _, err = Known(to.Type, delegate); err != nil {
		return nil, nil, fmt.Errorf("its delegate %s: %w", to.Type, err)
	}
	return append([]string{Flannel}, parts...), delegate, nil
}

// FlannelDelegate returns the configuration that flannel gives to its delegate, of
// whatever type that is, by what flanneld's file says now. It lacks runtimeConfig and
// prevResult.
func FlannelDelegate(config []byte) ([]byte, error) {
	conf := &flannelConf{SubnetFile: defaultSubnetFile, DataDir: defaultFlannelDir}
	if err := json.Unmarshal(config, conf); err != nil {
		return nil, err
	}
	env, err := readSubnetEnv(conf.SubnetFile)
	if err != nil {
		return nil, err
	}
	return conf.render(env)
}

// render returns the configuration of the delegate, without runtimeConfig.
func (conf *flannelConf) render(env *subnetEnv) ([]byte, error) {
	delegate := maps.Clone(conf.Delegate)
	if delegate == nil {
		delegate = make(map[string]any)
	}
	for _, key := range []string{"name", "ipam"} {
		if _, has := delegate[key]; has {
			return nil, fmt.Errorf("its delegate has the key %s, which flannel sets", key)
		}
	}
	defaults := map[string]any{"type": Bridge, "ipMasq": !env.masq, "mtu": env.mtu}
	if typ, has := delegate["type"]; !has || typ == Bridge {
		defaults["isGateway"] = true
	}
	for key, value := range defaults {
		if _, has := delegate[key]; !has {
			delegate[key] = value
		}
	}
	delegate["name"] = conf.Name
	if conf.CNIVersion != "" {
		delegate["cniVersion"] = conf.CNIVersion
	}
	var err error
	if delegate["ipam"], err = conf.renderIPAM(env); err != nil {
		return nil, err
	}
	return json.Marshal(delegate)
}

// renderIPAM adds the node's subnets and routes to the whole network.
func (conf *flannelConf) renderIPAM(env *subnetEnv) (map[string]any, error) {
	ipam := maps.Clone(conf.IPAM)
	if ipam == nil {
		ipam = make(map[string]any)
	}
	if _, has := ipam["type"]; !has {
		ipam["type"] = HostLocal
	}
	var ranges [][]map[string]any
	for _, subnet := range env.subnets {
		ranges = append(ranges, []map[string]any{{"subnet": subnet.String()}})
	}
	ipam["ranges"] = ranges
	// The binary knows no more of a route, and drops the rest.
	type route struct {
		Dst string `json:"dst"`
		GW  string `json:"gw,omitempty"`
	}
	routes := []route{}
	if given, has := ipam["routes"]; has {
		text, err := json.Marshal(given)
		if err == nil {
			err = strict(text, &routes)
		}
		if err != nil {
			return nil, fmt.Errorf("its ipam.routes: %w", err)
		}
	}
	for _, network := range env.networks {
		routes = append(routes, route{Dst: network.String()})
	}
	ipam["routes"] = routes
	return ipam, nil
}

// subnetEnv is what flanneld tells of the node.
type subnetEnv struct {
	networks, subnets []*net.IPNet // IPv4 first
	mtu               uint
	masq              bool // flanneld masquerades
}

// maxSubnetEnv bounds the file, in bytes.
const maxSubnetEnv = 64 << 10

func readSubnetEnv(path string) (*subnetEnv, error) {
	text, err := dirs.ReadFile(path, maxSubnetEnv)
	if err != nil {
		return nil, err
	}
	values := make(map[string]string)
	for line := range bytes.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimRight(string(line), "\r\n"), "=")
		values[key] = value
	}
	env := &subnetEnv{}
	for _, family := range []string{"FLANNEL_", "FLANNEL_IPV6_"} {
		for part, list := range map[string]*[]*net.IPNet{"NETWORK": &env.networks, "SUBNET": &env.subnets} {
			value, has := values[family+part]
			if !has {
				continue
			}
			_, network, err := net.ParseCIDR(value)
			if err != nil {
				return nil, fmt.Errorf("%s: %s%s: %w", path, family, part, err)
			}
			*list = append(*list, network)
		}
	}
	mtu, err := strconv.ParseUint(values["FLANNEL_MTU"], 10, 32)
	if err != nil {
		return nil, fmt.Errorf("%s: FLANNEL_MTU: %w", path, err)
	}
	masq, told := values["FLANNEL_IPMASQ"]
	if !told || len(env.networks) == 0 || len(env.subnets) == 0 {
		return nil, fmt.Errorf("%s is not complete", path)
	}
	env.mtu, env.masq = uint(mtu), masq == "true"
	return env, nil
}

// delegated returns the call of the delegate, with the configuration that was rendered
// when the attachment was planned, and the file in which flannel's binary keeps and
// looks for that.
func delegated(c *Call) (call *Call, kept string, err error) {
	conf, err := readFlannelConf(c.Config)
	if err != nil {
		return nil, "", err
	}
	var delegate types.PluginConf
	if err := json.Unmarshal(c.Delegate, &delegate); err != nil {
		return nil, "", fmt.Errorf("the delegate's configuration: %w", err)
	}
	to := *c
	to.Type, to.Config, to.Delegate = delegate.Type, c.Delegate, nil
	return &to, filepath.Join(conf.DataDir, c.ContainerID), nil
}

func (p *Plugins) flannelAdd(ctx context.Context, c *Call) (*current.Result, error) {
	call, kept, err := delegated(c)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(kept), 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(kept, c.Delegate, 0o600); err != nil {
		return nil, err
	}
	return p.run(ctx, call)
}

// flannelCheck does nothing, as the binary's CHECK.
func flannelCheck(context.Context, *Call) (*current.Result, error) { return nil, nil }

func (p *Plugins) flannelDel(ctx context.Context, c *Call) (*current.Result, error) {
	call, kept, err := delegated(c)
	if err != nil {
		return nil, err
	}
	if _, err := p.run(ctx, call); err != nil {
		return nil, err
	}
	if err := os.Remove(kept); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the delegate's configuration: %w", err)
	}
	return nil, nil
}
