package config

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/probe"
)

// A candidate that has been handed over says the same as a scan of its directory,
// plugins of the network's folder included.
func TestCandidate(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bin := t.TempDir()
	for _, plugin := range []string{"one", "two"} {
		if err := os.WriteFile(filepath.Join(bin, plugin), []byte("#!/bin/sh\necho '{\"cniVersion\": \"1.0.0\", \"supportedVersions\": [\"1.0.0\"]}'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	prober := probe.New([]string{bin}, probe.Config{})
	defer prober.Stop()
	look := func(types []string) (*probe.Plugins, error) { return prober.Probe(t.Context(), types, 10e9) }

	file := write("10-net.conflist", `{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "one"}]}`)
	write("net/20-two.conf", `{"type": "two"}`)
	handed := handOver(t, file)
	network, warnings, problem := handed.Network(look, ScanOptions{MTU: 1400})
	if problem != nil || len(warnings) != 0 {
		t.Fatal(problem, warnings)
	}
	plugins, err := look([]string{"one", "two"})
	if err != nil {
		t.Fatal(err)
	}
	scanned := Scan(ReadDir(dir), plugins, nil, ScanOptions{MTU: 1400})
	if len(scanned.Networks) != 1 || string(scanned.Networks[0].ConfList) != string(network.ConfList) || network.String() != scanned.Networks[0].String() {
		t.Errorf("the candidate is %s %s, a scan finds %+v", network, network.ConfList, scanned)
	}
	write("net/30-broken.conf", "{\n\"type\": }")
	if _, _, problem := handOver(t, file).Network(look, ScanOptions{}); problem == nil || problem.Line != 2 || !strings.HasSuffix(problem.File, "net/30-broken.conf") {
		t.Errorf("with a broken folder: %v", problem)
	}
	for name, want := range map[string]string{
		`{"cniVersion": "1.0.0", "name": "lacks", "plugins": [{"type": "three"}]}`:                "plugin three is not in " + bin,
		`{"cniVersion": "1.0.0", "name": "own", "plugins": [{"type": "` + probe.ShimType + `"}]}`: "own shim",
	} {
		if _, _, problem := handOver(t, write("20-bad.conflist", name)).Network(look, ScanOptions{}); problem == nil || !strings.Contains(problem.Reason, want) {
			t.Errorf("%s: %v, want %q", name, problem, want)
		}
	}
	for _, path := range []string{write("none.txt", "{}"), filepath.Join(dir, "gone.conf"), write(".hidden.conf", "{}")} {
		if _, problem := ReadCandidate(path); problem == nil {
			t.Errorf("%s is read", path)
		}
	}
}

// handOver reads a candidate and hands it over as JSON.
func handOver(t *testing.T, path string) *Candidate {
	t.Helper()
	c, problem := ReadCandidate(path)
	if problem != nil {
		t.Fatal(problem)
	}
	data, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	handed := new(Candidate)
	if err := json.Unmarshal(data, handed); err != nil {
		t.Fatal(err)
	}
	return handed
}
