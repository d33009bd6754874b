package installer

import (
	"bytes"
	"io/fs"
	"os"
	"syscall"
)

// errNotDir is what a path below a file gives.
const errNotDir = syscall.ENOTDIR

// file is what is or should be at a path: nothing, a file or a symbolic link.
type file struct {
	Exists bool        `json:"exists"`
	Text   []byte      `json:"text,omitempty"`
	Mode   fs.FileMode `json:"mode,omitempty"`
	Link   string      `json:"link,omitempty"`
}

func text(s string) file { return file{Exists: true, Text: []byte(s), Mode: 0o644} }

func link(target string) file { return file{Exists: true, Link: target} }

func (f file) equal(g file) bool {
	return f.Exists == g.Exists && f.Link == g.Link && f.Mode == g.Mode && bytes.Equal(f.Text, g.Text)
}

// create makes the file at a path where nothing is.
func (f file) create(path string) error {
	if f.Link != "" {
		return os.Symlink(f.Link, path)
	}
	if err := os.WriteFile(path, f.Text, f.Mode); err != nil {
		return err
	}
	return os.Chmod(path, f.Mode) // whatever the umask
}

// change is one path and what it is to be.
type change struct {
	Path  string
	After file
	Why   string
}
