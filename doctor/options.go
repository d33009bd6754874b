package doctor

import (
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/crinet-project/crinet/config"
)

// Where crinetd's flags are kept on a node with systemd.
const (
	flagsFile = "/etc/default/crinetd"
	unitName  = "crinetd.service"
)

// unitDirs are where systemd looks for units, the first one wins.
func unitDirs() []string {
	return []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}
}

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
				if line, err := n.read(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && line != "" {
					return strings.Split(strings.TrimSuffix(line, "\x00"), "\x00")[1:], fmt.Sprintf("crinetd, process %d", pid)
				}
			}
		}
	}
	files := []string{flagsFile}
	for _, dir := range unitDirs() {
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
	for _, dir := range unitDirs() {
		if n.exists(dir + "/" + name) {
			return dir + "/" + name
		}
	}
	return ""
}

// installed says whether crinet is on the node.
func (n *Node) installed() bool {
	return n.unit(unitName) != "" || n.exists(flagsFile) || n.exists(n.Options.RunDir) || n.exists(n.Options.StateDir+"/journal.db")
}
