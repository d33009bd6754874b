package kernel

import (
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrInterrupted is the error of a list that changed each time it was read.
var ErrInterrupted = errors.New("the list changed while it was read")

const (
	// dumpTries is how often an interrupted list is read.
	dumpTries = 5
	// dumpInterrupted marks messages of a list that a change cut across.
	dumpInterrupted = netlink.HeaderFlags(unix.NLM_F_DUMP_INTR)
	// patience ends the wait for an answer. The kernel answers before the request
	// returns, so this ends only what would hang for ever.
	patience = time.Minute
)

// Kernel is the kernel as seen from one network namespace. The methods that read
// or change the table must be called one at a time; the others may be called
// concurrently.
type Kernel struct {
	netns int
	table tableConn
	flows pool
}

// New returns the kernel of a network namespace, given as a file descriptor that
// the caller keeps open; 0 is the namespace of the process. It opens nothing.
func New(netns int, layout *Layout) *Kernel {
	return &Kernel{netns: netns, table: tableConn{netns: netns, layout: layout}, flows: pool{netns: netns}}
}

// Close closes the sockets that are kept open between calls.
func (k *Kernel) Close() error { return errors.Join(k.table.close(), k.flows.close()) }

// dial opens a netlink socket whose requests end within patience.
func dial(protocol, netns int) (*netlink.Conn, error) {
	conn, err := netlink.Dial(protocol, &netlink.Config{NetNS: netns})
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// dump requests a list and passes each message of it to visit as it arrives; none
// is kept. It returns ErrInterrupted if the list is not of one piece.
func dump(conn *netlink.Conn, request netlink.Message, visit func(data []byte) error) error {
	request.Header.Flags |= netlink.Request | netlink.Dump
	if _, err := conn.Send(request); err != nil {
		return err
	}
	var failed error
	for message, err := range conn.ReceiveIter() {
		switch {
		case errors.Is(err, unix.EINTR):
			return ErrInterrupted
		case err != nil:
			return err
		case message.Header.Flags&dumpInterrupted != 0:
			failed = ErrInterrupted
		case failed == nil:
			failed = visit(message.Data)
		}
	}
	return failed
}

// collect requests a list, again if it was interrupted, and returns its messages,
// each with a header of at least the given length.
func collect(conn *netlink.Conn, request netlink.Message, header int) (found [][]byte, err error) {
	for range dumpTries {
		found = nil
		err = dump(conn, request, func(data []byte) error {
			if len(data) < header {
				return fmt.Errorf("the kernel's answer has %d bytes, too few", len(data))
			}
			found = append(found, data)
			return nil
		})
		if !errors.Is(err, ErrInterrupted) {
			break
		}
	}
	return found, err
}
