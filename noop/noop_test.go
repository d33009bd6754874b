package noop

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// sysctlDir makes a directory that stands for /proc/sys, with the bridge sysctls
// at value.
func sysctlDir(t *testing.T, value string) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range sysctls {
		write(t, root, name, value)
	}
	return root
}

func write(t *testing.T, root, name, value string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, root, name string) string {
	t.Helper()
	value, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(value))
}

func TestKeepSetsBothFamilies(t *testing.T) {
	root := sysctlDir(t, "0")
	p := New(root, slog.New(slog.DiscardHandler))
	p.keep(t.Context(), true)
	for _, name := range sysctls {
		if got := read(t, root, name); got != "1" {
			t.Errorf("%s = %q, want 1", name, got)
		}
	}
	if err := p.Status(); err != nil {
		t.Errorf("Status() = %v, want nil", err)
	}
}

func TestKeepWritesNothingThatIsRight(t *testing.T) {
	root := sysctlDir(t, "1")
	path := filepath.Join(root, sysctls[0])
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, past, past); err != nil {
		t.Fatal(err)
	}
	New(root, slog.New(slog.DiscardHandler)).keep(t.Context(), true)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if !info.ModTime().Equal(past.Truncate(time.Nanosecond)) {
		t.Errorf("the sysctl was written although it was 1")
	}
}

func TestMissingSysctlLoadsModule(t *testing.T) {
	root := t.TempDir()
	p := New(root, slog.New(slog.DiscardHandler))
	loads := 0
	p.load = func(context.Context) error {
		loads++
		for _, name := range sysctls {
			write(t, root, name, "0")
		}
		return nil
	}
	p.keep(t.Context(), true)
	if err := p.Status(); err != nil || loads != 1 {
		t.Errorf("Status() = %v after %d loads, want nil after 1", err, loads)
	}
}

// Where the module is missing, modprobe runs at growing intervals, once a look
// (review row A21). Somebody who loads the module is seen at the next look, and
// one that goes again is loaded at once.
func TestMissingModuleIsLoadedAtGrowingIntervals(t *testing.T) {
	for name, outcome := range map[string]error{"no module": errors.New("no such module"), "a module without the sysctls": nil} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				root := t.TempDir()
				p := New(root, slog.New(slog.DiscardHandler))
				var runs atomic.Int64
				loads := func() int { return int(runs.Load()) }
				p.load = func(context.Context) error { runs.Add(1); return outcome }
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { defer close(done); p.Run(ctx, make(chan struct{})) }()
				synctest.Wait()
				if loads() != 1 || p.Status() == nil {
					t.Fatalf("%d loads at the first look, Status() = %v; want one and an error", loads(), p.Status())
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				if least, most := 5, int(time.Hour/modprobeMost)+10; loads() < least || loads() > most {
					t.Errorf("%d loads in an hour, want %d to %d", loads(), least, most)
				}
				for _, name := range sysctls {
					write(t, root, name, "0")
				}
				time.Sleep(Interval)
				synctest.Wait()
				if err := p.Status(); err != nil {
					t.Errorf("Status() = %v when the sysctls are there, want nil", err)
				}
				before := loads()
				if err := os.RemoveAll(filepath.Join(root, "net")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(Interval)
				synctest.Wait()
				if loads() != before+1 {
					t.Errorf("%d loads when the module is gone again, want one", loads()-before)
				}
				cancel()
				<-done
			})
		})
	}
}

func TestStatusNamesWhatCannotBeSet(t *testing.T) {
	root := sysctlDir(t, "1")
	p := New(root, slog.New(slog.DiscardHandler))
	p.load = func(context.Context) error { return errors.New("no such module") }
	if err := os.Remove(filepath.Join(root, sysctls[1])); err != nil {
		t.Fatal(err)
	}
	p.keep(t.Context(), true)
	err := p.Status()
	if err == nil || !strings.Contains(err.Error(), sysctls[1]) || !strings.Contains(err.Error(), "no such module") {
		t.Fatalf("Status() = %v, want the sysctl and the reason", err)
	}
	write(t, root, sysctls[1], "0")
	p.keep(t.Context(), false)
	if err := p.Status(); err != nil {
		t.Errorf("Status() = %v after the sysctl came back, want nil", err)
	}
}

func TestUnreadableSysctl(t *testing.T) {
	root := sysctlDir(t, "1")
	path := filepath.Join(root, sysctls[0])
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	p := New(root, slog.New(slog.DiscardHandler))
	p.keep(t.Context(), true)
	if err := p.Status(); err == nil || !strings.Contains(err.Error(), sysctls[0]) {
		t.Errorf("Status() = %v, want an error that names %s", err, sysctls[0])
	}
}

func TestRunLooksBeforeReadyAndEnds(t *testing.T) {
	root := sysctlDir(t, "0")
	p := New(root, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan struct{})
	go func() { defer close(done); p.Run(ctx, ready) }()
	<-ready
	if got := read(t, root, sysctls[0]); got != "1" {
		t.Errorf("sysctl = %q when ready, want 1", got)
	}
	cancel()
	<-done
}
