package doctor

import (
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/crinet-project/crinet/config"
	"github.com/crinet-project/crinet/internal/kubelet"
)

// Where crinetd's flags are kept on a node with systemd.
const (
	flagsFile = "/etc/default/crinetd"
	unitName  = "crinetd.service"
)

// flagsLine is the setting of the flags, in the file and in the unit.
var flagsLine = regexp.MustCompile(`^(?:Environment=)?"?CRINETD_FLAGS=(.*)$`)

// FindOptions finds crinetd's flags: those of the running process, of the file
// /etc/default/crinetd, of the unit, or else the defaults for a node on which crinetd
// has the pods' networks. more are flags that come after those that were found. from
// says which they are. The error is one of more.
func (n *Node) FindOptions(more []string) error {
	found, from := n.findFlags()
	options, err := config.Parse(append(found, more...), io.Discard)
	if err != nil && len(found) > 0 {
		from = fmt.Sprintf("crinetd's defaults, since those of %s cannot be read (%v)", from, err)
		options, err = config.Parse(append([]string{"--network-plugin=cni"}, more...), io.Discard)
	}
	if err != nil {
		return err
	}
	n.Options, n.OptionsFrom = options, from
	return nil
}

// findFlags returns crinetd's flags as somebody has set them.
func (n *Node) findFlags() (flags []string, from string) {
	if n.Live {
		if procs, err := n.scanProcesses(); err == nil {
			for _, pid := range procs.named("crinetd") {
				n.running = true
				if line, err := n.read(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && line != "" {
					return strings.Split(strings.TrimSuffix(line, "\x00"), "\x00")[1:], fmt.Sprintf("crinetd, process %d", pid)
				}
			}
		}
	}
	files := []string{flagsFile}
	for _, dir := range kubelet.UnitDirs() {
		files = append(files, dir+"/"+unitName)
	}
	for _, l := range n.grep(files, flagsLine.MatchString) {
		value := flagsLine.FindStringSubmatch(l.Text)[1]
		return strings.Fields(strings.Trim(value, `"'`)), l.String()
	}
	return []string{"--network-plugin=cni"}, "crinetd's defaults"
}

// unit returns the path of crinetd's unit; empty if there is none.
func (n *Node) unit(name string) string {
	for _, dir := range kubelet.UnitDirs() {
		if n.exists(dir + "/" + name) {
			return dir + "/" + name
		}
	}
	return ""
}

// installed says whether crinet is to work on the node. A package alone changes nothing
// there, and a journal outlives crinetctl uninstall.
func (n *Node) installed() bool {
	switch {
	case n.running || n.exists(flagsFile):
		return true
	case n.exists("/run/systemd/system") || n.unit(unitName) != "":
		return n.exists("/etc/systemd/system/multi-user.target.wants/" + unitName)
	}
	return n.exists(n.Options.RunDir) || n.exists(n.Options.StateDir+"/journal.db")
}
