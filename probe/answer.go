package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/version"

	"github.com/crinet-project/crinet/cni/pluginexec"
)

const (
	// maxVersions and maxVersion bound what is kept of an answer.
	maxVersions = 64
	maxVersion  = 32
)

// answer is what a file said when it was asked for its versions.
type answer struct {
	versions  []string
	about     string // see Plugin.About
	reason    string // why there are none; reads on from the plugin's path
	transient bool   // the reason may pass without a change of the file
}

// unknownVersion is what plugins say that are older than the verb VERSION. It is
// matched as libcni's invoke.GetVersionInfo does.
const unknownVersion = "unknown CNI_COMMAND: VERSION"

// ask runs the VERSION verb (CNI specification, section "VERSION"). The
// variables besides CNI_COMMAND are for plugins that were built with libraries
// older than 0.5, which insist on them.
func (p *Prober) ask(ctx context.Context, path string) answer {
	stdout, _, err := p.exec.Run(ctx, path, []byte(`{"cniVersion":"`+version.Current()+`"}`), []string{
		"CNI_COMMAND=VERSION", "CNI_CONTAINERID=probe", "CNI_NETNS=probe", "CNI_IFNAME=probe", "CNI_PATH=probe",
	})
	if err != nil {
		return p.judge(err, stdout)
	}
	versions, err := decode(stdout)
	if err != nil {
		return answer{reason: fmt.Sprintf("is no CNI plugin: its answer to VERSION %v", err)}
	}
	a := answer{versions: versions}
	if slices.Contains(p.about, filepath.Base(path)) {
		a.about = p.askAbout(ctx, path)
	}
	return a
}

// judge makes an answer of an error of exec. What the program itself did is
// final; what the node did to it is transient.
func (p *Prober) judge(err error, stdout []byte) answer {
	var e *pluginexec.Error
	if !errors.As(err, &e) {
		return answer{reason: fmt.Sprintf("cannot be asked for its versions: %v", err), transient: true}
	}
	switch {
	case errors.Is(err, pluginexec.ErrTimeout):
		return answer{reason: fmt.Sprintf("hangs: no answer to VERSION within %s; it is asked again", p.timeout), transient: true}
	case errors.Is(err, pluginexec.ErrStart):
		return answer{reason: fmt.Sprintf("cannot be executed: %v", e.Cause), transient: true}
	case errors.Is(err, pluginexec.ErrOutput):
		return answer{reason: fmt.Sprintf("is no CNI plugin: it answers VERSION with more than %d bytes", maxAnswer)}
	case e.ExitCode < 0:
		return answer{reason: fmt.Sprintf("ends with signal %d (%v) when asked for its VERSION", int(e.Signal), e.Signal), transient: true}
	}
	var said struct {
		Msg string `json:"msg"`
	}
	// An error object on stdout says more than stderr; anything else does not.
	if json.Unmarshal(stdout, &said) != nil || said.Msg == "" {
		said.Msg = e.Stderr
	} else if said.Msg == unknownVersion {
		return answer{versions: version.PluginSupports("0.1.0").SupportedVersions()}
	}
	reason := fmt.Sprintf("is no CNI plugin: it ends with exit status %d when asked for its VERSION", e.ExitCode)
	if said.Msg != "" {
		reason += fmt.Sprintf(": %.200q", said.Msg)
	}
	return answer{reason: reason}
}

// decode reads an answer to VERSION. Versions that are no version numbers are
// left out.
func decode(stdout []byte) ([]string, error) {
	if len(strings.TrimSpace(string(stdout))) == 0 {
		return nil, errors.New("is empty")
	}
	info, err := new(version.PluginDecoder).Decode(stdout)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w: %.60q", err, stdout)
	}
	var versions []string
	for _, v := range info.SupportedVersions() {
		_, _, _, err := version.ParseVersion(v)
		if err == nil && v != "" && len(v) <= maxVersion && len(versions) < maxVersions && !slices.Contains(versions, v) {
			versions = append(versions, v)
		}
	}
	if len(versions) == 0 {
		return nil, fmt.Errorf("names no version: %.60q", stdout)
	}
	return versions, nil
}
