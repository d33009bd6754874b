package engine

import (
	"encoding/json"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/cni"
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
	all, err := cni.Addresses(result)
	if err != nil {
		return nil
	}
	return all
}
