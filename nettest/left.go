package nettest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/internal/dirs"
)

const (
	// hostLocalDir is where host-local keeps its files, below a folder of the
	// network's name, unless its dataDir says otherwise.
	hostLocalDir = "/var/lib/cni/networks"
	// leftPatience is how long what goes a moment after DEL may take.
	leftPatience = 1500 * time.Millisecond
	leftEvery    = 50 * time.Millisecond
	// maxReserved bounds a file of host-local's in bytes.
	maxReserved = 4096
)

// Traces is what attachments have on a node while they stand, to look for afterwards.
// It is filled in while they stand.
type Traces struct {
	node    *Space
	links   map[int]string // index -> name of the hosts' ends
	known   map[string]bool
	ids     []string
	netns   []string
	addrs   []netip.Addr
	folders []string // of host-local
}

// NewTraces notes which interfaces the node has before anything is attached.
func NewTraces(node *Space) (*Traces, error) {
	t := &Traces{node: node, links: make(map[int]string), known: make(map[string]bool)}
	h, err := node.handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	all, err := links(h)
	for _, l := range all {
		t.known[l.Attrs().Name] = true
	}
	return t, err
}

// Note notes an attachment: its container's id, the path of its namespace, and its
// network's name and configuration list.
func (t *Traces) Note(pod Pod, id, netns, network string, confList []byte) {
	t.ids, t.netns, t.addrs = append(t.ids, id), append(t.netns, netns), append(t.addrs, pod.addrs()...)
	if c := chainOf(pod.Space, t.node, pod.IfName); c.host != nil {
		t.links[c.host.Attrs().Index] = Plain(c.host.Attrs().Name)
	}
	var list struct {
		Plugins []struct {
			IPAM struct {
				Type    string `json:"type"`
				DataDir string `json:"dataDir"`
			} `json:"ipam"`
		} `json:"plugins"`
	}
	if json.Unmarshal(confList, &list) != nil || !filepath.IsLocal(network) {
		return // crinetd has taken the list: this does not happen
	}
	for _, p := range list.Plugins {
		dir := p.IPAM.DataDir
		if dir == "" {
			dir = hostLocalDir
		}
		t.folders = append(t.folders, filepath.Join(dir, network))
	}
}

// Left waits until nothing is left, and says what is after a moment's patience.
func (t *Traces) Left(ctx context.Context) []string {
	for deadline := time.Now().Add(leftPatience); ; {
		left := t.left()
		if len(left) == 0 || time.Now().After(deadline) || ctx.Err() != nil {
			return left
		}
		select {
		case <-ctx.Done():
		case <-time.After(leftEvery):
		}
	}
}

// Stay are the bridges that came with the attachments and stay, as after any pod.
func (t *Traces) Stay() (names []string) {
	h, err := t.node.handle()
	if err != nil {
		return nil
	}
	defer h.Close()
	all, _ := links(h) // what is listed is told
	for _, l := range all {
		if name := l.Attrs().Name; l.Type() == "bridge" && !t.known[name] {
			names = append(names, Plain(name))
		}
	}
	return names
}

func (t *Traces) left() (left []string) {
	for _, path := range t.netns {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			left = append(left, "the network namespace "+path)
		}
	}
	left = append(left, t.leftLinks()...)
	for _, folder := range t.folders {
		left = append(left, t.reserved(folder)...)
	}
	rules, err := t.leftRules()
	if err != nil {
		left = append(left, fmt.Sprintf("unknown, the tables cannot be read: %v", err))
	}
	return append(left, rules...)
}

// leftLinks are the hosts' ends that are still there.
func (t *Traces) leftLinks() (left []string) {
	h, err := t.node.handle()
	if err != nil {
		return []string{fmt.Sprintf("unknown, interfaces cannot be read: %v", err)}
	}
	defer h.Close()
	all, err := links(h)
	if err != nil {
		return []string{fmt.Sprintf("unknown, interfaces cannot be listed: %v", err)}
	}
	for _, l := range all {
		if name, ours := t.links[l.Attrs().Index]; ours && l.Attrs().Name == name {
			left = append(left, "the interface "+name)
		}
	}
	return left
}

// reserved are the addresses that host-local still holds for the attachments.
func (t *Traces) reserved(folder string) (left []string) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil // it is not host-local's
	}
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err != nil {
			continue
		}
		data, err := dirs.ReadFile(filepath.Join(folder, e.Name()), maxReserved)
		if err != nil {
			continue // it went meanwhile
		}
		for _, id := range t.ids {
			if strings.HasPrefix(string(data), id) {
				left = append(left, "host-local's file "+filepath.Join(folder, e.Name()))
			}
		}
	}
	return left
}

// leftRules are rules that name an attachment's container, as plugins' do, and
// elements of crinet's own table for its addresses.
func (t *Traces) leftRules() (left []string, err error) {
	conn, err := nftables.New(nftables.WithNetNSFd(t.node.fd()))
	if err != nil {
		return nil, err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return nil, err
	}
	for _, table := range tables {
		if table.Name != "crinet" {
			continue
		}
		sets, err := conn.GetSets(table)
		if err != nil {
			return nil, err
		}
		for _, set := range sets {
			elements, err := conn.GetSetElements(set)
			if err != nil {
				return nil, err
			}
			for _, e := range elements {
				if t.ours(e) {
					left = append(left, fmt.Sprintf("an element of the set %s in table inet crinet", Plain(set.Name)))
				}
			}
		}
	}
	named, err := t.rulesByID()
	return append(left, named...), err
}

// ours says whether an element is of an attachment's address.
func (t *Traces) ours(e nftables.SetElement) bool {
	for _, addr := range t.addrs {
		if bytes.HasPrefix(e.Key, addr.AsSlice()) || bytes.HasPrefix(e.Val, addr.AsSlice()) {
			return true
		}
	}
	return false
}

// msgGetRule is NFT_MSG_GETRULE of nftables.
const msgGetRule = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE

// rulesByID looks for the containers' ids in the rules of all tables, as they are:
// the plugins bridge and portmap write them into comments.
func (t *Traces) rulesByID() (left []string, err error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: t.node.fd()})
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }() // it was only read
	rules, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: msgGetRule, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, 4), // struct nfgenmsg: all families
	})
	if err != nil {
		return nil, err
	}
	for _, rule := range rules {
		for _, id := range t.ids {
			if bytes.Contains(rule.Data, []byte(id)) {
				left = append(left, "a rule that names "+id)
			}
		}
	}
	return left, nil
}
