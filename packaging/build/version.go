package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// nextVersion is the version that commits after the last tag lead to.
const nextVersion = "0.2.0"

// findVersion takes version and time from the commit. A commit with a tag has the
// tag's version; every other one a version before nextVersion, which later commits
// sort after.
func (r *release) findVersion(ctx context.Context) error {
	seconds, err := r.git(ctx, "log", "-1", "--format=%ct")
	if err != nil {
		return err
	}
	unix, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return fmt.Errorf("time of the commit: %w", err)
	}
	r.time = time.Unix(unix, 0).UTC()
	if r.version == "" {
		if tag, err := r.git(ctx, "describe", "--tags", "--exact-match", "--match", "v[0-9]*"); err == nil {
			r.version = strings.TrimPrefix(tag, "v")
		} else {
			commit, err := r.git(ctx, "rev-parse", "--short=7", "HEAD")
			if err != nil {
				return err
			}
			r.version = fmt.Sprintf("%s~git%s.%s", nextVersion, r.time.Format("20060102150405"), commit)
		}
	}
	if !regexp.MustCompile(`^[0-9][0-9A-Za-z.~+]*$`).MatchString(r.version) {
		return fmt.Errorf("version %q: want digits first, then digits, letters and . ~ +", r.version)
	}
	return nil
}

func (r *release) git(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", append([]string{"-c", "safe.directory=*", "-C", r.root}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}
