package hostport

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// processesOf says, by inode, which process holds each socket. It looks through
// all of proc, and so is for errors only.
func processesOf(ctx context.Context, proc string, sockets []listener) (map[uint32]string, error) {
	names := make(map[uint32]string)
	links := make(map[string]uint32)
	for _, s := range sockets {
		if s.inode == 0 {
			names[0] = "the kernel"
			continue
		}
		names[s.inode] = fmt.Sprintf("a process that can't be seen from here (uid %d, socket inode %d)", s.uid, s.inode)
		links[fmt.Sprintf("socket:[%d]", s.inode)] = s.inode
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("look for the process that listens: %w", err)
	}
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("look for the process that listens: %w", err)
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

// openFiles lists what a process has open: nothing if the process has ended or is
// closed to us.
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
