package hostport

import (
	"context"
	"net/netip"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// host is all that a Manager reads and changes on the node; kernel.Kernel is it.
// Tests let single calls fail here.
type host interface {
	tableHost
	linkHost
	trafficHost
	Close() error
}

// tableHost is the nftables table. Calls must come one at a time, but for WatchTable.
type tableHost interface {
	Intact() (why string, err error)
	Elements(sets ...string) (map[kernel.Key]kernel.Element, error)
	Change(kernel.Update) error
	Replace([]kernel.Element) error
	Drop() error
	WatchTable(ctx context.Context, changed func(what string)) error
}

// linkHost is the node's interfaces, addresses and routes.
type linkHost interface {
	PathTo(netip.Addr) (kernel.Path, error)
	RouteLocalnet(names []string) (map[string]bool, error)
	SetRouteLocalnet(name string, on bool) error
	IsLocal(netip.Addr) (bool, error)
	Addresses() ([]netip.Addr, error)
	AddressesOn(names []string) ([]netip.Addr, error)
	NodePorts(interfaces []string) (map[kernel.NodePort]string, error)
	WatchAddresses(ctx context.Context, names []string, changed func(what string)) error
}

// trafficHost is connection tracking, and the sockets of host processes.
type trafficHost interface {
	CheckFlows() error
	DeleteFlows([]kernel.FlowFilter) error
	DeleteFlowsIf(kernel.FlowQuery, func(kernel.Flow) (bool, error)) error
	Listeners(family, protocol byte, port uint16) ([]kernel.Listener, error)
	Holders(context.Context, []kernel.Listener) (map[uint32]string, error)
}
