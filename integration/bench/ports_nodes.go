package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
)

// portsConf is the network of all mappers' pods; the second value is one more
// plugin of the chain, or nothing.
const portsConf = `{
	"cniVersion": "1.0.0",
	"name": "mynet",
	"plugins": [
		{
			"type": "bridge",
			"bridge": "mynet0",
			"isDefaultGateway": true,
			"ipMasq": true,
			"hairpinMode": true,
			"ipam": {"type": "host-local", "subnet": "10.10.0.0/16"}
		}%s
	]
}
`

const portmapConf = `,
		{"type": "portmap", "backend": %q, "snat": true, "capabilities": {"portMappings": true}}`

// Who maps hostPorts.
const (
	crinetMapper   = "crinetd"
	iptablesMapper = "portmap, iptables"
	nftablesMapper = "portmap, nftables"
)

// mapper is one way to map hostPorts, on a node of its own.
type mapper struct {
	name   string
	node   *node.Node
	client *node.Client
	loaded int // mappings on the node that are not the measured pod's
}

// startMappers starts a node for each way, side by side.
func startMappers(ctx context.Context, kit *node.Kit) (mappers []*mapper, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closeMappers(mappers))
		}
	}()
	for _, name := range []string{crinetMapper, iptablesMapper, nftablesMapper} {
		n, err := kit.Start(ctx, node.Options{})
		if err != nil {
			return mappers, err
		}
		m := &mapper{name: name, node: n}
		mappers = append(mappers, m)
		if err := m.start(ctx); err != nil {
			return mappers, errors.Join(fmt.Errorf("start the node of %s: %w", name, err), errors.New(n.LogTails(20)))
		}
	}
	return mappers, nil
}

func closeMappers(mappers []*mapper) error {
	var errs []error
	for _, m := range mappers {
		errs = append(errs, m.node.Close())
	}
	return errors.Join(errs...)
}

// start starts the daemons and waits for the network.
func (m *mapper) start(ctx context.Context) (err error) {
	socket, portmap := node.ContainerdSocket, ""
	if _, backend, ok := strings.Cut(m.name, ", "); ok {
		portmap = fmt.Sprintf(portmapConf, backend)
	}
	if err := m.node.WriteConf("10-mynet.conflist", fmt.Sprintf(portsConf, portmap)); err != nil {
		return err
	}
	if err := m.node.StartContainerd(ctx); err != nil {
		return err
	}
	if m.name == crinetMapper {
		socket = node.CrinetdSocket
		if err := m.node.StartCrinetd(ctx, "--network-plugin=mynet"); err != nil {
			return err
		}
	}
	if m.client, err = m.node.Client(socket); err != nil {
		return err
	}
	ready, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	_, err = m.client.AwaitNetwork(ready, true)
	return err
}

// config describes a pod with hostPorts from first on, all to port 80.
func (m *mapper) config(name string, first, ports int) *runtimeapi.PodSandboxConfig {
	config := m.node.PodConfig(name)
	for i := range ports {
		config.PortMappings = append(config.PortMappings, &runtimeapi.PortMapping{
			Protocol: runtimeapi.Protocol_TCP, ContainerPort: serverPort, HostPort: int32(first + i),
		})
	}
	return config
}

// Ports of the mappings that are only there, and of those that are measured.
const (
	loadedPorts   = 10000
	measuredPorts = 30000
	serverPort    = 80
)

// load brings the node's mappings to this number, which is a multiple of
// perPod. Their pods are real, but that those of portmap's iptables backend
// would take minutes: one is, and its rules are there once more for each
// of the others, with other ports.
func (m *mapper) load(ctx context.Context, mappings int) error {
	perPod := 1000
	if m.name == iptablesMapper {
		perPod = 100
	}
	if m.name == iptablesMapper && m.loaded > 0 {
		return m.copyRules(ctx, perPod, mappings)
	}
	for ; m.loaded < mappings; m.loaded += perPod {
		config := m.config(fmt.Sprintf("load-%d", m.loaded), loadedPorts+m.loaded, perPod)
		if _, _, err := runPod(ctx, m.node, m.client, config, ""); err != nil {
			return err
		}
		if m.name == iptablesMapper {
			m.loaded += perPod
			return m.copyRules(ctx, perPod, mappings)
		}
	}
	return nil
}

var (
	podChain = regexp.MustCompile(`CNI-DN-[0-9a-f]+`)
	dports   = regexp.MustCompile(`(--dports?) ([0-9,]+)`)
)

// copyRules copies the rules of the first pod that was loaded.
func (m *mapper) copyRules(ctx context.Context, perPod, mappings int) error {
	saved, err := m.node.Run(ctx, "iptables-save", "-t", "nat")
	if err != nil {
		return err
	}
	var rules []string
	for line := range strings.Lines(saved) {
		if strings.HasPrefix(line, "-A") && podChain.MatchString(line) && !strings.Contains(line, copiedChain) {
			rules = append(rules, line)
		}
	}
	if len(rules) < perPod {
		return fmt.Errorf("a pod with %d hostPorts has %d iptables rules:\n%s", perPod, len(rules), saved)
	}
	var restore strings.Builder
	restore.WriteString("*nat\n")
	for ; m.loaded < mappings; m.loaded += perPod {
		chain := fmt.Sprintf("%s%05d", copiedChain, m.loaded)
		fmt.Fprintf(&restore, ":%s - [0:0]\n", chain)
		for _, rule := range rules {
			restore.WriteString(moveRule(rule, chain, m.loaded))
		}
	}
	restore.WriteString("COMMIT\n")
	_, err = m.node.RunInput(ctx, strings.NewReader(restore.String()), "iptables-restore", "--noflush")
	return err
}

// copiedChain begins the names of chains that no plugin made. The plugin's own
// have hexadecimal digits there.
const copiedChain = "CNI-DN-bbbb"

// moveRule is the rule for another chain, its ports higher by offset.
func moveRule(rule, chain string, offset int) string {
	rule = podChain.ReplaceAllString(rule, chain)
	return dports.ReplaceAllStringFunc(rule, func(match string) string {
		parts := dports.FindStringSubmatch(match)
		ports := strings.Split(parts[2], ",")
		for i, port := range ports {
			// The expression lets only digits through.
			number, _ := strconv.Atoi(port)
			ports[i] = strconv.Itoa(number + offset)
		}
		return parts[1] + " " + strings.Join(ports, ",")
	})
}

// times of one pod's way.
type times struct{ run, stop time.Duration }

// cycle runs, stops and removes a pod with so many hostPorts.
func (m *mapper) cycle(ctx context.Context, name string, ports int) (t times, err error) {
	id, run, err := runPod(ctx, m.node, m.client, m.config(name, measuredPorts, ports), "")
	if err != nil {
		return t, err
	}
	t.run = run
	if t.stop, err = stopPod(ctx, m.client, id); err != nil {
		return t, err
	}
	return t, removePod(ctx, m.client, id)
}
