package bugreport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/crinet-project/crinet/internal/dirs"
	"github.com/crinet-project/crinet/runtime/recorder"
)

// maxConf bounds a configuration in bytes, maxConfs how many are taken of a directory.
const (
	maxConf  = 1 << 20
	maxConfs = 64
)

// lastOutput is how long a program's output is read after its end.
const lastOutput = time.Second

// Commands are the programs whose output a report has, if the node has them. None
// changes anything or loads a module.
func Commands() [][]string {
	return [][]string{
		{"ip", "-details", "-statistics", "link"},
		{"ip", "address"},
		{"ip", "-4", "route", "show", "table", "all"},
		{"ip", "-6", "route", "show", "table", "all"},
		{"ip", "-4", "rule"},
		{"ip", "-6", "rule"},
		{"ip", "neighbour"},
		{"bridge", "-details", "link"},
		{"nft", "list", "ruleset"},
		{"lsns", "--type", "net"},
		{"df", "-h"},
		{"df", "-i"},
		{"uname", "-a"},
		{"systemctl", "status", "--no-pager", "--lines=0", "crinetd.service", "crinetd.socket", "containerd.service", "kubelet.service"},
		{"journalctl", "--no-pager", "--lines=4000", "--unit=crinetd.service"},
		{"journalctl", "--no-pager", "--lines=1000", "--unit=containerd.service"},
		{"journalctl", "--no-pager", "--lines=500", "--dmesg"},
	}
}

// Files are the files that every report has, where they are.
func Files() []string {
	return []string{
		"/etc/os-release", "/etc/default/crinetd", "/etc/containerd/config.toml",
		"/proc/version", "/proc/cmdline", "/proc/meminfo", "/proc/loadavg", "/proc/uptime", "/proc/modules", "/proc/mounts",
		"/proc/net/softnet_stat", "/proc/net/netstat", "/proc/net/snmp",
		"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding", "/proc/sys/net/ipv4/conf/all/rp_filter",
		"/proc/sys/net/bridge/bridge-nf-call-iptables", "/proc/sys/net/netfilter/nf_conntrack_count", "/proc/sys/net/netfilter/nf_conntrack_max",
	}
}

// files are the parts that are copied, without the secrets in them.
func (s *Sources) files() []*part {
	var parts []*part
	for _, path := range s.Files {
		parts = append(parts, s.file(path))
	}
	for _, dir := range s.ConfDirs {
		entries, err := dirs.List(filepath.Join(s.Root, dir))
		if err != nil {
			parts = append(parts, &part{name: "files" + dir, read: func(context.Context) ([]byte, error) { return nil, err }})
			continue
		}
		for i, entry := range entries {
			if i == maxConfs {
				left := fmt.Errorf("%d files of the directory are left out", len(entries)-i)
				parts = append(parts, &part{name: "files" + dir, read: func(context.Context) ([]byte, error) { return nil, left }})
				break
			}
			if entry.Type().IsRegular() || entry.Type()&os.ModeSymlink != 0 {
				parts = append(parts, s.file(filepath.Join(dir, entry.Name())))
			}
		}
	}
	return parts
}

func (s *Sources) file(path string) *part {
	return &part{name: "files" + path, read: func(context.Context) ([]byte, error) {
		text, err := dirs.ReadFile(filepath.Join(s.Root, path), maxConf)
		if err != nil {
			return nil, err
		}
		return clean(text), nil
	}}
}

// commands are the parts that programs print. What a program that fails has printed is
// kept.
func (s *Sources) commands() []*part {
	var parts []*part
	for _, args := range s.Commands {
		name := strings.Map(func(c rune) rune {
			if strings.ContainsRune("/ ", c) {
				return '_'
			}
			return c
		}, strings.Join(args, " "))
		parts = append(parts, &part{name: "commands/" + name + ".txt", read: func(ctx context.Context) ([]byte, error) {
			return output(ctx, args)
		}})
	}
	return parts
}

func output(ctx context.Context, args []string) ([]byte, error) {
	// Less than the part has, so that what it printed so far is had.
	ctx, cancel := context.WithTimeout(ctx, askTime-2*lastOutput)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TERM=dumb")
	cmd.WaitDelay = lastOutput
	out := &bounded{most: maxPart}
	cmd.Stdout, cmd.Stderr = out, out
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, err
	}
	if err != nil {
		fmt.Fprintf(&out.text, "\n[%s: %v]\n", args[0], errors.Join(err, ctx.Err()))
	}
	return recorder.RedactLines(out.text.Bytes()), nil
}

// bounded keeps the first bytes of what is written.
type bounded struct {
	text bytes.Buffer
	most int
}

func (b *bounded) Write(data []byte) (int, error) {
	if room := b.most - b.text.Len(); room > 0 {
		b.text.Write(data[:min(room, len(data))])
	}
	return len(data), nil
}
