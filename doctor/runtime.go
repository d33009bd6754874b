package doctor

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/crinet-project/crinet/config"
	"github.com/crinet-project/crinet/probe"
)

const runtimeConcern = "runtime"

// containerdConfig is where containerd's settings are changed.
const containerdConfig = "/etc/containerd/config.toml"

func runtimeChecks() []Check {
	answers := []string{"containerd-answers"}
	return []Check{
		{Name: "containerd-answers", Looks: "whether the container runtime answers on its CRI socket", Severity: Error, run: runtimeAnswers,
			Why: "no pod can be started, stopped or even listed"},
		{Name: "containerd-version", Looks: "whether the runtime is a containerd from 1.6 on, which tells its CNI settings", Severity: Warning, run: runtimeVersion,
			After: answers, Why: "crinetd must be told by flags where the runtime looks for CNI files"},
		{Name: "containerd-conf", Looks: "the runtime's CNI conf dir: crinet's file is there, comes first and is loaded", Severity: Error, run: runtimeConf,
			After: slices.Concat(answers, []string{"crinetd-answers", "containerd-loopback"}), Why: "the runtime networks pods past crinet, or not at all"},
		{Name: "containerd-loopback", Looks: "who sets up lo in pods: the runtime itself or the plugin loopback", Severity: Error, run: runtimeLoopback,
			After: answers, Why: "the runtime fails each pod without the plugin loopback"},
		{Name: "containerd-max-conf-num", Looks: "how many networks the runtime attaches a pod to (max_conf_num)", Severity: Warning, run: runtimeMaxConf,
			After: answers, Why: "pods get interfaces that crinet knows nothing of"},
		{Name: "containerd-handlers", Looks: "runtime handlers with a CNI conf dir of their own", Severity: Info, run: runtimeHandlers,
			After: answers, Why: "their pods are networked past crinet"},
		{Name: "crinet-plugin", Looks: "the plugin crinet in the runtime's bin dir: executable, of this architecture", Severity: Error, run: crinetPlugin,
			After: slices.Concat(answers, []string{"crinetd-answers"}), Why: "the runtime cannot reach crinetd: every pod fails"},
	}
}

// runtimeEndpoint is the path of the runtime's socket.
func (n *Node) runtimeEndpoint() string {
	return strings.TrimPrefix(n.Options.ContainerRuntimeEndpoint, "unix://")
}

func runtimeAnswers(ctx context.Context, n *Node) Result {
	r, err := n.askRuntime(ctx)
	switch {
	case n.Runtime == nil:
		return unknown("%v", err)
	case err == nil:
		return good("%s %s answers on %s", r.Name, r.Version, n.runtimeEndpoint())
	case n.runs(ctx, "containerd"):
		return bad("journalctl -u containerd -n 50; if it hangs: systemctl restart containerd (running pods live on)",
			"containerd runs but gave no answer on %s: %v", n.runtimeEndpoint(), err)
	}
	return bad("systemctl start containerd; if the runtime is another: --container-runtime-endpoint in "+flagsFile,
		"nobody answers on %s and no containerd runs: %v", n.runtimeEndpoint(), err)
}

// toldRuntime returns the runtime's settings, or the result for a runtime that does not
// tell.
func (n *Node) toldRuntime(ctx context.Context) (*Runtime, *Result) {
	r, err := n.askRuntime(ctx)
	if err != nil {
		result := unknown("the runtime does not answer")
		return nil, &result
	}
	if !r.Told {
		result := unknown("%s %s does not tell its CNI settings", r.Name, r.Version)
		return nil, &result
	}
	return r, nil
}

func runtimeVersion(ctx context.Context, n *Node) Result {
	r, err := n.askRuntime(ctx)
	if err != nil {
		return unknown("the runtime does not answer")
	}
	major, minor := release(r.Version)
	if r.Name != "containerd" || major < 1 || major == 1 && minor < 6 {
		return bad("upgrade to containerd 1.6 or later", "the runtime is %s %s", r.Name, r.Version)
	}
	return good("%s %s", r.Name, r.Version)
}

// release is the first two numbers of a version.
func release(version string) (major, minor int) {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	major, _ = strconv.Atoi(parts[0]) // 0 for what is no number
	if len(parts) > 1 {
		minor, _ = strconv.Atoi(parts[1])
	}
	return major, minor
}

func runtimeConf(ctx context.Context, n *Node) Result {
	r, result := n.toldRuntime(ctx)
	if result != nil {
		return *result
	}
	if !n.installed() || n.Options.Noop() {
		return skip("crinet does not network the runtime's pods here")
	}
	dir := r.ConfDir
	restart := "systemctl restart crinetd writes it again"
	names := slices.DeleteFunc(n.list(dir), func(name string) bool {
		return !slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(name))
	})
	for _, handled := range []string{n.Options.RuntimeCNIConfDir} {
		if handled != "" && filepath.Clean(handled) != filepath.Clean(dir) {
			return bad("remove --runtime-cni-conf-dir from crinetd's flags ("+n.OptionsFrom+"): crinetd asks the runtime",
				"crinetd writes to %s (--runtime-cni-conf-dir), the runtime reads %s", handled, dir)
		}
	}
	at := slices.Index(names, config.OwnFile)
	switch {
	case at < 0:
		return bad(restart, "%s is not in %s, which has: %s", config.OwnFile, dir, cmp.Or(few(names), "nothing"))
	case at > 0:
		return bad(fmt.Sprintf("mv %s/%s %s/90-%s", dir, names[0], dir, names[0]), "%s sorts before %s in %s: the runtime takes it", names[0], config.OwnFile, dir)
	case r.LoadError != "":
		return bad("mend what the error names; the runtime reads the folder again at each change in it", "the runtime cannot load %s: %s", dir, r.LoadError)
	}
	text, err := n.read(dir + "/" + config.OwnFile)
	if err != nil {
		return unknown("%v", err)
	}
	own, err := decodeNetwork([]byte(text))
	if err != nil || !own.has(probe.ShimType) {
		return bad("rm "+dir+"/"+config.OwnFile+" && "+restart, "%s/%s is not crinet's any more", dir, config.OwnFile)
	}
	if !slices.Contains(r.Loaded, own.Name) {
		return bad("systemctl restart containerd (running pods live on)", "the runtime has not loaded %s; it has loaded: %s", config.OwnFile, cmp.Or(few(r.Loaded), "nothing"))
	}
	return good("%s comes first in %s and is loaded", config.OwnFile, dir)
}

func runtimeLoopback(ctx context.Context, n *Node) Result {
	r, result := n.toldRuntime(ctx)
	if result != nil {
		return *result
	}
	if r.InternalLoopback {
		return good("the runtime sets up lo itself")
	}
	for _, dir := range r.BinDirs {
		if n.executable(dir+"/loopback") == nil {
			return good("the plugin loopback is in %s", dir)
		}
	}
	return bad("install the CNI plugin loopback into "+strings.Join(r.BinDirs, " or ")+"; or, from containerd 2.0 on, use_internal_loopback = true in the cni section of "+containerdConfig,
		"the plugin loopback is in none of %s", strings.Join(r.BinDirs, ", "))
}

func runtimeMaxConf(ctx context.Context, n *Node) Result {
	r, result := n.toldRuntime(ctx)
	if result != nil {
		return *result
	}
	if r.MaxConfNum == 1 {
		return good("max_conf_num is 1")
	}
	many := 0
	for _, name := range n.list(r.ConfDir) {
		if slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(name)) {
			many++
		}
	}
	if many < 2 {
		return good("max_conf_num is %d, and %s has no second network", r.MaxConfNum, r.ConfDir)
	}
	return bad("set max_conf_num = 1 in the cni section of "+containerdConfig+" and systemctl restart containerd",
		"max_conf_num is %d, and %s has %d networks", r.MaxConfNum, r.ConfDir, many)
}

func runtimeHandlers(ctx context.Context, n *Node) Result {
	r, result := n.toldRuntime(ctx)
	if result != nil {
		return *result
	}
	var own []string
	for _, name := range sortedKeys(r.Handlers) {
		if !slices.Contains(n.Options.RuntimeHandlers, name) && filepath.Clean(r.Handlers[name]) != filepath.Clean(r.ConfDir) {
			own = append(own, name+" ("+r.Handlers[name]+")")
		}
	}
	if len(own) == 0 {
		return good("%d handlers have a conf dir of their own, and crinet serves them", len(r.Handlers))
	}
	return bad("if crinet is to network their pods: --runtime-handlers=NAMES in "+flagsFile, "handlers with a conf dir of their own: %s", few(own))
}

func crinetPlugin(ctx context.Context, n *Node) Result {
	r, result := n.toldRuntime(ctx)
	if result != nil {
		return *result
	}
	if !n.installed() || n.Options.Noop() {
		return skip("crinet does not network the runtime's pods here")
	}
	dirs := r.BinDirs
	if n.Options.RuntimeCNIBinDir != "" {
		dirs = []string{n.Options.RuntimeCNIBinDir}
	}
	var err error
	for _, dir := range dirs {
		if err = n.executable(dir + "/" + probe.ShimType); err == nil {
			return good("%s/%s can be executed", dir, probe.ShimType)
		} else if !isMissing(err) {
			return bad("systemctl restart crinetd writes it again; is the file system mounted noexec?", "%v", err)
		}
	}
	return bad("systemctl restart crinetd writes it again", "the plugin crinet is in none of %s", strings.Join(dirs, ", "))
}
