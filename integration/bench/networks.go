package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// network is one configuration, in two copies that differ in names and addresses
// alone: crinetd's, and that of the pods which containerd networks itself.
type network struct {
	row, what string
	// conf is the configuration; NAME stands for the network's name, NUMBER for the
	// second number of its addresses, MORE for one more plugin.
	conf string
	// mapper is a plugin that the copy of containerd has besides.
	mapper string
	ports  int      // hostPorts of the pods
	flags  []string // of crinetd
	// run and stop are the most that a call may take of the direct one's time; 0 if
	// that is not said.
	run, stop float64
}

// networks returns the rows of pods one after the other.
func networks() []network {
	return []network{
		{row: "bridge", what: "bridge", conf: seedBridge, run: 0.75, stop: 0.45},
		{row: "port", what: "bridge, one hostPort (direct: portmap, nftables)", conf: bridgeList, mapper: portmapNFT, ports: 1, run: 0.60, stop: 0.30},
		{row: "off", what: "bridge, --builtin-plugins=off", conf: seedBridge, flags: []string{"--builtin-plugins=off"}, run: 1.03, stop: 1.03},
		{row: "flannel", what: "flannel and portmap", conf: flannelList},
		{row: "ptp", what: "ptp", conf: ptpConf},
	}
}

// seedBridge is the network that the other rows are to be compared with.
const seedBridge = `{
	"cniVersion": "0.3.0",
	"name": "NAME",
	"type": "bridge",
	"bridge": "NAME0",
	"isDefaultGateway": true,
	"forceAddress": false,
	"ipMasq": true,
	"hairpinMode": true,
	"ipam": {"type": "host-local", "subnet": "10.NUMBER.0.0/16"}
}
`

// bridgeList is the same as a list, with room for one more plugin.
const bridgeList = `{
	"cniVersion": "1.0.0",
	"name": "NAME",
	"plugins": [{
		"type": "bridge",
		"bridge": "NAME0",
		"isDefaultGateway": true,
		"ipMasq": true,
		"hairpinMode": true,
		"ipam": {"type": "host-local", "subnet": "10.NUMBER.0.0/16"}
	}MORE]
}
`

const portmapNFT = `, {"type": "portmap", "backend": "nftables", "snat": true, "capabilities": {"portMappings": true}}`

// flannelList is flannel's own file, but for the names of what two networks on one
// node cannot share.
const flannelList = `{
	"name": "NAME",
	"cniVersion": "0.3.1",
	"plugins": [
		{
			"type": "flannel",
			"subnetFile": "/run/flannel/NAME.env",
			"delegate": {"bridge": "NAME0", "hairpinMode": true, "isDefaultGateway": true}
		},
		{"type": "portmap", "capabilities": {"portMappings": true}}
	]
}
`

const ptpConf = `{
	"cniVersion": "1.0.0",
	"name": "NAME",
	"type": "ptp",
	"ipMasq": true,
	"ipam": {"type": "host-local", "subnet": "10.NUMBER.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]}
}
`

// subnetFile is what flannel's daemon writes for its plugin.
const subnetFile = "FLANNEL_NETWORK=10.%[1]s.0.0/16\nFLANNEL_SUBNET=10.%[1]s.0.1/17\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"

// The names of a network's two copies.
func (w network) throughName() string   { return "our" + w.row }
func (w network) directName() string    { return "dir" + w.row }
func (w network) directHandler() string { return "direct-" + w.row }
func (w network) directConfDir() string { return "/etc/cni/direct-" + w.row + ".d" }

// write writes both copies; number tells networks apart.
func (w network) write(s *sides, number int) error {
	copies := []struct{ dir, name, mapper, subnet string }{
		{"/etc/cni/net.d", w.throughName(), "", fmt.Sprint(10 + 2*number)},
		{w.directConfDir(), w.directName(), w.mapper, fmt.Sprint(11 + 2*number)},
	}
	for _, c := range copies {
		conf := strings.NewReplacer("NAME", c.name, "NUMBER", c.subnet, "MORE", c.mapper).Replace(w.conf)
		if err := s.node.WriteFile(c.dir+"/10-"+c.name+extension(w.conf), conf); err != nil {
			return err
		}
		if err := s.node.WriteFile("/run/flannel/"+c.name+".env", fmt.Sprintf(subnetFile, c.subnet)); err != nil {
			return err
		}
	}
	return nil
}

func extension(conf string) string {
	if conf == bridgeList || conf == flannelList {
		return ".conflist"
	}
	return ".conf"
}

// measure runs pairs of pods on the network and adds its rows.
func (w network) measure(ctx context.Context, s *sides, o options, t *table) error {
	if err := s.use(ctx, w); err != nil {
		return err
	}
	var run, stop series
	for round := range warmups + o.rounds {
		runTook, stopTook, err := s.pair(ctx, w, round)
		if err != nil {
			return err
		}
		if round >= warmups {
			run.add(runTook...)
			stop.add(stopTook...)
		}
	}
	t.addRatio("RunPodSandbox, "+w.what, run, w.run)
	t.addRatio("StopPodSandbox, "+w.what, stop, w.stop)
	return nil
}

// ways are the two ways to run a pod on a network, in the order of a round's times.
func (s *sides) ways(w network) []way {
	return []way{direct: {s.direct, w.directHandler()}, through: {s.through, ""}}
}

// podConfig describes a pod of the network. Two pods at once have hostPorts of
// their own.
func (s *sides) podConfig(w network, name string, side int) *runtimeapi.PodSandboxConfig {
	config := s.node.PodConfig(name)
	for i := range w.ports {
		config.PortMappings = append(config.PortMappings, &runtimeapi.PortMapping{
			Protocol: runtimeapi.Protocol_TCP, ContainerPort: serverPort, HostPort: int32(measuredPorts + 1000*side + i),
		})
	}
	return config
}

// pair runs, stops and removes one pod each way. Who is first changes.
func (s *sides) pair(ctx context.Context, w network, round int) (run, stop []time.Duration, err error) {
	ways := s.ways(w)
	order := []int{round % 2, 1 - round%2}
	run, stop = make([]time.Duration, 2), make([]time.Duration, 2)
	ids := make([]string, 2)
	for _, i := range order {
		config := s.podConfig(w, fmt.Sprintf("%s-%d-%d", w.row, round, i), i)
		if ids[i], run[i], err = runPod(ctx, s.node, ways[i].client, config, ways[i].handler); err != nil {
			return nil, nil, err
		}
	}
	for _, i := range order {
		if stop[i], err = stopPod(ctx, ways[i].client, ids[i]); err != nil {
			return nil, nil, err
		}
	}
	for _, i := range order {
		if err := removePod(ctx, ways[i].client, ids[i]); err != nil {
			return nil, nil, err
		}
	}
	return run, stop, nil
}
