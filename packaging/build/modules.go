package main

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
)

// modules returns the modules that the programs are made of, by path, and the version
// of Go, from what the linker left in them.
func modules(bin string) (found map[string]*debug.Module, goVersion string, err error) {
	found = make(map[string]*debug.Module)
	for _, name := range programs {
		info, err := buildinfo.ReadFile(filepath.Join(bin, name))
		if err != nil {
			return nil, "", err
		}
		goVersion = info.GoVersion
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			found[m.Path] = m
		}
	}
	return found, goVersion, nil
}

// licenceFile is how modules name the texts that must be passed on.
var licenceFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents)([.-].*)?$`)

// licences copies the licence of crinet, of Go and of every module.
func (r *release) licences(ctx context.Context, bin, doc string) error {
	found, _, err := modules(bin)
	if err != nil {
		return err
	}
	own, err := os.ReadFile(filepath.Join(r.root, "LICENSE"))
	if err != nil {
		return err
	}
	if err := write(filepath.Join(doc, "copyright"), own); err != nil {
		return err
	}
	if err := copyLicences(runtime.GOROOT(), filepath.Join(doc, "licenses/go")); err != nil { //nolint:staticcheck // it runs by go run
		return err
	}
	for _, path := range slices.Sorted(maps.Keys(found)) {
		cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", path)
		cmd.Dir = r.root
		dir, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("go list -m %s: %w", path, err)
		}
		if err := copyLicences(string(dir[:len(dir)-1]), filepath.Join(doc, "licenses", path)); err != nil {
			return err
		}
	}
	return nil
}

func copyLicences(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	copied := 0
	for _, entry := range entries {
		if entry.IsDir() || !licenceFile.MatchString(entry.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(from, entry.Name()))
		if err != nil {
			return err
		}
		if err := write(filepath.Join(to, entry.Name()), text); err != nil {
			return err
		}
		copied++
	}
	if copied == 0 {
		return fmt.Errorf("%s has no licence that could be passed on", from)
	}
	return nil
}
