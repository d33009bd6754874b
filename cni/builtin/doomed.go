package builtin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/internal/backoff"
)

const (
	// Doomed is the interface group (IFLA_GROUP of linux/if_link.h) of the links that
	// DEL has set down and that are still to be removed. Nothing else may use it: all
	// links in it are removed. It is "crin" in ASCII.
	Doomed uint32 = 0x6372696e

	// doomedName is what the sandbox's end is renamed to, with a number that the
	// kernel finds: the sandbox may get a new interface of the old name.
	doomedName = "crinetdel%d"

	// reapDelay is how long links wait for their removal. Most are gone by then: the
	// kernel removes them with the sandbox's namespace, which the runtime removes
	// after DEL.
	reapDelay = 250 * time.Millisecond
	// reapRetry is the wait after a failure, growing to maxReapRetry.
	reapRetry    = time.Second
	maxReapRetry = time.Minute
)

// cut takes the sandbox's interface away: nothing passes any more when it returns. A
// namespace or an interface that is gone is no error.
func (p *Plugins) cut(c *Call) error {
	if c.NetNS == "" {
		return nil
	}
	box, err := openSandbox(c.NetNS, nil)
	if errors.Is(err, errNoNetNS) {
		return nil
	}
	if err != nil {
		return err
	}
	defer box.close()
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer host.Close()
	link, err := box.link.LinkByName(c.IfName)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look %s up in %s: %w", c.IfName, c.NetNS, err)
	}
	if peer := box.peerOf(host, link); peer != nil {
		err = p.doom(box, link, peer)
	} else {
		err = box.link.LinkDel(link) // not of an ADD that ran here
	}
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("remove %s from %s: %w", c.IfName, c.NetNS, err)
	}
	return nil
}

// peerOf returns the other end of a veth in the sandbox, or nil if that is not on the
// node.
func (s *sandbox) peerOf(host *netlink.Handle, link netlink.Link) netlink.Link {
	if _, ok := link.(*netlink.Veth); !ok || link.Attrs().ParentIndex == 0 {
		return nil
	}
	peer, err := host.LinkByIndex(link.Attrs().ParentIndex)
	if err != nil {
		return nil
	}
	if _, ok := peer.(*netlink.Veth); !ok || peer.Attrs().ParentIndex != link.Attrs().Index {
		return nil
	}
	// An index says nothing without its namespace.
	id, err := host.GetNetNsIdByFd(int(s.file.Fd()))
	if err != nil || id != peer.Attrs().NetNsID {
		return nil
	}
	return peer
}

// doom closes the way between two ends of a veth pair and marks the pair for its
// removal.
func (p *Plugins) doom(box *sandbox, link, peer netlink.Link) error {
	request := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	header := nl.NewIfInfomsg(unix.AF_UNSPEC)
	header.Index, header.Change = int32(peer.Attrs().Index), unix.IFF_UP
	request.AddData(header)
	request.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(Doomed)))
	if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return err
	}
	select {
	case p.kick <- struct{}{}:
	default:
	}
	// A kernel before 6.2 renames only an interface that is down.
	if err := box.link.LinkSetDown(link); err != nil {
		return err
	}
	return box.link.LinkSetName(link, doomedName)
}

// Run removes links that DEL has marked, those of an earlier crinetd first, until ctx
// ends. It never holds up a call: links that cannot be removed carry nothing.
func (p *Plugins) Run(ctx context.Context) {
	retry := backoff.Backoff{First: reapRetry, Max: maxReapRetry}
	for wait := time.Duration(0); backoff.Sleep(ctx, wait); {
		if err := Reap(); err != nil {
			wait = retry.Next()
			p.log.Warn("links of pods that are gone are still on the node; crinetd tries again", "group", Doomed, "err", err)
			continue
		}
		retry.Reset()
		select {
		case <-p.kick:
			wait = reapDelay
		case <-ctx.Done():
		}
	}
}

// Reap removes all links of the group Doomed at once: the kernel waits for one set of
// grace periods, however many there are.
func Reap() error {
	request := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	request.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(Doomed)))
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("remove the links of interface group %d: %w", Doomed, err)
	}
	return nil
}
