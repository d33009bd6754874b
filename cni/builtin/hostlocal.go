package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"

	"github.com/crinet-project/crinet/cni/wire"
)

// hostLocalAdd reserves an address of each range for a sandbox.
func hostLocalAdd(ctx context.Context, c *Call) (*current.Result, error) {
	result := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	store, err := openAddresses(ctx, c)
	if err != nil {
		return nil, err
	}
	defer store.close()
	if result.DNS, err = resolvConf(store.config.ResolvConf); err != nil {
		return nil, err
	}
	if result.IPs, err = store.reserve(c); err != nil {
		if len(result.IPs) > 0 {
			err = errors.Join(err, store.release(c))
		}
		return nil, err
	}
	result.Routes = store.config.Routes
	return asPrinted(result, configVersion(c.Config))
}

// reserve reserves an address of each range set, the ones asked for where they fit.
// With an error, too, it returns what it has reserved: if that is nothing, the
// sandbox keeps what it had before.
func (a *addresses) reserve(c *Call) (reserved []*current.IPConfig, err error) {
	wanted := make(map[string]net.IP)
	for _, ip := range a.config.IPArgs {
		wanted[ip.String()] = ip
	}
	for i, ranges := range a.config.Ranges {
		var want net.IP
		for name, ip := range wanted {
			if ranges.Contains(ip) {
				want = ip
				delete(wanted, name)
				break
			}
		}
		ip, err := allocator.NewIPAllocator(&ranges, a, i).Get(c.ContainerID, c.IfName, want)
		if err != nil {
			return reserved, fmt.Errorf("failed to allocate for range %d: %w", i, err)
		}
		reserved = append(reserved, ip)
	}
	if len(wanted) > 0 {
		return reserved, fmt.Errorf("addresses that no range has were asked for: %v", wanted)
	}
	return reserved, nil
}

// hostLocalDel frees the sandbox's addresses. It may be called again.
func hostLocalDel(ctx context.Context, c *Call) error {
	store, err := openAddresses(ctx, c)
	if err != nil {
		return err
	}
	defer store.close()
	return store.release(c)
}

// hostLocalCheck says whether the sandbox has an address at all.
func hostLocalCheck(ctx context.Context, c *Call) error {
	store, err := openAddresses(ctx, c)
	if err != nil {
		return err
	}
	defer store.close()
	names, err := store.of(c.ContainerID, c.IfName)
	if err == nil && len(names) == 0 {
		err = fmt.Errorf("host-local has no address of container %s", c.ContainerID)
	}
	return err
}

// asPrinted returns what a plugin gets from an IPAM plugin that prints this result in a
// version: older versions know less of a route.
func asPrinted(result *current.Result, version string) (*current.Result, error) {
	printed, err := encodeResult(result, version)
	if err != nil {
		return nil, err
	}
	read, err := create.Create(version, printed)
	if err != nil {
		return nil, err
	}
	return current.NewResultFromResult(read)
}

// resolvConf reads the DNS settings of a file in the form of resolv.conf(5); of no
// file if path is empty.
func resolvConf(path string) (dns types.DNS, err error) {
	if path == "" {
		return dns, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return dns, err
	}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) < 2 || strings.HasPrefix(words[0], "#") || strings.HasPrefix(words[0], ";") {
			continue
		}
		switch words[0] {
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, words[1])
		case "domain":
			dns.Domain = words[1]
		case "search":
			dns.Search = append(dns.Search, words[1:]...)
		case "options":
			dns.Options = append(dns.Options, words[1:]...)
		}
	}
	return dns, nil
}

// ipamType returns the type of the IPAM plugin that a configuration names, empty for
// none. An IPAM plugin that is not built in is an error: such a configuration is
// executed.
func ipamType(config []byte) (string, error) {
	var conf types.PluginConf
	if err := json.Unmarshal(config, &conf); err != nil {
		return "", err
	}
	switch conf.IPAM.Type {
	case "", HostLocal:
		return conf.IPAM.Type, nil
	}
	return "", wire.Errorf(wire.CodeInvalidConfig, "IPAM plugin %q is not built in", conf.IPAM.Type)
}
