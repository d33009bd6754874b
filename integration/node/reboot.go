package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const bootIDFile = "/proc/sys/kernel/random/boot_id"

// downScript takes away what does not outlive a power cut: mounts, devices, rules
// and the contents of /run.
const downScript = `set -e
awk '$5 ~ "^/run/" || $5 ~ "^/var/lib/kubelet/" {print $5}' /proc/self/mountinfo | sort -r | while read -r m; do umount -l "$m"; done
find /run -mindepth 1 -delete
nft flush ruleset
for link in /sys/class/net/*; do
	name=${link##*/}
	case $name in lo | ` + Uplink + `) ;; *) ip link del "$name" 2>/dev/null || true ;; esac
done
echo "$1" >/run/boot_id
umount ` + bootIDFile + ` 2>/dev/null || true
mount --bind /run/boot_id ` + bootIDFile

// PowerCycle cuts the power of the node and gives it back: all processes are
// killed, and what is not on a disk is gone. The caller starts the daemons again.
func (n *Node) PowerCycle(ctx context.Context) error {
	n.mu.Lock()
	daemons := append([]*daemon{n.containerd, n.crinetd}, n.services...)
	n.services = nil
	n.mu.Unlock()
	for _, d := range daemons {
		if d != nil {
			if err := d.kill(); err != nil { // so that nobody starts it again
				return err
			}
		}
	}
	n.containerd, n.crinetd = nil, nil
	if err := n.endProcesses(ctx); err != nil {
		return err
	}
	_, err := n.Run(ctx, "bash", "-c", downScript, "bash", newUID())
	return err
}

// endProcesses kills all processes of the node but its process 1, until there is
// none.
func (n *Node) endProcesses(ctx context.Context) error {
	space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", n.PID()))
	if err != nil {
		return err
	}
	for {
		files, err := filepath.Glob("/proc/[0-9]*/ns/pid")
		if err != nil {
			return err
		}
		found := 0
		for _, file := range files {
			pid, err := strconv.Atoi(strings.Split(file, "/")[2])
			if err != nil {
				return err
			}
			process, err := os.FindProcess(pid) // holds on to it, whoever has the number next
			if err != nil || pid == n.PID() {
				continue
			}
			if at, err := os.Readlink(file); err == nil && at == space {
				found++
				_ = process.Signal(unix.SIGKILL) // or it has ended
			}
			_ = process.Release()
		}
		if found == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d processes of the node do not end: %w", found, ctx.Err())
		case <-time.After(pollEvery):
		}
	}
}
