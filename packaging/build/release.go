package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// component is an entry of the SBOM, in the terms of CycloneDX 1.5.
type component struct {
	Type    string `json:"type"`
	Ref     string `json:"bom-ref"`
	Name    string `json:"name"`
	Version string `json:"version"`
	PURL    string `json:"purl"`
}

func golang(kind, path, version string) component {
	purl := "pkg:golang/" + path + "@" + version
	return component{Type: kind, Ref: purl, Name: path, Version: version, PURL: purl}
}

// sbom writes what the programs are made of, as the linker recorded it.
func (r *release) sbom(context.Context) error {
	all := make(map[string]component)
	for _, arch := range r.arches {
		found, goVersion, err := modules(filepath.Join(r.stages[arch], "usr/bin"))
		if err != nil {
			return err
		}
		all["std"] = golang("library", "std", strings.TrimPrefix(goVersion, "go"))
		for path, m := range found {
			all[path] = golang("library", path, m.Version)
		}
	}
	var components []component
	for _, path := range slices.Sorted(maps.Keys(all)) {
		components = append(components, all[path])
	}
	text, err := json.MarshalIndent(map[string]any{
		"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
		"metadata":   map[string]any{"timestamp": r.time, "component": golang("application", "github.com/crinet-project/crinet", r.version)},
		"components": components,
	}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.out, "crinet_"+r.version+"_sbom.cdx.json"), append(text, '\n'), 0o644)
}

// checksumsFile has the sums of all other files, as sha256sum --check reads them.
const checksumsFile = "SHA256SUMS"

// checksums writes the sums of everything that was made.
func (r *release) checksums(context.Context) error {
	entries, err := os.ReadDir(r.out)
	if err != nil {
		return err
	}
	var sums strings.Builder
	for _, entry := range entries {
		if entry.IsDir() || entry.Name() == checksumsFile {
			continue
		}
		text, err := os.ReadFile(filepath.Join(r.out, entry.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(text), entry.Name())
	}
	return os.WriteFile(filepath.Join(r.out, checksumsFile), []byte(sums.String()), 0o644)
}
