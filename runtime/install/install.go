// Package install puts crinet's CNI configuration and its plugin, the shim, to
// where the container runtime looks for them, and takes them away again.
//
// Both files are crinetd's alone. They are written under another name, synced
// and renamed, so that the runtime never sees half of one, and only when they
// differ from what is there.
package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/crinet-project/crinet/config"
	"github.com/crinet-project/crinet/internal/dirs"
	"github.com/crinet-project/crinet/probe"
)

const (
	// ConfListName is the configuration's file name: the first in the order in
	// which runtimes choose.
	ConfListName = config.OwnFile
	// PluginName is the shim's file name, the plugin type of the configuration.
	PluginName = probe.ShimType
	// networkName is the name of the network that the runtime sees.
	networkName = config.OwnNetwork

	// DefaultConfDir is where a runtime that does not tell looks for its
	// configuration, unless a flag names another directory.
	DefaultConfDir = "/etc/cni/net.d"
	// DefaultBinDir is where such a runtime looks for plugins.
	DefaultBinDir = "/opt/cni/bin"
)

// The CNI versions of the configuration.
const (
	oldVersion = "1.0.0"
	newVersion = "1.1.0"
)

// capabilities are the capability args that the runtime is asked to pass:
// containerd gives what is declared and nothing else. What the selected
// network's plugins get of them, their own declarations say.
var capabilities = map[string]bool{
	"portMappings":                      true,
	"bandwidth":                         true,
	"dns":                               true,
	"mac":                               true,
	"infinibandGUID":                    true,
	"cgroupPath":                        true,
	"io.kubernetes.cri.pod-annotations": true,
}

// Installer knows the places.
type Installer struct {
	// ConfDir and BinDir are where the runtime looks.
	ConfDir, BinDir string
	// Shim is the path of the crinet binary that is copied to BinDir.
	Shim string
	// Socket is the path of cni.sock, which the configuration tells the shim.
	Socket string
}

// CNIVersion is the CNI version for the configuration that a runtime
// understands: containerd reads 1.1.0 since 2.0; 1.0.0 is what 1.6 and 1.7 know,
// and what is given to a runtime that is not known (yet).
func CNIVersion(runtimeName, runtimeVersion string) string {
	major, _, _ := strings.Cut(strings.TrimPrefix(runtimeVersion, "v"), ".")
	if n, err := strconv.Atoi(major); err == nil && runtimeName == "containerd" && n >= 2 {
		return newVersion
	}
	return oldVersion
}

// Installed is the CNI version of the configuration that stands, if one does
// that crinetd wrote.
func (i Installer) Installed() (cniVersion string, ok bool) {
	var conf struct {
		CNIVersion string `json:"cniVersion"`
	}
	data, err := os.ReadFile(filepath.Join(i.ConfDir, ConfListName))
	if err != nil || json.Unmarshal(data, &conf) != nil {
		return "", false
	}
	return conf.CNIVersion, conf.CNIVersion == oldVersion || conf.CNIVersion == newVersion
}

// Install makes shim and configuration stand, in this order, and says whether
// it had to write anything.
func (i Installer) Install(cniVersion string) (changed bool, err error) {
	shim, err := os.ReadFile(i.Shim)
	if err != nil {
		return false, fmt.Errorf("the crinet plugin, which belongs beside crinetd: %w", err)
	}
	confList, err := i.confList(cniVersion)
	if err != nil {
		return false, err
	}
	newShim, err := write(i.BinDir, PluginName, shim, 0o755)
	if err != nil {
		return false, fmt.Errorf("install the crinet plugin for the runtime: %w", err)
	}
	newConf, err := write(i.ConfDir, ConfListName, confList, 0o644)
	if err != nil {
		return false, fmt.Errorf("install crinet's CNI configuration for the runtime: %w", err)
	}
	return newShim || newConf, nil
}

// paths are those of configuration and shim.
func (i Installer) paths() []string {
	return []string{filepath.Join(i.ConfDir, ConfListName), filepath.Join(i.BinDir, PluginName)}
}

// removeUnfinished removes what a crash in Install left behind.
func (i Installer) removeUnfinished() {
	for _, path := range i.paths() {
		dirs.RemoveUnfinished(path)
	}
}

// Remove takes configuration and shim away, in this order, and says whether
// there was anything.
func (i Installer) Remove() (changed bool, err error) {
	for _, path := range i.paths() {
		switch err := os.Remove(path); {
		case err == nil:
			changed = true
		case !errors.Is(err, fs.ErrNotExist):
			return changed, fmt.Errorf("remove what crinetd installed for the runtime: %w", err)
		}
	}
	return changed, nil
}

// confList is the configuration's text.
func (i Installer) confList(cniVersion string) ([]byte, error) {
	type plugin struct {
		Type         string          `json:"type"`
		Socket       string          `json:"socket"`
		Capabilities map[string]bool `json:"capabilities"`
	}
	data, err := json.MarshalIndent(struct {
		CNIVersion string   `json:"cniVersion"`
		Name       string   `json:"name"`
		Plugins    []plugin `json:"plugins"`
	}{cniVersion, networkName, []plugin{{PluginName, i.Socket, capabilities}}}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("crinet's CNI configuration: %w", err)
	}
	return append(data, '\n'), nil
}

// write makes dir/name have the contents and mode, atomically. Its errors are the
// same for the same cause, so that who reports them sees that nothing is new.
func write(dir, name string, data []byte, mode fs.FileMode) (changed bool, err error) {
	path := filepath.Join(dir, name)
	if info, err := os.Lstat(path); err == nil && info.Mode() == mode {
		if now, err := os.ReadFile(path); err == nil && bytes.Equal(now, data) {
			return false, nil
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, fmt.Errorf("directory %s: %w", dir, err)
	}
	return true, dirs.WriteFile(path, data, mode)
}
