package installer

import (
	"context"
	"time"
)

// Where crinet lives on a node.
const (
	criEndpoint  = "unix:///run/crinet/cri.sock"
	confDir      = "/etc/crinet/net.d" // containerd's own CNI conf dir
	flagsFile    = "/etc/default/crinetd"
	unitDir      = "/etc/systemd/system"
	packagedUnit = "/usr/lib/systemd/system/crinetd.service"
	stateDir     = "/var/lib/crinet/install"
)

// Options of an Installer.
type Options struct {
	// Root is the folder of the node's tree, / for the machine itself.
	Root string
	// Source is the folder that holds crinetd, crinet and crinetctl.
	Source string
	// BinDir is where they go on the node, unless a package has put them into
	// /usr/bin.
	BinDir string
	// Wait bounds the wait for NetworkReady; 0 does not wait.
	Wait time.Duration
	// Report is told of every step before it is taken.
	Report func(step string)
	// System starts and asks; nil leaves the services alone, as in an image.
	System System
	// Check, if set, looks at the node before anything is changed. Its error names
	// what would keep pods from working, and how to mend it; with Force it is told,
	// and crinet is installed all the same.
	Check func(ctx context.Context) error
	Force bool
	// Trial, if set, attaches a throwaway network to see that pods would get one. It
	// is called once the network is ready, and so not without a Wait.
	Trial func(ctx context.Context) error
}

// System is the running node.
type System interface {
	// Systemctl runs systemctl with these arguments.
	Systemctl(ctx context.Context, args ...string) error
	// Answers returns nil when the CRI socket at path, as the node sees it, says
	// that the network is ready.
	Answers(ctx context.Context, path string) error
}

// Installer installs and uninstalls.
type Installer struct {
	Options
	root *tree
}

// New returns an Installer.
func New(o Options) *Installer {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.BinDir == "" {
		o.BinDir = "/usr/local/bin"
	}
	if o.Report == nil {
		o.Report = func(string) {}
	}
	return &Installer{Options: o, root: &tree{dir: o.Root}}
}
