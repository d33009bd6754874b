package hostport

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
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
	// kernelPatience ends the wait for an answer that the kernel owes us. It sends
	// them before the request returns, so this ends only what would hang for ever.
	kernelPatience = time.Minute
)

// nft changes the table over one netlink socket, which is opened when it is
// first needed and again after every error. It is not safe for concurrent use,
// except for port.
type nft struct {
	netns  int
	layout *layout
	conn   *nftables.Conn
	raw    *netlink.Conn
	// port is the socket's netlink port: notifications bear it as their cause.
	port atomic.Uint32
}

func newNFT(netns int) *nft { return &nft{netns: netns, layout: newLayout()} }

func (n *nft) open() error {
	if n.conn != nil {
		return nil
	}
	var raw *netlink.Conn
	options := func(c *netlink.Conn) error {
		raw = c
		return setBuffers(c)
	}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(n.netns), nftables.WithSockOptions(options))
	if err != nil {
		return fmt.Errorf("open a netlink socket for nftables: %w", err)
	}
	n.conn, n.raw = conn, raw
	n.port.Store(raw.PID())
	// A kernel without nftables answers a batch only once, however many messages
	// it has, and a plain question properly.
	if _, err := n.ask(unix.NFT_MSG_GETGEN, 0, nil); err != nil {
		return errors.Join(explain(err), n.close())
	}
	return nil
}

func setBuffers(c *netlink.Conn) error {
	if err := c.SetWriteBuffer(sendBuffer); err != nil {
		return fmt.Errorf("size a netlink socket's send buffer: %w", err)
	}
	if err := c.SetReadBuffer(receiveBuffer); err != nil {
		return fmt.Errorf("size a netlink socket's receive buffer: %w", err)
	}
	if err := c.SetOption(netlink.ExtendedAcknowledge, true); err != nil { // Linux 4.12
		return fmt.Errorf("ask for the kernel's own words on errors: %w", err)
	}
	return nil
}

func (n *nft) close() error {
	if n.conn == nil {
		return nil
	}
	err := n.conn.CloseLasting()
	n.conn, n.raw = nil, nil
	if err != nil {
		return fmt.Errorf("close the netlink socket for nftables: %w", err)
	}
	return nil
}

// commit sends what build puts together as one transaction: all of it or nothing.
func (n *nft) commit(build func(*nftables.Conn) error) error {
	if err := n.open(); err != nil {
		return err
	}
	err := n.raw.SetDeadline(time.Now().Add(kernelPatience))
	if err == nil {
		err = build(n.conn)
	}
	if err == nil {
		err = n.conn.Flush()
	}
	if err != nil {
		// Answers may still be under way; a new socket doesn't get them.
		return errors.Join(fmt.Errorf("change nftables table inet %s: %w", tableName, explain(err)), n.close())
	}
	return nil
}

// explain adds what is to be done about errors that mean that hostPorts can't
// work at all here.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("nftables needs CAP_NET_ADMIN in the node's network namespace: %w", err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("the kernel lacks nftables with inet tables and NAT (CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT): %w", err)
	}
	return err
}

// update is a change of elements.
type update struct{ remove, add []element }

func (u update) empty() bool { return len(u.remove) == 0 && len(u.add) == 0 }

// change applies the update to the table that is there.
func (n *nft) change(u update) error {
	return n.commit(func(c *nftables.Conn) error {
		// In a transaction elements may go and come again under the same key.
		if err := n.each(u.remove, false, c.SetDeleteElements); err != nil {
			return err
		}
		return n.each(u.add, true, c.SetAddElements)
	})
}

// replace puts a fresh table with the elements in the place of whatever is there.
// Packets see the old table or the new one.
func (n *nft) replace(elements []element) error {
	return n.commit(func(c *nftables.Conn) error {
		c.AddTable(n.layout.table) // so that there is one to delete
		c.DelTable(n.layout.table)
		c.AddTable(n.layout.table)
		for _, s := range n.layout.sets {
			if err := c.AddSet(s, nil); err != nil {
				return fmt.Errorf("set %s: %w", s.Name, err)
			}
		}
		for _, chain := range n.layout.chains {
			c.AddChain(chain)
		}
		for _, chain := range n.layout.chains {
			for _, r := range n.layout.rules[chain.Name] {
				c.AddRule(r)
			}
		}
		return n.each(elements, true, c.SetAddElements)
	})
}

// drop deletes the table; it is no error if there is none.
func (n *nft) drop() error {
	return n.commit(func(c *nftables.Conn) error {
		c.AddTable(n.layout.table)
		c.DelTable(n.layout.table)
		return nil
	})
}

// each hands the elements to send, set by set and in portions.
func (n *nft) each(elements []element, whole bool, send func(*nftables.Set, []nftables.SetElement) error) error {
	bySet := make(map[string][]nftables.SetElement)
	for _, e := range elements {
		se := nftables.SetElement{Key: []byte(e.key)}
		if whole {
			se.Val, se.Comment = []byte(e.val), e.comment
		}
		bySet[e.set] = append(bySet[e.set], se)
	}
	for _, s := range n.layout.sets {
		// Sets that are already there are found by name alone.
		known := &nftables.Set{Table: s.Table, Name: s.Name}
		for all := bySet[s.Name]; len(all) > 0; {
			portion := all[:min(len(all), elementsPerMessage)]
			all = all[len(portion):]
			if err := send(known, portion); err != nil {
				return fmt.Errorf("elements of %s: %w", s.Name, err)
			}
		}
	}
	return nil
}
