package doctor

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// processes are those of the node.
type processes struct {
	comm  map[int]string // process id -> the kernel's name of the program
	netns map[string]bool
}

// named returns the ids of the processes of a program, sorted.
func (p *processes) named(name string) []int {
	var ids []int
	for id, comm := range p.comm {
		if comm == name {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// processes returns the node's processes.
func (n *Node) processes(ctx context.Context) (*processes, error) {
	if !n.Live {
		return nil, errNotLive
	}
	return n.procs.get(ctx, func(context.Context) (*processes, error) { return n.scanProcesses() })
}

// scanProcesses reads the names and network namespaces of all processes.
func (n *Node) scanProcesses() (*processes, error) {
	entries, err := os.ReadDir(n.path("/proc"))
	if err != nil {
		return nil, err
	}
	p := &processes{comm: make(map[int]string), netns: make(map[string]bool)}
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(n.path("/proc"), e.Name())
		comm, err := os.ReadFile(dir + "/comm")
		if err != nil {
			continue // it has ended
		}
		p.comm[id] = strings.TrimSpace(string(comm))
		if ns, err := os.Readlink(dir + "/ns/net"); err == nil { // net:[4026531840]
			p.netns[strings.Trim(strings.TrimPrefix(ns, "net:"), "[]")] = true
		}
	}
	return p, nil
}

// runs says whether a program runs; false if that cannot be known.
func (n *Node) runs(ctx context.Context, names ...string) bool {
	p, err := n.processes(ctx)
	return err == nil && slices.ContainsFunc(names, func(name string) bool { return len(p.named(name)) > 0 })
}

// countInotify counts the inotify instances of the processes that a user runs.
func (n *Node) countInotify(ctx context.Context, uid uint32) (int, error) {
	p, err := n.processes(ctx)
	if err != nil {
		return 0, err
	}
	count := 0
	for id := range p.comm {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		dir := n.path("/proc/" + strconv.Itoa(id))
		if owner(dir) != uid {
			continue
		}
		fds, err := os.ReadDir(dir + "/fd")
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if target, err := os.Readlink(dir + "/fd/" + fd.Name()); err == nil && target == "anon_inode:inotify" {
				count++
			}
		}
	}
	return count, nil
}
