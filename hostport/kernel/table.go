package kernel

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// sendBuffer bounds a transaction; a mapping takes 100 to 250 bytes of one.
	sendBuffer = 64 << 20
	// receiveBuffer holds the answers to the messages of a transaction.
	receiveBuffer = 8 << 20
	// elementsPerMessage keeps a message's list of elements below 64 KiB, the most
	// that a netlink attribute can hold: no element of ours takes 300 bytes.
	elementsPerMessage = 200
)

// Key names an element: its set, and its key as bytes.
type Key struct{ Set, Bytes string }

// Element is an element of a set or, with a value, of a map; or a chain of a branch,
// see [Layout.Branch].
type Element struct {
	Key
	Value   string
	Comment string
}

// Update is a change of elements.
type Update struct{ Remove, Add []Element }

// Empty reports whether there is nothing to change.
func (u Update) Empty() bool { return len(u.Remove) == 0 && len(u.Add) == 0 }

// Diff returns the update that turns one set of elements into another.
func Diff(have, want map[Key]Element) Update {
	var u Update
	for key, e := range have {
		if want[key] != e {
			u.Remove = append(u.Remove, e)
		}
	}
	for key, e := range want {
		if have[key] != e {
			u.Add = append(u.Add, e)
		}
	}
	return u
}

// tableConn changes the table over one netlink socket, which is opened when it is
// first needed and again after every error.
type tableConn struct {
	netns  int
	layout *Layout
	conn   *nftables.Conn
	raw    *netlink.Conn
	// port is the socket's netlink port: notifications carry that of their cause.
	port atomic.Uint32
}

// Change applies the update to the table, in one transaction: all of it or nothing.
func (k *Kernel) Change(u Update) error {
	return k.table.commit(func(conn *nftables.Conn) error {
		// Within a transaction an element may go and come again under the same key.
		if err := k.table.each(u.Remove, false, conn.SetDeleteElements); err != nil {
			return err
		}
		l := k.table.layout
		l.addBranches(conn, u.Add)
		if err := k.table.each(u.Add, true, conn.SetAddElements); err != nil {
			return err
		}
		l.removeBranches(conn, u.Remove) // no element leads to them any more
		return nil
	})
}

// Replace puts a new table with the elements in the place of the old one, if there
// is any, in one transaction: packets see the old table or the new one. If the
// kernel lacks something that the table needs, the error names it.
func (k *Kernel) Replace(elements []Element) error {
	l := k.table.layout
	err := k.table.commit(func(conn *nftables.Conn) error {
		conn.AddTable(l.table) // so that there is one to delete
		conn.DelTable(l.table)
		if err := l.add(conn); err != nil {
			return err
		}
		l.addBranches(conn, elements)
		return k.table.each(elements, true, conn.SetAddElements)
	})
	if err == nil {
		return nil
	}
	if missing := firstMissing(features(), k.table.lacks); missing != "" {
		return fmt.Errorf("the kernel lacks %s: %w", missing, err)
	}
	return err
}

// Drop deletes the table; it is no error if there is none.
func (k *Kernel) Drop() error {
	return k.table.commit(func(conn *nftables.Conn) error {
		conn.AddTable(k.table.layout.table)
		conn.DelTable(k.table.layout.table)
		return nil
	})
}

func (c *tableConn) open() error {
	if c.conn != nil {
		return nil
	}
	var raw *netlink.Conn
	options := func(conn *netlink.Conn) error {
		raw = conn
		return setBuffers(conn)
	}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(c.netns), nftables.WithSockOptions(options))
	if err != nil {
		return fmt.Errorf("open a netlink socket for nftables: %w", explain(err))
	}
	c.conn, c.raw = conn, raw
	c.port.Store(raw.PID())
	// A kernel without nftables answers a batch only once, however many messages it
	// has; a plain request it answers properly.
	if _, err := c.raw.Execute(nftMessage(unix.NFT_MSG_GETGEN, nil)); err != nil {
		return errors.Join(explain(err), c.close())
	}
	return nil
}

func setBuffers(conn *netlink.Conn) error {
	if err := conn.SetWriteBuffer(sendBuffer); err != nil {
		return fmt.Errorf("size a netlink socket's send buffer: %w", err)
	}
	if err := conn.SetReadBuffer(receiveBuffer); err != nil {
		return fmt.Errorf("size a netlink socket's receive buffer: %w", err)
	}
	if err := conn.SetOption(netlink.ExtendedAcknowledge, true); err != nil { // Linux 4.12
		return fmt.Errorf("ask for error messages from the kernel: %w", err)
	}
	return nil
}

func (c *tableConn) close() error {
	if c.conn == nil {
		return nil
	}
	err := c.conn.CloseLasting()
	c.conn, c.raw = nil, nil
	if err != nil {
		return fmt.Errorf("close the netlink socket for nftables: %w", err)
	}
	return nil
}

// commit sends what build adds to the connection as one transaction.
func (c *tableConn) commit(build func(*nftables.Conn) error) error {
	if err := c.open(); err != nil {
		return err
	}
	err := c.raw.SetDeadline(time.Now().Add(patience))
	if err == nil {
		err = build(c.conn)
	}
	if err == nil {
		err = c.conn.Flush()
	}
	if err != nil {
		// Answers may still be under way; a new socket does not receive them.
		return errors.Join(fmt.Errorf("change nftables table inet %s: %w", c.layout.name, explain(err)), c.close())
	}
	return nil
}

// explain adds to errors that rule nftables out here what has to be done.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("nftables needs CAP_NET_ADMIN in the node's network namespace: %w", err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("the kernel lacks nftables with inet tables (CONFIG_NF_TABLES_INET): %w", err)
	}
	return err
}

// each passes the elements to send, set by set and in portions.
func (c *tableConn) each(elements []Element, whole bool, send func(*nftables.Set, []nftables.SetElement) error) error {
	bySet := make(map[string][]nftables.SetElement)
	for _, e := range elements {
		se := nftables.SetElement{Key: []byte(e.Bytes)}
		if whole {
			se.Val, se.Comment = []byte(e.Value), e.Comment
		}
		bySet[e.Set] = append(bySet[e.Set], se)
	}
	for _, s := range c.layout.sets {
		if whole && s.DataType == nftables.TypeVerdict {
			for i, se := range bySet[s.Name] {
				bySet[s.Name][i].VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: string(se.Val)}
			}
		}
		// A set that is there already is found by its name alone.
		known := &nftables.Set{Table: s.Table, Name: s.Name}
		for portion := range slices.Chunk(bySet[s.Name], elementsPerMessage) {
			if err := send(known, portion); err != nil {
				return fmt.Errorf("elements of %s: %w", s.Name, err)
			}
		}
	}
	return nil
}
