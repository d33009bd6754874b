package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// programs are what a release of crinet consists of.
var programs = []string{"crinetd", "crinet", "crinetctl"}

// BuildEarlier builds crinetd, crinet and crinetctl of an earlier commit and returns
// their folder, which ends with the kit. It needs the checkout's history.
func (k *Kit) BuildEarlier(ctx context.Context, commit string) (dir string, err error) {
	source, dir := filepath.Join(k.dir, "source-"+commit), filepath.Join(k.dir, "release-"+commit)
	if err := errors.Join(os.Mkdir(source, 0o755), os.Mkdir(dir, 0o755)); err != nil {
		return "", err
	}
	script := `git -c safe.directory='*' -C "$1" archive "$2" | tar -x -C "$3" && cd "$3" &&
		CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags='-s -w' -o "$4/" ./cmd/crinetd ./cmd/crinet ./cmd/crinetctl`
	cmd := exec.CommandContext(ctx, "bash", "-e", "-o", "pipefail", "-c", script, "bash", k.root, commit, source, dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build crinet of commit %s: %w\n%s", commit, err, out)
	}
	return dir, os.RemoveAll(source)
}

// Mix makes a folder with the programs of this checkout, but for one, which it takes
// from another folder.
func (k *Kit) Mix(name, other string) (dir string, err error) {
	if dir, err = os.MkdirTemp(k.dir, "mixed-"); err != nil {
		return "", err
	}
	for _, program := range programs {
		from := k.Crinet(program)
		if program == name {
			from = filepath.Join(other, program)
		}
		// Copied, since crinetd looks for the plugin beside its own real path.
		text, err := os.ReadFile(from)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, program), text, 0o755); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// UseCrinet has the node take crinetd, crinet and crinetctl from a folder from the
// next start on; the checkout's if it is empty.
func (n *Node) UseCrinet(dir string) { n.crinetDir = dir }

// crinet is the path of a program of crinet's.
func (n *Node) crinet(name string) string {
	if n.crinetDir != "" {
		return filepath.Join(n.crinetDir, name)
	}
	return n.kit.Crinet(name)
}
