package install

import (
	"log/slog"
	"path/filepath"
	"time"

	"github.com/crinet-project/crinet/runtime/upstream"
)

// warnInterval is how often a place says that somebody takes crinet's files
// away.
const warnInterval = 10 * time.Minute

// stay is how long crinet's files must have stood again, after somebody took them,
// before they count: who takes them whenever they appear would otherwise have the
// node ready in between, and a pod that comes then bypass crinet.
const stay = 3 * time.Second

// place is one conf dir that crinet's configuration is kept in.
type place struct {
	installer Installer
	stands    state     // when the files were seen to be right
	changed   time.Time // when crinetd last wrote a file
	takenBy   string    // who had removed or changed what crinetd then wrote; "" if nobody
	warned    time.Time // when that was logged
}

// keep makes the files of the place right. It reads them only when one of them
// is not the one that was right before.
func (p *place) keep(facts *upstream.Facts, log *slog.Logger) error {
	version := p.version(facts)
	now := stateOf(p.installer, version)
	if now == p.stands {
		return nil
	}
	changed, err := p.installer.Install(version)
	if err != nil {
		return err
	}
	if changed {
		p.wrote(now, log)
	} else if now.complete() {
		p.stands = now // it was taken before Install read the files: no change is missed
	}
	// After Install, so that the conf dir is never without a configuration.
	return removeMirror(p.installer.ConfDir)
}

// wrote takes note of files that Install had to write although they were to be
// in a state.
func (p *place) wrote(now state, log *slog.Logger) {
	taken := p.stands.version == now.version && p.stands.from == now.from
	p.stands = state{version: now.version, from: now.from} // the next keep sees whether the files stay
	p.changed, p.takenBy = time.Now(), ""
	file := filepath.Join(p.installer.ConfDir, ConfListName)
	if !taken {
		log.Info("the runtime's CNI configuration is crinet's", "file", file, "cniVersion", now.version)
		return
	}
	p.takenBy = p.culprit()
	if time.Since(p.warned) < warnInterval {
		return
	}
	p.warned = p.changed
	log.Warn("somebody removed or changed crinet's CNI configuration or plugin: crinetd put it back", "file", file, "who", p.takenBy)
}

// version is the CNI version for the configuration: what the runtime speaks, or
// else what an earlier run found out. Guessing and correcting it would be worse:
// every change has containerd read its conf dir anew, and an ADD that hangs at
// that moment would hold up all others.
func (p *place) version(facts *upstream.Facts) string {
	if facts != nil {
		return CNIVersion(facts.Name, facts.Version)
	}
	if version, ok := p.installer.Installed(); ok {
		return version
	}
	return CNIVersion("", "")
}

// culprit names who renames the files of others, as far as the dir shows it.
func (p *place) culprit() string {
	matches, err := filepath.Glob(filepath.Join(p.installer.ConfDir, ConfListName+".cilium_bak*"))
	if err == nil && len(matches) > 0 {
		return "Cilium, which takes the directory for itself: set cni.exclusive=false in its Helm values, " +
			"or give the runtime a conf dir of its own"
	}
	return "unknown; a conf dir of the runtime's own would keep others out"
}
