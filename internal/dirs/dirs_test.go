package dirs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"b", ".hidden", "a", "c"} {
		write(t, filepath.Join(dir, name), "")
	}
	entries, err := List(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != "a b c" {
		t.Errorf("names %q, want a b c", got)
	}
	if _, err := List(dir + "/missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
	if _, err := List(dir + "/a"); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a file: %v", err)
	}
}

func TestListTooMany(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range MaxEntries + 1 {
		write(t, fmt.Sprintf("%s/%05d", dir, i), "")
	}
	entries, err := List(dir)
	if !errors.Is(err, ErrTooMany) || len(entries) != MaxEntries {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	if err := os.Remove(dir + "/00000"); err != nil {
		t.Fatal(err)
	}
	if entries, err := List(dir); err != nil || len(entries) != MaxEntries {
		t.Errorf("as many as are allowed: %d entries, %v", len(entries), err)
	}
}

func TestReadFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir+"/file", "12345")
	if err := os.Symlink("file", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(dir+"/pipe", 0o644); err != nil { // must not block
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		limit int
		want  string
		cause string
	}{
		{"file", 5, "12345", ""},
		{"link", 5, "12345", ""},
		{"file", 4, "", "is larger than 4 bytes"},
		{"pipe", 5, "", "is no regular file"},
		{".", 5, "", "is no regular file"},
		{"missing", 5, "", "no such file or directory"},
	} {
		data, err := ReadFile(filepath.Join(dir, tt.name), tt.limit)
		cause := ""
		if err != nil {
			cause = Cause(err).Error()
			if !strings.Contains(err.Error(), dir) {
				t.Errorf("%s: the error does not name the file: %v", tt.name, err)
			}
		}
		if string(data) != tt.want || cause != tt.cause {
			t.Errorf("%s up to %d bytes: %q, %q; want %q, %q", tt.name, tt.limit, data, cause, tt.want, tt.cause)
		}
	}
}

func TestWriteFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, content := range []string{"one", "two"} {
		if err := WriteFile(dir+"/file", []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(dir + "/file")
		if err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(dir + "/file"); string(data) != content || err != nil || info.Mode() != 0o600 {
			t.Errorf("%q, %v, mode %v", data, err, info.Mode())
		}
	}
	if err := os.Mkdir(dir+"/folder", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(dir+"/folder", nil, 0o600); err == nil {
		t.Error("a folder was replaced")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Every kind of change gives a file another ID.
func TestIDChanges(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/file"
	if Stat(path) != (ID{}) {
		t.Error("a file that is not there has an ID")
	}
	write(t, path, "1")
	before := Stat(path)
	for _, change := range []struct {
		name string
		do   func() error
	}{
		{"written with the same size and the old mtime", func() error {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			return errors.Join(os.WriteFile(path, []byte("2"), 0o644), os.Chtimes(path, info.ModTime(), info.ModTime()))
		}},
		{"chmod", func() error { return os.Chmod(path, 0o755) }},
		{"replaced", func() error { return WriteFile(path, []byte("2"), 0o755) }},
		{"linked", func() error { return os.Link(path, path+"2") }},
		{"removed", func() error { return os.Remove(path) }},
	} {
		time.Sleep(20 * time.Millisecond) // ctime has the resolution of the kernel's clock
		if err := change.do(); err != nil {
			t.Fatal(err)
		}
		after := Stat(path)
		if after == before {
			t.Errorf("%s: not seen", change.name)
		}
		if info, err := os.Stat(path); err == nil && IDOf(info) != after {
			t.Errorf("%s: IDOf and Stat differ", change.name)
		}
		before = after
	}
	if dir, file := Stat(filepath.Dir(path)), Stat(path+"2"); !dir.IsDir() || dir.IsRegular() || dir.IsExecutable() ||
		file.IsDir() || !file.IsRegular() || !file.IsExecutable() {
		t.Errorf("directory %+v, executable %+v", dir, file)
	}
}
