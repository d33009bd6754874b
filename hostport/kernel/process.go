package kernel

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Holders names, by inode, the process that holds each socket. It reads all of
// /proc, which takes milliseconds for each hundred processes.
func (k *Kernel) Holders(ctx context.Context, sockets []Listener) (map[uint32]string, error) {
	const proc = "/proc"
	names := make(map[uint32]string)
	links := make(map[string]uint32)
	for _, s := range sockets {
		if s.Inode == 0 {
			names[0] = "the kernel"
			continue
		}
		names[s.Inode] = fmt.Sprintf("a process that cannot be seen from here (uid %d, socket inode %d)", s.UID, s.Inode)
		links[fmt.Sprintf("socket:[%d]", s.Inode)] = s.Inode
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("find the process that listens: %w", err)
	}
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("find the process that listens: %w", err)
		}
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || len(links) == 0 {
			continue
		}
		for _, link := range openFiles(filepath.Join(proc, entry.Name(), "fd")) {
			if inode, ok := links[link]; ok {
				names[inode] = fmt.Sprintf("process %s (pid %d)", commandOf(proc, pid), pid)
				delete(links, link)
			}
		}
	}
	return names, nil
}

// openFiles lists what a process has open: nothing if the process has ended, or if
// its files may not be read.
func openFiles(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	files := make([]string, 0, len(entries))
	for _, entry := range entries {
		if target, err := os.Readlink(filepath.Join(dir, entry.Name())); err == nil {
			files = append(files, target)
		}
	}
	return files
}

func commandOf(proc string, pid int) string {
	comm, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "comm"))
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(comm))
}
