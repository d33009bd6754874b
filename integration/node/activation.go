package node

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path"
	"strings"
)

// activationName is the FileDescriptorName in packaging/systemd/crinetd.socket.
const activationName = "crinet"

// heldSockets are crinetd's listening sockets, held over its restarts as systemd
// holds them. All methods can be called on nil: none are held.
type heldSockets struct {
	listeners []net.Listener
	files     []*os.File
}

// HoldSockets makes crinetd's sockets. From the next start on crinetd is given them
// as systemd does it (sd_listen_fds(3)); what connects while it is away waits.
func (n *Node) HoldSockets() error {
	dir := path.Dir(CrinetdSocket)
	if err := os.MkdirAll(n.Path(dir), 0o700); err != nil {
		return fmt.Errorf("hold crinetd's sockets: %w", err)
	}
	held := new(heldSockets)
	for _, name := range []string{"cri.sock", "cni.sock", "admin.sock"} {
		l, err := n.Listen("unix", path.Join(dir, name))
		if err != nil {
			return errors.Join(fmt.Errorf("hold crinetd's sockets: %w", err), held.close())
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false) // the path is the node's, which ends
		held.listeners = append(held.listeners, l)
		file, err := l.(*net.UnixListener).File()
		if err != nil {
			return errors.Join(fmt.Errorf("hold crinetd's sockets: %w", err), held.close())
		}
		held.files = append(held.files, file)
	}
	n.held = held
	return nil
}

// command has a shell say for which process the sockets are, which only the process
// itself knows before it becomes crinetd.
func (h *heldSockets) command(line []string) []string {
	return append([]string{"/bin/sh", "-c", `export LISTEN_PID=$$; exec "$@"`, "sh"}, line...)
}

// prepare passes the sockets to a command.
func (h *heldSockets) prepare(cmd *exec.Cmd) {
	if h == nil {
		return
	}
	cmd.ExtraFiles = h.files
	names := strings.TrimSuffix(strings.Repeat(activationName+":", len(h.files)), ":")
	cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(h.files)), "LISTEN_FDNAMES="+names)
}

func (h *heldSockets) close() error {
	if h == nil {
		return nil
	}
	var errs []error
	for _, l := range h.listeners {
		errs = append(errs, l.Close())
	}
	for _, f := range h.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
