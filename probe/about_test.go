package probe

import (
	"path/filepath"
	"testing"
)

// What a plugin says of itself is asked where Config.About names it, and only there.
func TestAbout(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "bin")
	about := func(line string) string {
		return `[ -z "$CNI_COMMAND" ] && { echo "` + line + `" >&2; echo more >&2; exit 0; }; ` + says(answer11)
	}
	write(t, filepath.Join(dir, "bridge"), about("CNI bridge plugin v1.9.1"))
	write(t, filepath.Join(dir, "ptp"), about("CNI ptp plugin version unknown")) // and no Go binary
	write(t, filepath.Join(dir, "host-local"), `[ -n "$CNI_COMMAND" ] || exit 1; `+says(answer11))
	write(t, filepath.Join(dir, "other"), about("CNI other plugin v1.0.0"))
	p := newProber(t, Config{About: []string{"bridge", "ptp", "host-local"}}, dir)
	set := probe(t, p, "bridge", "ptp", "host-local", "other")
	for name, want := range map[string]string{
		"bridge": "CNI bridge plugin v1.9.1", "ptp": "CNI ptp plugin version unknown", "host-local": "", "other": "",
	} {
		if found, _ := set.Find(name); found.About != want || !found.Usable() {
			t.Errorf("%s: about %q (usable: %t), want %q", name, found.About, found.Usable(), want)
		}
	}
	if n := runs(t, dir, "other"); n != 1 {
		t.Errorf("a plugin that nobody asks about was run %d times, want once", n)
	}
	if n := runs(t, dir, "bridge"); n != 2 {
		t.Errorf("a plugin was run %d times, want twice", n)
	}
	probe(t, p, "bridge", "ptp", "host-local", "other")
	if n := runs(t, dir, "bridge"); n != 2 {
		t.Errorf("a plugin that has not changed was asked again")
	}
}
