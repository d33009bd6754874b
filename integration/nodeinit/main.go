// Command nodeinit is process 1 of a test node. It is started in new mount,
// network and process namespaces, gives the node a file system of its own
// where the node writes, and then only reaps orphans. When it ends, the kernel
// kills everything in the node and drops the node's mounts: that is how a node
// is removed completely, whatever state it is in.
//
// It ends when its standard input ends, that is with the process that started
// it, unless -keep is given, and on SIGTERM.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "nodeinit:", err)
		os.Exit(1)
	}
}

func run(args []string, stdin io.Reader, stdout io.Writer) error {
	flags := flag.NewFlagSet("nodeinit", flag.ContinueOnError)
	dir := flags.String("dir", "", "directory that holds what the node writes")
	keep := flags.Bool("keep", false, "live on when standard input ends")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *dir == "" {
		return fmt.Errorf("-dir is missing")
	}
	if os.Getpid() != 1 {
		return fmt.Errorf("not process 1 of a process namespace: nothing is mounted outside a node")
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	child := make(chan os.Signal, 1)
	signal.Notify(child, unix.SIGCHLD)

	if err := mountNode(*dir); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(stdout, "ready"); err != nil && !*keep {
		return fmt.Errorf("say that the node is ready: %w", err)
	}

	closed := make(chan struct{})
	if !*keep {
		go func() {
			defer close(closed)
			// A read error is the end of the starter as well.
			_, _ = io.Copy(io.Discard, stdin)
		}()
	}
	for {
		select {
		case <-child:
			reap()
		case <-closed:
			return nil
		case <-term:
			return nil
		}
	}
}

// reap collects the orphans that have ended: containerd's shims become
// children of process 1.
func reap() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
	}
}
