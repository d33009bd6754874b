package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// dial connects to a unix socket. It does not use package net, whose size and
// initialization would make the plugin start later. Reads from the file block
// their thread, which is the only one.
func dial(path string) (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("making a socket: %w", err)
	}
	address := &syscall.SockaddrUnix{Name: path}
	err = syscall.Connect(fd, address)
	for errors.Is(err, syscall.EINTR) {
		err = syscall.Connect(fd, address)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connecting to %s: %w", path, err), syscall.Close(fd))
	}
	return os.NewFile(uintptr(fd), path), nil
}
