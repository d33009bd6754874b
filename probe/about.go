package probe

import (
	"context"
	"debug/buildinfo"
	"path"
	"strings"
)

const (
	// maxAbout bounds what is kept of a line.
	maxAbout = 256
	// unknownBuild ends the line of a reference plugin that was built without its
	// version, as go install does.
	unknownBuild = "plugin version unknown"
	// referenceModule is where the reference plugins are built from.
	referenceModule = "github.com/containernetworking/plugins"
)

// askAbout runs a plugin without a verb: plugins that are made with the CNI library
// then print what they are on standard error, and end well. It returns the first
// line, or nothing for a plugin that answers otherwise.
func (p *Prober) askAbout(ctx context.Context, file string) string {
	_, stderr, err := p.exec.Run(ctx, file, nil, nil)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(stderr)), "\n")
	if len(line) > maxAbout {
		return ""
	}
	if said, unknown := strings.CutSuffix(line, unknownBuild); unknown {
		if version := moduleVersion(file); version != "" {
			line = said + "plugin " + version
		}
	}
	return line
}

// moduleVersion returns the version of the reference plugins' module that Go's linker
// wrote into a binary, if the binary is a plugin of that module and name.
func moduleVersion(file string) string {
	info, err := buildinfo.ReadFile(file)
	if err != nil || info.Main.Path != referenceModule || path.Base(info.Path) != path.Base(file) {
		return ""
	}
	return info.Main.Version
}
