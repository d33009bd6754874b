package installer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hostProcess is process 1 of the machine, as a container with the host's process
// namespace sees it.
const hostProcess = "/proc/1/root"

// Live returns the running system whose tree is at root; nil if the tree is no running
// system's, or one without systemd.
func Live(root string) System {
	if _, err := os.Stat(filepath.Join(root, "run/systemd/system")); err != nil {
		return nil
	}
	if filepath.Clean(root) == "/" {
		return &systemd{root: root}
	}
	tree, err := os.Stat(root)
	if err != nil {
		return nil
	}
	host, err := os.Stat(hostProcess)
	if err != nil || !os.SameFile(tree, host) {
		return nil
	}
	return &systemd{root: root, inside: true}
}

// systemd is a running system.
type systemd struct {
	root   string
	inside bool // this process is in a container, its tree at root is the host's
}

// Systemctl implements System.
func (s *systemd) Systemctl(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "/usr/bin/systemctl", args...)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr, cmd.Dir = &said, &said, "/"
	start := cmd.Start
	if s.inside {
		start = func() error { return onHost(cmd.Start) }
	}
	err := start()
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return nil
}

// onHost runs fn on a thread in the host's mount namespace. The thread ends with fn.
func onHost(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock
		done <- func() error {
			ns, err := os.Open("/proc/1/ns/mnt")
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)); err != nil {
				return fmt.Errorf("enter the host's mount namespace (the container must be privileged, with hostPID): %w", err)
			}
			return fn()
		}()
	}()
	return <-done
}

// Answers implements System.
func (s *systemd) Answers(ctx context.Context, path string) (err error) {
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(s.root, path))
		}),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	answer, err := runtimeapi.NewRuntimeServiceClient(conn).Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return err
	}
	for _, c := range answer.GetStatus().GetConditions() {
		if !c.GetStatus() {
			return fmt.Errorf("%s is false: %s: %s", c.GetType(), c.GetReason(), c.GetMessage())
		}
	}
	return nil
}
