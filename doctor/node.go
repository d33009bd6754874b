package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/crinet-project/crinet/config"
	"github.com/crinet-project/crinet/internal/dirs"
)

// maxFile bounds a file that is read, in bytes.
const maxFile = 4 << 20

// Node is the seam to the machine. What a check needs of it is read once, when the
// first check asks for it. A Node may be used from many goroutines.
type Node struct {
	// Root is the folder of the node's tree, / for the machine itself.
	Root string
	// Live says that the tree is that of the running system: the kernel is asked.
	Live bool
	// NetNS is a file descriptor of the node's network namespace; 0 is the process's
	// own.
	NetNS int
	// Options are crinetd's, OptionsFrom says where they were found. See
	// [FindOptions].
	Options     *config.Options
	OptionsFrom string
	// Version is the asking program's; empty if it has none.
	Version string
	// Crinetd asks crinetd, Runtime the container runtime. nil asks nobody.
	Crinetd func(context.Context) (*Crinetd, error)
	Runtime func(context.Context) (*Runtime, error)

	crinetd  source[*Crinetd]
	runtime  source[*Runtime]
	links    source[*links]
	ruleset  source[*ruleset]
	legacy   source[[]legacyTable]
	networks source[*networks]
	procs    source[*processes]
	trial    source[*kernelTrial]
}

// Crinetd is what crinetd says of itself.
type Crinetd struct {
	Version string
	Plugin  string // cni or noop
	Ready   bool
	Reason  string // why it is not ready
	// Network and NetworkFile name the selected network.
	Network, NetworkFile string
	// Executed are the types of the network's plugins that crinetd does not run
	// itself.
	Executed []string
	PodCIDRs []string
	// Loaded are the networks that the runtime has loaded; RuntimeProblem is why it
	// does not use crinet.
	Loaded         []string
	RuntimeProblem string
	// HostPorts says that crinetd maps them; Mapped is how many it has mapped,
	// HostPortProblem why it cannot.
	HostPorts       bool
	Mapped          int
	HostPortProblem string
	AddFailures     int
	UndoPending     int
	Problems        []string // of files, each with its place
	Pods            []Pod
}

// Pod is a sandbox that crinetd has networked.
type Pod struct {
	Name      string // namespace/name
	Sandbox   string
	State     string
	Network   string
	NetNS     string
	Addresses []string
	Tries     int // failed attempts to undo it
	LastError string
}

// Runtime is what the container runtime says.
type Runtime struct {
	Name, Version string
	// Told says that it tells its CNI settings, which are the following.
	Told             bool
	ConfDir          string
	BinDirs          []string
	MaxConfNum       int
	InternalLoopback bool
	Handlers         map[string]string // with a conf dir of their own -> that
	Loaded           []string
	LoadError        string
	// Sandboxes are the ids of its sandboxes.
	Sandboxes []string
}

// source is something that is read once.
type source[T any] struct {
	once  sync.Once
	done  chan struct{}
	value T
	err   error
}

// get reads the source at the first call, and waits until it is read or ctx ends.
// Whoever waits longest has it read to the end.
func (s *source[T]) get(ctx context.Context, load func(context.Context) (T, error)) (T, error) {
	s.once.Do(func() {
		s.done = make(chan struct{})
		deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTime*4/5)
		go func() {
			defer close(s.done)
			defer cancel()
			defer func() {
				if p := recover(); p != nil {
					s.err = fmt.Errorf("reading it failed: %v", p)
				}
			}()
			s.value, s.err = load(deadline)
		}()
	})
	select {
	case <-s.done:
		return s.value, s.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// errNotLive is the reason of checks that need a kernel.
var errNotLive = errors.New("the tree is not that of the running system")

// askCrinetd is crinetd's word.
func (n *Node) askCrinetd(ctx context.Context) (*Crinetd, error) {
	if n.Crinetd == nil {
		return nil, errNotLive
	}
	return n.crinetd.get(ctx, n.Crinetd)
}

// askRuntime is the container runtime's word.
func (n *Node) askRuntime(ctx context.Context) (*Runtime, error) {
	if n.Runtime == nil {
		return nil, errNotLive
	}
	return n.runtime.get(ctx, n.Runtime)
}

// path is where a file of the node is found.
func (n *Node) path(name string) string { return filepath.Join(n.Root, name) }

// read returns a file of the node.
func (n *Node) read(name string) (string, error) {
	data, err := dirs.ReadFile(n.path(name), maxFile)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, dirs.Cause(err))
	}
	return string(data), nil
}

// exists says whether there is something at a path.
func (n *Node) exists(name string) bool {
	_, err := os.Lstat(n.path(name))
	return err == nil
}

// list returns the names in a folder of the node that are no dotfiles, sorted; none if
// it cannot be read.
func (n *Node) list(dir string) []string {
	entries, err := dirs.List(n.path(dir))
	if err != nil && !errors.Is(err, dirs.ErrTooMany) {
		return nil
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

// glob returns the node's paths that match, sorted.
func (n *Node) glob(pattern string) []string {
	found, err := filepath.Glob(n.path(pattern))
	if err != nil {
		return nil
	}
	root := filepath.Clean(n.Root)
	for i := range found {
		found[i] = "/" + strings.TrimPrefix(strings.TrimPrefix(found[i], root), "/")
	}
	return found
}

// sysctl returns a sysctl's value, without white space. fs.ErrNotExist says that the
// kernel, or the module that is loaded, has none.
func (n *Node) sysctl(name string) (string, error) {
	text, err := n.read("/proc/sys/" + name)
	return strings.TrimSpace(text), err
}

// number returns a sysctl that is a number.
func (n *Node) number(name string) (int, error) {
	text, err := n.sysctl(name)
	if err != nil {
		return 0, err
	}
	value, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("/proc/sys/%s is %q", name, text)
	}
	return value, nil
}

// isMissing says that an error is about a file that is not there.
func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// line is a line of a file.
type line struct {
	File   string
	Number int
	Text   string
}

func (l line) String() string { return fmt.Sprintf("%s:%d", l.File, l.Number) }

// grep returns the lines of the node's files that want takes; comments (# and ;) are
// left out.
func (n *Node) grep(files []string, want func(text string) bool) []line {
	var found []line
	for _, file := range files {
		text, err := n.read(file)
		if err != nil {
			continue
		}
		for i, l := range strings.Split(text, "\n") {
			l = strings.TrimSpace(l)
			if l != "" && l[0] != '#' && l[0] != ';' && want(l) {
				found = append(found, line{file, i + 1, l})
			}
		}
	}
	return found
}

// sysctlFiles are the files that sysctl settings are from, in the order in which
// systemd-sysctl reads them: by their names, whatever the folder; a file in an earlier
// folder hides those of its name.
func (n *Node) sysctlFiles() []string {
	byName := make(map[string]string)
	for _, dir := range []string{"/usr/lib/sysctl.d", "/usr/local/lib/sysctl.d", "/run/sysctl.d", "/etc/sysctl.d"} {
		for _, file := range n.glob(dir + "/*.conf") {
			byName[filepath.Base(file)] = file
		}
	}
	var files []string
	for _, name := range sortedKeys(byName) {
		files = append(files, byName[name])
	}
	if n.exists("/etc/sysctl.conf") && !slices.Contains(sortedKeys(byName), "99-sysctl.conf") {
		files = append(files, "/etc/sysctl.conf")
	}
	return files
}

// setSysctl is the mend of a sysctl: now, and the file that has set it otherwise, or
// one that keeps it.
func (n *Node) setSysctl(name, value string) string {
	dotted := strings.ReplaceAll(name, "/", ".")
	mend := "sysctl -w " + dotted + "=" + value
	set := n.grep(n.sysctlFiles(), func(text string) bool {
		key, _, ok := strings.Cut(strings.TrimPrefix(text, "-"), "=")
		return ok && strings.ReplaceAll(strings.TrimSpace(key), "/", ".") == dotted
	})
	if len(set) > 0 {
		last := set[len(set)-1]
		return fmt.Sprintf("%s; and in %s (now: %s)", mend, last, last.Text)
	}
	return fmt.Sprintf("%s; to keep it: echo '%s = %s' >/etc/sysctl.d/99-crinet.conf", mend, dotted, value)
}
