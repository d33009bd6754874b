package hostport

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// listen raises an alarm whenever somebody else changes our table, until ctx
// ends. After a failure it subscribes again, and raises an alarm, since something
// may have been missed.
func (m *Manager) listen(ctx context.Context) {
	p := pacer{interval: m.interval}
	for {
		began := time.Now()
		err := m.listenOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		m.log.ErrorContext(ctx, "changes of the hostPort table by others are noticed only in intervals for now",
			"interval", m.interval, "error", err)
		if time.Since(began) > m.interval {
			p.retry = 0
		}
		if !sleep(ctx, p.next(err)) {
			return
		}
	}
}

func (m *Manager) listenOnce(ctx context.Context) (err error) {
	conn, err := m.subscribe()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	stop := context.AfterFunc(ctx, func() {
		if err := conn.SetReadDeadline(time.Now()); err != nil {
			m.log.DebugContext(ctx, "a netlink socket can't be told to end", "error", err)
		}
	})
	defer stop()
	m.raise("") // for what happened before
	for {
		messages, err := conn.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			m.raise("notifications were lost")
		case err != nil:
			return fmt.Errorf("listen for changes of nftables: %w", err)
		}
		for _, message := range messages {
			if what := m.foreign(message); what != "" {
				m.raise(what)
			}
		}
	}
}

func (m *Manager) subscribe() (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: m.netns})
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	err = conn.SetReadBuffer(receiveBuffer)
	if err == nil {
		err = conn.JoinGroup(unix.NFNLGRP_NFTABLES)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("subscribe to changes of nftables: %w", err), conn.Close())
	}
	return conn, nil
}

// raise hands the alarm over; if one is pending already, that will do.
func (m *Manager) raise(what string) {
	select {
	case m.alarms <- what:
	default:
	}
}

// foreign says what a notification tells of a change of our table by somebody
// else, "" if it doesn't.
func (m *Manager) foreign(message netlink.Message) string {
	const nfgenmsg = 4
	if message.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(message.Data) < nfgenmsg ||
		message.Header.PID == m.nft.port.Load() || message.Data[0] != byte(nftables.TableFamilyINet) {
		return ""
	}
	what := changeName(int(message.Header.Type & 0xff))
	if what == "" {
		return ""
	}
	decoder, err := netlink.NewAttributeDecoder(message.Data[nfgenmsg:])
	if err != nil {
		return "a notification that can't be read"
	}
	// Attribute 1 is the table's name in all of these.
	for decoder.Next() {
		if decoder.Type() == unix.NFTA_TABLE_NAME && decoder.String() == tableName {
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
