package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// watchBuffer is the receive buffer for notifications.
const watchBuffer = 8 << 20

// nfgenmsgLen is the length of a struct nfgenmsg: family, version, resource.
const nfgenmsgLen = 4

// WatchTable calls changed with a description whenever somebody else changes the
// table, and once, with an empty one, when it begins to listen. It returns when
// ctx ends or listening fails.
func (k *Kernel) WatchTable(ctx context.Context, changed func(what string)) error {
	err := watch(ctx, unix.NETLINK_NETFILTER, k.netns, []uint32{unix.NFNLGRP_NFTABLES}, changed, func(m netlink.Message) {
		if what := k.foreign(m); what != "" {
			changed(what)
		}
	})
	if err != nil {
		return fmt.Errorf("listen for changes of nftables: %w", err)
	}
	return nil
}

// WatchAddresses calls changed whenever an address comes or goes on one of the
// named interfaces, and once when it begins to listen. It may call it for other
// interfaces that are gone. It returns when ctx ends or listening fails.
func (k *Kernel) WatchAddresses(ctx context.Context, names []string, changed func(what string)) error {
	groups := []uint32{unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR}
	err := watch(ctx, unix.NETLINK_ROUTE, k.netns, groups, changed, func(m netlink.Message) {
		if len(m.Data) < unix.SizeofIfAddrmsg {
			return
		}
		l, err := LinkByIndex(k.netns, int(binary.NativeEndian.Uint32(m.Data[4:])))
		if err != nil || slices.Contains(names, l.Name) {
			changed("addresses of " + l.Name)
		}
	})
	if err != nil {
		return fmt.Errorf("listen for changes of addresses: %w", err)
	}
	return nil
}

func watch(ctx context.Context, protocol, netns int, groups []uint32, lost func(string), visit func(netlink.Message)) (err error) {
	conn, err := netlink.Dial(protocol, &netlink.Config{NetNS: netns})
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.SetReadBuffer(watchBuffer); err != nil {
		return fmt.Errorf("size a netlink socket's receive buffer: %w", err)
	}
	for _, group := range groups {
		if err := conn.JoinGroup(group); err != nil {
			return fmt.Errorf("join netlink group %d: %w", group, err)
		}
	}
	stop := context.AfterFunc(ctx, func() {
		_ = conn.SetReadDeadline(time.Now()) // fails only if the socket is closed
	})
	defer stop()
	lost("") // what happened before
	for {
		messages, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			lost("notifications were lost")
		case err != nil:
			return err
		}
		for _, message := range messages {
			visit(message)
		}
	}
}

// foreign describes the change of the table that a notification is about. It
// returns "" if it is about another table, or if this Kernel made the change.
func (k *Kernel) foreign(message netlink.Message) string {
	if message.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(message.Data) < nfgenmsgLen ||
		message.Header.PID == k.table.port.Load() || message.Data[0] != byte(nftables.TableFamilyINet) {
		return ""
	}
	what := changeName(int(message.Header.Type & 0xff))
	if what == "" {
		return ""
	}
	decoder, err := netlink.NewAttributeDecoder(message.Data[nfgenmsgLen:])
	if err != nil {
		return "a notification that cannot be read"
	}
	// Attribute 1 is the table's name in all of these.
	for decoder.Next() {
		if decoder.Type() == unix.NFTA_TABLE_NAME && decoder.String() == k.table.layout.name {
			return what
		}
	}
	return ""
}

func changeName(message int) string {
	switch message {
	case unix.NFT_MSG_NEWTABLE:
		return "table added or changed"
	case unix.NFT_MSG_DELTABLE:
		return "table deleted"
	case unix.NFT_MSG_NEWCHAIN:
		return "chain added or changed"
	case unix.NFT_MSG_DELCHAIN:
		return "chain deleted"
	case unix.NFT_MSG_NEWRULE:
		return "rule added"
	case unix.NFT_MSG_DELRULE:
		return "rule deleted"
	case unix.NFT_MSG_NEWSET:
		return "set added"
	case unix.NFT_MSG_DELSET:
		return "set deleted"
	case unix.NFT_MSG_NEWSETELEM:
		return "element added"
	case unix.NFT_MSG_DELSETELEM:
		return "element deleted"
	}
	return ""
}
