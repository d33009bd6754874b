package drift

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/internal/backoff"
)

const (
	// eventBuffer is the receive buffer for notifications, in bytes. What is lost in
	// spite of it is found in the next interval.
	eventBuffer = 1 << 20
	// everyInterface is the index in notices of settings that are for all interfaces.
	everyInterface = 0
	// netconfIndex is NETCONFA_IFINDEX of linux/netconf.h.
	netconfIndex = 1
)

// links are the node's interfaces as notifications tell of them.
type links map[int]link

type link struct {
	name   string
	up     bool
	master uint32
}

// listen has pods looked at when something of theirs changes on the node, until ctx
// ends. Without notifications pods are looked at in intervals only.
func (w *Watcher) listen(ctx context.Context) {
	wait := backoff.Backoff{First: time.Second, Max: time.Minute}
	told := false
	for {
		err := w.hear(ctx)
		if ctx.Err() != nil {
			return
		}
		if !told {
			told = true
			w.Log.Warn("changes of the node's interfaces are noticed in intervals only for now", "interval", w.Interval, "err", err)
		}
		if !backoff.Sleep(ctx, wait.Next()) {
			return
		}
	}
}

// hear listens to the kernel until ctx ends or listening fails.
func (w *Watcher) hear(ctx context.Context) (err error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.SetReadBuffer(eventBuffer); err != nil {
		return fmt.Errorf("size a netlink socket's receive buffer: %w", err)
	}
	for _, group := range []uint32{
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
	} {
		if err := conn.JoinGroup(group); err != nil {
			return fmt.Errorf("join netlink group %d: %w", group, err)
		}
	}
	stop := context.AfterFunc(ctx, func() {
		_ = conn.SetReadDeadline(time.Now()) // fails only if the socket is closed
	})
	defer stop()
	known := make(links)
	all, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range all {
		known[i.Index] = link{name: i.Name, up: i.Flags&net.FlagUp != 0}
	}
	for {
		messages, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			continue // the next interval finds what was lost
		case err != nil:
			return err
		}
		for _, m := range messages {
			if name := known.concerned(m); name != "" {
				select {
				case w.changed <- name:
				default: // so much happens that the interval is soon enough
				}
			}
		}
	}
}

// concerned returns the name of the interface that a notification takes something from;
// empty if it takes nothing from any.
func (all links) concerned(m netlink.Message) string {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return all.linkChanged(m)
	case unix.RTM_DELADDR:
		if len(m.Data) < unix.SizeofIfAddrmsg {
			return ""
		}
		return all[int(binary.NativeEndian.Uint32(m.Data[4:]))].name
	case unix.RTM_DELROUTE:
		return all[int(attribute(m.Data, unix.SizeofRtMsg, unix.RTA_OIF))].name
	case unix.RTM_NEWNETCONF:
		const header = 4 // struct netconfmsg, aligned
		if index := int32(attribute(m.Data, header, netconfIndex)); index > everyInterface {
			return all[int(index)].name
		}
	}
	return ""
}

// linkChanged takes up what became of an interface. Of a bridge's news only few concern
// the pods on it: its ports come and go.
func (all links) linkChanged(m netlink.Message) string {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return ""
	}
	index := int(int32(binary.NativeEndian.Uint32(m.Data[4:])))
	before, known := all[index]
	now := link{up: binary.NativeEndian.Uint32(m.Data[8:])&unix.IFF_UP != 0, name: before.name, master: before.master}
	bridgePort := m.Data[0] == unix.AF_BRIDGE
	d, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return ""
	}
	if !bridgePort {
		now.master = 0
	}
	for d.Next() {
		switch d.Type() {
		case unix.IFLA_IFNAME:
			now.name = d.String()
		case unix.IFLA_MASTER:
			now.master = d.Uint32()
		}
	}
	switch {
	case d.Err() != nil:
		return ""
	case m.Header.Type == unix.RTM_DELLINK && !bridgePort:
		delete(all, index)
		return now.name
	case bridgePort: // its settings, such as hairpin mode
		return now.name
	}
	all[index] = now
	if known && (before.name != now.name || before.up && !now.up || before.master != now.master) {
		return before.name
	}
	return ""
}

// attribute returns the number that an attribute of a message has; 0 if there is none.
func attribute(data []byte, header int, kind uint16) uint32 {
	if len(data) < header {
		return 0
	}
	d, err := netlink.NewAttributeDecoder(data[header:])
	if err != nil {
		return 0
	}
	for d.Next() {
		if d.Type() == kind && len(d.Bytes()) == 4 {
			return d.Uint32()
		}
	}
	return 0
}
