package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

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
	versions []string
	reason   string
	busy     bool
}

// ask runs the VERSION verb (CNI specification, section "VERSION"). The
// variables besides CNI_COMMAND are for plugins that were built with libraries
// older than 0.5, which insist on them.
func (p *Prober) ask(ctx context.Context, f file) answer {
	stdout, _, err := p.exec.Run(ctx, f.path, []byte(`{"cniVersion":"`+version.Current()+`"}`), []string{
		"CNI_COMMAND=VERSION", "CNI_CONTAINERID=probe", "CNI_NETNS=probe", "CNI_IFNAME=probe", "CNI_PATH=probe",
	})
	if err != nil {
		return answer{reason: p.whyNot(err, stdout), busy: isBusy(err)}
	}
	versions, err := decode(stdout)
	if err != nil {
		return answer{reason: fmt.Sprintf("is no CNI plugin: its answer to VERSION %v", err)}
	}
	return answer{versions: versions}
}

// whyNot words an error of exec. The caller knows the path.
func (p *Prober) whyNot(err error, stdout []byte) string {
	var e *pluginexec.Error
	if !errors.As(err, &e) {
		return fmt.Sprintf("cannot be asked for its versions: %v", err)
	}
	switch {
	case errors.Is(err, pluginexec.ErrTimeout):
		return fmt.Sprintf("hangs: no answer to VERSION within %s; it is not run again until the file changes", p.timeout)
	case errors.Is(err, pluginexec.ErrStart):
		return fmt.Sprintf("cannot be executed: %v", e.Cause)
	case errors.Is(err, pluginexec.ErrOutput):
		return fmt.Sprintf("is no CNI plugin: it answers VERSION with more than %d bytes", maxAnswer)
	}
	how := fmt.Sprintf("exit status %d", e.ExitCode)
	if e.ExitCode < 0 {
		how = fmt.Sprintf("signal %d (%v)", int(e.Signal), e.Signal)
	}
	var said struct {
		Msg string `json:"msg"`
	}
	// An error object on stdout says more than stderr; anything else does not.
	if json.Unmarshal(stdout, &said) != nil || said.Msg == "" {
		said.Msg = e.Stderr
	}
	if said.Msg == "" {
		return fmt.Sprintf("is no CNI plugin: it ends with %s when asked for its VERSION", how)
	}
	return fmt.Sprintf("is no CNI plugin: it ends with %s when asked for its VERSION: %.200q", how, said.Msg)
}

// isBusy tells conditions of the node, or of an upgrade, from those of the file.
func isBusy(err error) bool {
	if errors.Is(err, pluginexec.ErrCanceled) {
		return true
	}
	if !errors.Is(err, pluginexec.ErrStart) {
		return false
	}
	return slices.ContainsFunc([]error{
		syscall.ETXTBSY, syscall.EAGAIN, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE, syscall.ESTALE, syscall.EIO,
	}, func(errno error) bool { return errors.Is(err, errno) })
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
