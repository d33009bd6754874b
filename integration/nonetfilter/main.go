// Command nonetfilter runs a command on what looks like a kernel without
// nftables: a seccomp filter, inherited by all that the command starts, refuses
// netlink sockets of the family NETLINK_NETFILTER as a kernel does that lacks it
// (netlink(7)). All other families work.
//
//	nonetfilter COMMAND [ARGUMENT...]
package main

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "nonetfilter:", err)
		os.Exit(1)
	}
}

func run(command []string) error {
	if len(command) == 0 {
		return fmt.Errorf("the command is missing")
	}
	// The filter is the thread's, and so is the exec.
	runtime.LockOSThread()
	filter := refuseNetfilter()
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("renounce new privileges: %w", err)
	}
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
	if err != nil {
		return fmt.Errorf("set the seccomp filter: %w", err)
	}
	return fmt.Errorf("%s: %w", command[0], unix.Exec(command[0], command, os.Environ()))
}

// refuseNetfilter looks at the system call and at the lower, first halves of its
// arguments, on machines that are little-endian and of one architecture (struct
// seccomp_data in linux/seccomp.h).
func refuseNetfilter() []unix.SockFilter {
	const (
		number   = 0
		domain   = 16
		protocol = 16 + 2*8
	)
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	// unless jumps to the last instruction, over what is left in between.
	unless := func(value uint32, left uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: left}
	}
	result := func(value uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value}
	}
	return []unix.SockFilter{
		load(number), unless(unix.SYS_SOCKET, 5),
		load(domain), unless(unix.AF_NETLINK, 3),
		load(protocol), unless(unix.NETLINK_NETFILTER, 1),
		result(unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)),
		result(unix.SECCOMP_RET_ALLOW),
	}
}
