package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"text/template"
)

//go:embed nfpm.yaml.tmpl
var packageTemplate string

// packages makes a deb and an rpm of each stage.
func (r *release) packages(ctx context.Context) error {
	nfpm := filepath.Join(r.root, ".tools/bin/nfpm")
	if _, err := os.Stat(nfpm); err != nil {
		return fmt.Errorf("run `integration/tools/build packages`: %w", err)
	}
	described, err := template.New("nfpm").Parse(packageTemplate)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(r.out, 0o755); err != nil {
		return err
	}
	for _, arch := range r.arches {
		config := r.stages[arch] + ".yaml"
		file, err := os.Create(config)
		if err != nil {
			return err
		}
		err = described.Execute(file, map[string]any{
			"Arch": arch, "Version": r.version, "Stage": r.stages[arch], "Time": r.time.Format("2006-01-02T15:04:05Z"),
			"Scripts": filepath.Join(r.root, "packaging/scripts"), "Changelog": filepath.Join(r.root, "CHANGELOG.md"),
		})
		if closeErr := file.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return err
		}
		for _, format := range []string{"deb", "rpm"} {
			cmd := exec.CommandContext(ctx, nfpm, "package", "--config", config, "--packager", format, "--target", r.out+"/")
			cmd.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", r.time.Unix()))
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s for %s: %w\n%s", format, arch, err, out)
			}
		}
	}
	return nil
}
