package install

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/crinet-project/crinet/runtime/upstream"
)

// settings is where an operator changes what the runtime does.
const settings = "the runtime's CNI settings (containerd: config.toml, section cni)"

// Serves says whether crinet networks the pods of a runtime handler: all but
// those whose handler has a conf dir of its own that --runtime-handlers does not
// name.
func (k *Keeper) Serves(handler string) bool {
	_, own := k.view.Load().unserved[handler]
	return !own
}

// Unserved returns the handlers that crinet leaves alone, with their conf dirs.
func (k *Keeper) Unserved() map[string]string {
	return maps.Clone(k.view.Load().unserved)
}

// Ready says whether the runtime calls crinet for its pods. The error names the
// side that is not ready and what to change. Of a runtime that went down or does
// not tell its CNI settings Ready only asks that the files are in place.
func (k *Keeper) Ready() error {
	answer, seen := k.config.Runtime.Last(), k.view.Load()
	err := seen.trouble
	if err == nil && seen.main == nil && answer.Facts == nil {
		err = errors.New("the runtime has not answered yet, and says where its CNI configuration belongs")
	}
	if err == nil && answer.Facts != nil && answer.Facts.Told {
		err = k.uses(answer, seen)
	}
	if err != nil {
		return fmt.Errorf("the runtime's side: %w", err)
	}
	return nil
}

// uses holds what the runtime says against what is installed.
func (k *Keeper) uses(answer upstream.Answer, seen *view) error {
	facts, p := answer.Facts, seen.main
	if p == nil {
		return fmt.Errorf("crinet's CNI configuration is not installed in %s yet", facts.ConfDir)
	}
	if err := k.looksThere(facts, p); err != nil {
		return err
	}
	file := filepath.Join(p.installer.ConfDir, ConfListName)
	switch {
	case answer.Asked.Before(p.changed) && p.takenBy != "":
		return fmt.Errorf("%s has not said yet that it has loaded %s; somebody removed or changed it before: %s", facts.Name, file, p.takenBy)
	case answer.Asked.Before(p.changed):
		return fmt.Errorf("%s has not said yet that it has loaded %s", facts.Name, file)
	case !facts.HasLoaded(networkName):
		return notLoaded(facts, file)
	case p.takenBy != "" && k.now().Sub(p.changed) < stay:
		return fmt.Errorf("somebody removed or changed %s, and crinetd put it back and waits %s to see it stay: %s", file, stay, p.takenBy)
	case !facts.InternalLoopback && !seen.loopback:
		return fmt.Errorf("%s needs the plugin loopback in %s: install it, or set use_internal_loopback in %s",
			facts.Name, strings.Join(facts.BinDirs, " or "), settings)
	case facts.LoadError != "":
		return fmt.Errorf("%s cannot use its CNI configuration in %s: %s", facts.Name, p.installer.ConfDir, facts.LoadError)
	}
	return nil
}

// looksThere says whether the runtime looks where crinet is installed. Where it
// does not, a flag is wrong, or its settings have changed a moment ago.
func (k *Keeper) looksThere(facts *upstream.Facts, p *place) error {
	if confDir := p.installer.ConfDir; !sameDir(confDir, facts.ConfDir) {
		if k.config.ConfDir == "" {
			return fmt.Errorf("crinet's CNI configuration is not installed in %s yet", facts.ConfDir)
		}
		return fmt.Errorf("%s reads its CNI configuration from %s, and --runtime-cni-conf-dir is %s: "+
			"leave the flag away, or set conf_dir in %s to the same", facts.Name, facts.ConfDir, confDir, settings)
	}
	binDir := p.installer.BinDir
	if slices.ContainsFunc(facts.BinDirs, func(dir string) bool { return sameDir(dir, binDir) }) {
		return nil
	}
	if k.config.BinDir == "" {
		return fmt.Errorf("the crinet plugin is not installed in %s yet", strings.Join(facts.BinDirs, " or "))
	}
	return fmt.Errorf("%s looks for plugins in %s, and --runtime-cni-bin-dir is %s: "+
		"leave the flag away, or name it in bin_dirs of %s", facts.Name, strings.Join(facts.BinDirs, " and "), binDir, settings)
}

// notLoaded says what the runtime has loaded instead of a file, and why.
func notLoaded(facts *upstream.Facts, file string) error {
	instead := cmp.Or(strings.Join(facts.Loaded, ", "), "no network")
	why := facts.LoadError
	switch {
	case why != "":
	case len(facts.Loaded) > 0:
		why = "rename the files there that sort before it"
	default:
		why = "restart it if this stays, it may not watch the directory any more"
	}
	return fmt.Errorf("%s has not loaded %s, but %s: %s", facts.Name, file, instead, why)
}

// Notice is what an operator should know although the runtime uses crinet.
func (k *Keeper) Notice() string {
	facts := k.config.Runtime.Last().Facts
	if facts == nil || !facts.Told {
		return ""
	}
	var notices []string
	if facts.MaxConfNum != 1 {
		notices = append(notices, fmt.Sprintf("max_conf_num is %d in %s: pods are attached to other configurations in %s as well; set it to 1",
			facts.MaxConfNum, settings, facts.ConfDir))
	}
	if sameDir(facts.ConfDir, k.config.NetworkConfDir) {
		notices = append(notices, "the runtime shares "+facts.ConfDir+" with everybody, and reads it anew whenever one of them writes there: "+
			"give it a conf_dir of its own in "+settings)
	}
	unserved := k.view.Load().unserved
	for _, handler := range slices.Sorted(maps.Keys(facts.HandlerMaxConfNum)) {
		if _, left := unserved[handler]; !left && facts.HandlerMaxConfNum[handler] != 1 {
			notices = append(notices, fmt.Sprintf("cni_max_conf_num of runtime handler %s is %d in %s: its pods are attached to other configurations in %s as well; set it to 1",
				handler, facts.HandlerMaxConfNum[handler], settings, facts.Handlers[handler]))
		}
	}
	for _, handler := range slices.Sorted(maps.Keys(unserved)) {
		notices = append(notices, fmt.Sprintf("runtime handler %s has a conf dir of its own, %s: crinet leaves its pods alone; --runtime-handlers=%s changes that",
			handler, unserved[handler], handler))
	}
	return strings.Join(notices, "; ")
}
