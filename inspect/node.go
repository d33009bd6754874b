package inspect

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
)

// Node is what inspections share that follow each other within a moment: what was read
// of the node is not read again. It is for one goroutine at a time.
type Node struct {
	host      *netlink.Handle         // in the caller's namespace
	addresses []netlink.Addr          // the node's; nil until somebody asks
	links     map[string]netlink.Link // name -> interface that is no pod's alone
	sysctls   map[string]string       // name -> value
}

// OpenNode opens what inspections share, in the network namespace of the caller.
func OpenNode() (*Node, error) {
	host, err := netlink.NewHandle(netlinkRoute)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := host.SetSocketTimeout(patience); err != nil {
		host.Close()
		return nil, err
	}
	return &Node{host: host, links: make(map[string]netlink.Link), sysctls: make(map[string]string)}, nil
}

// Close closes it.
func (n *Node) Close() { n.host.Close() }

// Inspect is the function Inspect.
func (n *Node) Inspect(ctx context.Context, s Subject) []Finding {
	i := &inspection{subject: s, netns: s.Attachment.NetNS, node: n, host: n.host}
	defer i.close()
	i.inspect(ctx)
	return i.findings
}

// allAddresses are the node's. They are listed once.
func (n *Node) allAddresses() ([]netlink.Addr, error) {
	if n.addresses != nil {
		return n.addresses, nil
	}
	all, err := listed(func() ([]netlink.Addr, error) { return n.host.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the node's addresses: %w", err)
	}
	n.addresses = all
	return all, nil
}

// linkByName looks an interface of the node up. A bridge, which many sandboxes share, is
// looked up once.
func (n *Node) linkByName(name string) (netlink.Link, error) {
	if link := n.links[name]; link != nil {
		return link, nil
	}
	link, err := n.host.LinkByName(name)
	if err == nil && link.Type() == "bridge" {
		n.links[name] = link
	}
	return link, err
}

// linkByIndex is linkByName by the index.
func (n *Node) linkByIndex(index int) (netlink.Link, error) {
	for _, link := range n.links {
		if link.Attrs().Index == index {
			return link, nil
		}
	}
	return n.host.LinkByIndex(index)
}

// sysctl reads a sysctl once. The error is os.ErrNotExist if there is none.
func (n *Node) sysctl(key string) (string, error) {
	if value, ok := n.sysctls[key]; ok {
		return value, nil
	}
	text, err := os.ReadFile(filepath.Join("/proc/sys", key))
	if err != nil {
		return "", err
	}
	n.sysctls[key] = strings.TrimSpace(string(text))
	return n.sysctls[key], nil
}
