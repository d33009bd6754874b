package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/crinet-project/crinet/cni/pluginexec"
	"github.com/crinet-project/crinet/cni/wire"
)

// Runner runs one plugin binary to its end; [pluginexec.Exec] is the real one.
type Runner interface {
	Run(ctx context.Context, path string, stdin []byte, env []string) (stdout, stderr []byte, err error)
}

// execAdapter lets libcni run plugins through a Runner, or those that an attachment
// has built in through a BuiltinRunner.
type execAdapter struct {
	version.PluginDecoder
	runner  Runner
	observe Observe // may be nil

	builtin    BuiltinRunner
	attachment *Attachment // whose plugins are run; nil for verbs that are not about one
}

var _ invoke.Exec = (*execAdapter)(nil)

// ExecPlugin runs the plugin with the CNI variables of environ alone: libcni
// passes the daemon's whole environment.
func (e *execAdapter) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	if typ, found := strings.CutPrefix(path, builtinPath); found {
		return e.runBuiltin(ctx, typ, stdin, environ)
	}
	env := cniVariables(environ)
	ctx, more, ended := e.begin(ctx, Run{Type: filepath.Base(path), Path: path, Command: valueOf(environ, "CNI_COMMAND"), Env: env, Stdin: stdin})
	stdout, stderr, err := e.runner.Run(ctx, path, stdin, append(env, more...))
	ended(stdout, stderr, err)
	if err == nil {
		return stdout, nil
	}
	return nil, pluginError(path, stdout, err)
}

// runPlugin runs the plugin of that type in dirs, with a verb that prints no
// result.
func (e *execAdapter) runPlugin(ctx context.Context, typ string, dirs []string, stdin []byte, args *invoke.Args) error {
	path, err := e.FindInPath(typ, dirs)
	if err != nil {
		return err
	}
	args.Path = strings.Join(dirs, ":")
	return invoke.ExecPluginWithoutResult(ctx, path, stdin, args, e)
}

// pluginError turns a failed run into the error that the plugin printed, if it
// printed one (CNI spec, section Error), so that its code reaches the runtime.
func pluginError(path string, stdout []byte, err error) error {
	if !errors.Is(err, pluginexec.ErrExit) {
		return err
	}
	var said wire.Error
	if json.Unmarshal(stdout, &said) != nil || (said.Code == 0 && said.Msg == "") {
		return err
	}
	return fmt.Errorf("plugin %s: %w", filepath.Base(path), &said)
}

// cniError converts an error that libcni itself made to crinet's type.
func cniError(err error) error {
	var theirs *types.Error
	if errors.As(err, &theirs) {
		return &wire.Error{Code: theirs.Code, Msg: theirs.Msg, Details: theirs.Details}
	}
	return err
}

// FindInPath is FindPlugin for libcni. A plugin that is built in needs no binary.
func (e *execAdapter) FindInPath(plugin string, dirs []string) (string, error) {
	if e.attachment != nil && e.attachment.builtin(plugin) != nil {
		return builtinPath + plugin, nil
	}
	return FindPlugin(plugin, dirs)
}

// FindPlugin returns the path of the first executable in dirs with the plugin's
// name. The name comes from a configuration file; one with a path in it is
// refused.
func FindPlugin(plugin string, dirs []string) (string, error) {
	if plugin == "" || plugin != filepath.Base(plugin) || plugin == "." || plugin == ".." {
		return "", fmt.Errorf("plugin type %q is not a file name", plugin)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, plugin)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("plugin %s: no executable of that name in %s: install it there",
		plugin, strings.Join(dirs, ", "))
}
