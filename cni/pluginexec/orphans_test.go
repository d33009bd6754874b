package pluginexec

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A plugin that was left running dies with what it started; one that works for
// a spared container lives on, as do processes with another mark.
func TestKillOrphans(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mark := "PLUGINEXEC_TEST=" + dir
	script := filepath.Join(dir, "plugin")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nenv -i sleep 300 &\necho $! > "+dir+"/$CNI_CONTAINERID.child\necho $$ > "+dir+"/$CNI_CONTAINERID\nwait\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan string, 3)
	for id, mark := range map[string]string{"gone": mark, "spared": mark, "others": mark + "2"} {
		go func() {
			_, _, _ = New(Config{Mark: mark}).Run(ctx, script, nil, []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=" + id})
			ended <- id
		}()
	}
	defer func() {
		cancel()
		for range 2 {
			<-ended
		}
	}()
	pids := make(map[string]int)
	for _, name := range []string{"gone", "gone.child", "spared", "others"} {
		pids[name] = awaitPID(t, filepath.Join(dir, name))
	}
	killCtx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	killed, err := KillOrphans(killCtx, mark, func(verb, id string) bool { return verb == "ADD" && id == "spared" })
	if err != nil || len(killed) != 1 || !strings.Contains(killed[0], script) {
		t.Errorf("KillOrphans = %q, %v, want the one plugin", killed, err)
	}
	if id := <-ended; id != "gone" {
		t.Errorf("%s ended first", id)
	}
	for deadline := time.Now().Add(10 * time.Second); alive(pids["gone.child"]); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the plugin's child lives on")
		}
	}
	if !alive(pids["spared"]) || !alive(pids["others"]) {
		t.Error("a process was killed that is not an orphan")
	}
}

// What a plugin left behind on purpose lives on: a daemon with a session of its
// own, whether its plugin still runs or not, and a helper in the group of a
// plugin that has ended.
func TestKillOrphansSparesHelpers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mark := "PLUGINEXEC_TEST=" + dir
	path := script(t, `
		setsid sh -c 'echo $$ >"$DIR/$CNI_CONTAINERID.session"; exec sleep 300' </dev/null >/dev/null 2>&1 &
		setsid sh -c 'sleep 300 & echo $! >"$DIR/$CNI_CONTAINERID.daemon"' </dev/null >/dev/null 2>&1 &
		sleep 300 </dev/null >/dev/null 2>&1 &
		echo $! >"$DIR/$CNI_CONTAINERID.group"
		[ "$CNI_CONTAINERID" = ended ] || wait`)
	e := New(Config{Mark: mark})
	env := func(id string) []string { return []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=" + id, "DIR=" + dir} }
	if _, _, err := e.Run(t.Context(), path, nil, env("ended")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	hung := make(chan error, 1)
	go func() {
		_, _, err := e.Run(ctx, path, nil, env("hung"))
		hung <- err
	}()
	left := map[string]bool{"ended.session": true, "ended.daemon": true, "ended.group": true, "hung.session": true, "hung.daemon": true, "hung.group": false}
	for name := range left {
		pid := awaitPID(t, filepath.Join(dir, name))
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) }) // may have ended
	}
	killCtx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	killed, err := KillOrphans(killCtx, mark, func(string, string) bool { return false })
	if err != nil || len(killed) != 1 || !strings.Contains(killed[0], path) {
		t.Errorf("KillOrphans = %q, %v, want the plugin that runs", killed, err)
	}
	if err := <-hung; err == nil {
		t.Error("the plugin that runs was not killed")
	}
	gone(t, filepath.Join(dir, "hung.group"))
	for name, want := range left {
		if pid := awaitPID(t, filepath.Join(dir, name)); want && !alive(pid) {
			t.Errorf("%s was killed", name)
		}
	}
}

func awaitPID(t *testing.T, file string) int {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		text, err := os.ReadFile(file)
		if pid, convErr := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && convErr == nil {
			return pid
		}
	}
	t.Fatalf("%s was not written", file)
	return 0
}
