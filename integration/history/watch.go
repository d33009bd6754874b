package history

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/cni/builtin"
)

const (
	// watchBuffer is the receive buffer of each socket.
	watchBuffer = 16 << 20
	// watchPoll is how long, in ms, the watcher waits for a message at most, before it
	// looks whether it is to end.
	watchPoll = 50
	// mostMessage bounds one read of messages in bytes.
	mostMessage = 256 << 10
)

// Watcher records what the kernel tells of the table inet crinet and of links.
//
// One goroutine reads both sockets. After each read of links it reads all that there
// is of the table, and records that first: what the table lost before a link went down
// is thus recorded before that link. The reverse does not hold.
type Watcher struct {
	recorder *Recorder
	table    *nl.NetlinkSocket
	links    *nl.NetlinkSocket
	stop     chan struct{}
	done     chan struct{}
	buffer   []byte
	open     Table          // the transaction whose end has not come
	states   map[int32]Link // of the links as they were last
}

// Watch watches the network namespace at path until Close.
func (r *Recorder) Watch(path string) (*Watcher, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("watch the namespace %s: %w", path, err)
	}
	defer ns.Close()
	w := &Watcher{recorder: r, stop: make(chan struct{}), done: make(chan struct{}), buffer: make([]byte, mostMessage), states: make(map[int32]Link)}
	if w.table, err = subscribe(ns, unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES); err != nil {
		return nil, fmt.Errorf("watch nftables: %w", err)
	}
	if w.links, err = subscribe(ns, unix.NETLINK_ROUTE, unix.RTNLGRP_LINK); err != nil {
		w.table.Close()
		return nil, fmt.Errorf("watch links: %w", err)
	}
	go w.run()
	return w, nil
}

func subscribe(ns netns.NsHandle, protocol int, group uint) (*nl.NetlinkSocket, error) {
	socket, err := nl.SubscribeAt(ns, netns.None(), protocol, group)
	if err != nil {
		return nil, err
	}
	if err := socket.SetReceiveBufferSize(watchBuffer, true); err != nil {
		socket.Close()
		return nil, err
	}
	return socket, nil
}

// Close ends the watch when all that was told until now is recorded.
func (w *Watcher) Close() {
	close(w.stop)
	<-w.done
	w.table.Close()
	w.links.Close()
}

func (w *Watcher) run() {
	defer close(w.done)
	for {
		last := false
		select {
		case <-w.stop:
			last = true // what is there now is read once more
		default:
			fds := []unix.PollFd{{Fd: int32(w.table.GetFd()), Events: unix.POLLIN}, {Fd: int32(w.links.GetFd()), Events: unix.POLLIN}}
			_, _ = unix.Poll(fds, watchPoll) // an error is one of the reads' as well
		}
		links, ok := w.read(w.links.GetFd())
		for {
			messages, more := w.read(w.table.GetFd())
			for _, m := range messages {
				w.netfilter(m)
			}
			if !more {
				break
			}
		}
		for _, m := range links {
			w.link(m)
		}
		if last && !ok {
			return
		}
	}
}

// read reads what is there at once; ok says that something was.
func (w *Watcher) read(fd int) (messages []syscall.NetlinkMessage, ok bool) {
	n, _, err := unix.Recvfrom(fd, w.buffer, unix.MSG_DONTWAIT)
	switch {
	case errors.Is(err, unix.ENOBUFS):
		w.recorder.Add(Event{Kind: Lost})
		return nil, true
	case err != nil || n == 0:
		return nil, false
	}
	messages, err = syscall.ParseNetlinkMessage(append([]byte(nil), w.buffer[:n]...))
	if err != nil {
		w.recorder.Add(Event{Kind: Lost})
	}
	return messages, true
}

// link records a link whose state has changed.
func (w *Watcher) link(m syscall.NetlinkMessage) {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return
	}
	info := nl.DeserializeIfInfomsg(m.Data)
	link := Link{Index: int(info.Index), State: LinkDown}
	if info.Family != unix.AF_UNSPEC {
		return // a bridge's word on its port
	}
	group := uint32(0)
	attributes, err := nl.ParseRouteAttr(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return
	}
	for _, a := range attributes {
		switch a.Attr.Type {
		case unix.IFLA_IFNAME:
			link.Name = nl.BytesToString(a.Value)
		case unix.IFLA_GROUP:
			group = nl.NativeEndian().Uint32(a.Value)
		}
	}
	switch {
	case m.Header.Type == unix.RTM_DELLINK:
		link.State = LinkGone
	case info.Flags&unix.IFF_UP != 0 && group != builtin.Doomed:
		link.State = LinkUp
	}
	if w.states[info.Index] == link {
		return
	}
	w.states[info.Index] = link
	if link.State == LinkGone {
		delete(w.states, info.Index)
	}
	w.recorder.Add(Event{Kind: LinkChange, Link: &link})
}

// NamespaceOf is the path of a process' network namespace.
func NamespaceOf(pid int) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }
