package engine

import (
	"encoding/json"
	"net/netip"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"golang.org/x/sys/unix"
)

// isNetNS says whether a path is a namespace file, and not a leftover of one.
func isNetNS(path string) bool {
	var fs unix.Statfs_t
	return path != "" && unix.Statfs(path, &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

// addresses are those that a CNI result of any version gives the sandbox, with
// their prefix lengths. Addresses of interfaces on the node are left out.
func addresses(result json.RawMessage) []netip.Prefix {
	if len(result) == 0 {
		return nil
	}
	parsed, err := create.CreateFromBytes(result)
	if err != nil {
		return nil
	}
	converted, err := current.GetResult(parsed)
	if err != nil {
		return nil
	}
	var all []netip.Prefix
	for _, ip := range converted.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(converted.Interfaces) && converted.Interfaces[*i].Sandbox == "" {
			continue
		}
		address, ok := netip.AddrFromSlice(ip.Address.IP)
		if bits, _ := ip.Address.Mask.Size(); ok {
			all = append(all, netip.PrefixFrom(address.Unmap(), bits))
		}
	}
	return all
}
