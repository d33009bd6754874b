package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// programs are what is built.
var programs = []string{"crinetd", "crinet", "crinetctl"}

// stage makes the tree that is shipped for an architecture.
func (r *release) stage(ctx context.Context, arch, dir string) error {
	r.stages[arch] = dir
	bin := filepath.Join(dir, "usr/bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	if err := r.compile(ctx, arch, bin); err != nil {
		return err
	}
	native := filepath.Join(bin, "crinetctl")
	if arch != runtime.GOARCH {
		tools, err := os.MkdirTemp("", "crinet-tool-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tools)
		if err := r.compile(ctx, runtime.GOARCH, tools); err != nil {
			return err
		}
		native = filepath.Join(tools, "crinetctl")
	}
	for _, step := range []func() error{
		func() error { return r.manual(ctx, native, filepath.Join(dir, "usr/share/man/man8")) },
		func() error { return r.completions(ctx, native, dir) },
		func() error { return r.units(dir) },
		func() error { return r.shared(dir) },
		func() error { return r.licences(ctx, bin, filepath.Join(dir, "usr/share/doc/crinet")) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return r.settle(dir)
}

// compile builds the programs, static, without a trace of where that was.
func (r *release) compile(ctx context.Context, arch, bin string) error {
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid= -X main.version=" + r.version, "-o", bin + "/"}
	for _, name := range programs {
		args = append(args, "./cmd/"+name)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = r.root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build for %s: %w\n%s", arch, err, out)
	}
	return nil
}

// manual has crinetctl write the manual pages, and compresses them.
func (r *release) manual(ctx context.Context, crinetctl, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, crinetctl, "man", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("manual pages: %w\n%s", err, out)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.8"))
	if err != nil {
		return err
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		packed, err := compress(text)
		if err != nil {
			return err
		}
		if err := os.WriteFile(page+".gz", packed, 0o644); err != nil {
			return err
		}
		if err := os.Remove(page); err != nil {
			return err
		}
	}
	return nil
}

// compress packs bytes without a name or a time.
func compress(text []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(text); err != nil {
		return nil, err
	}
	err = w.Close()
	return b.Bytes(), err
}

// completions has crinetctl write its completions.
func (r *release) completions(ctx context.Context, crinetctl, dir string) error {
	for shell, path := range map[string]string{
		"bash": "usr/share/bash-completion/completions/crinetctl",
		"zsh":  "usr/share/zsh/site-functions/_crinetctl",
		"fish": "usr/share/fish/vendor_completions.d/crinetctl.fish",
	} {
		text, err := exec.CommandContext(ctx, crinetctl, "completion", shell).Output()
		if err != nil {
			return fmt.Errorf("completion of %s: %w", shell, err)
		}
		if err := write(filepath.Join(dir, path), text); err != nil {
			return err
		}
	}
	return nil
}

// units copies systemd's units.
func (r *release) units(dir string) error {
	units, err := filepath.Glob(filepath.Join(r.root, "packaging/systemd/*"))
	if err != nil {
		return err
	}
	for _, unit := range units {
		if strings.HasPrefix(filepath.Base(unit), "cni-dhcp") {
			continue // an example: the plugins' folder is the node's
		}
		text, err := os.ReadFile(unit)
		if err != nil {
			return err
		}
		if err := write(filepath.Join(dir, "usr/lib/systemd/system", filepath.Base(unit)), text); err != nil {
			return err
		}
	}
	return nil
}

// shared copies what monitoring takes up: rules, dashboards, and the document that
// the alerts name.
func (r *release) shared(dir string) error {
	for pattern, to := range map[string]string{
		"packaging/prometheus/*.yaml": "usr/share/crinet/prometheus",
		"packaging/grafana/*.json":    "usr/share/crinet/grafana",
		"docs/troubleshooting.md":     "usr/share/doc/crinet/docs",
	} {
		files, err := filepath.Glob(filepath.Join(r.root, pattern))
		if err != nil {
			return err
		}
		if len(files) == 0 {
			return fmt.Errorf("there is no %s to ship", pattern)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if err := write(filepath.Join(dir, to, filepath.Base(file)), text); err != nil {
				return err
			}
		}
	}
	return nil
}

func write(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

// settle gives everything the commit's time, and modes that no umask changes.
func (r *release) settle(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if d.IsDir() || filepath.Base(filepath.Dir(path)) == "bin" {
			mode = 0o755
		}
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
		return os.Chtimes(path, r.time, r.time)
	})
}
