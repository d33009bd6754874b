package pluginexec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// script writes an executable shell script and returns its path.
func script(t testing.TB, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plugin")
	writeFile(t, path, "#!/bin/sh\n"+body+"\n")
	return path
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	// Another test's fork may hold the descriptor for a moment: ForkLock
	// keeps the new file from being busy.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

// alive says whether a process runs; a zombie does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// gone fails the test if the process whose id the file holds does not end soon.
func gone(t *testing.T, pidFile string) {
	t.Helper()
	b, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); alive(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("process %d of %s still runs", pid, pidFile)
		}
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name           string
		body           string
		cfg            Config
		stdin          string
		stdout, stderr string
		kind           error
		exit           int
		signal         syscall.Signal
		message        string // part of the error
	}{
		{name: "result", body: `cat; echo note >&2`, stdin: `{"cniVersion":"1.1.0"}`, stdout: `{"cniVersion":"1.1.0"}`, stderr: "note\n"},
		{name: "silent success", body: `exit 0`},
		{name: "stdin not read", body: `echo ok`, stdin: strings.Repeat("x", 300<<10), stdout: "ok\n"},
		{name: "large stdin", body: `wc -c`, stdin: strings.Repeat("x", 300<<10), stdout: "307200\n"},
		{name: "error object", body: `echo '{"code":7}'; echo "no bridge" >&2; exit 1`, stdout: "{\"code\":7}\n",
			stderr: "no bridge\n", kind: ErrExit, exit: 1, message: `exit status 1; stderr: "no bridge"`},
		{name: "exit without a word", body: `exit 3`, kind: ErrExit, exit: 3, message: "exit status 3"},
		{name: "crash", body: `kill -SEGV $$`, kind: ErrExit, exit: -1, signal: syscall.SIGSEGV, message: "ended by signal 11"},
		{name: "killed by someone else", body: `kill -KILL $$`, kind: ErrExit, exit: -1, signal: syscall.SIGKILL, message: "ended by signal 9"},
		{name: "stdout at the limit", body: `printf 12345678`, cfg: Config{MaxStdout: 8}, stdout: "12345678"},
		{name: "stdout over the limit", body: `printf 123456789; sleep 60`, cfg: Config{MaxStdout: 8}, stdout: "12345678",
			kind: ErrOutput, exit: -1, signal: syscall.SIGKILL, message: "printed too much: stdout has more than 8 bytes"},
		{name: "stdout over the limit, then exit 0", body: `printf 123456789`, cfg: Config{MaxStdout: 8}, stdout: "12345678",
			kind: ErrOutput, message: "stdout has more than 8 bytes"},
		{name: "endless stdout", body: `exec cat /dev/zero`, cfg: Config{MaxStdout: 4}, stdout: "\x00\x00\x00\x00",
			kind: ErrOutput, exit: -1, signal: syscall.SIGKILL, message: "more than 4 bytes"},
		{name: "stderr is cut, not an error", body: `head -c 1000000 /dev/zero | tr '\0' e >&2; echo ok`, cfg: Config{MaxStderr: 3}, stdout: "ok\n", stderr: "eee"},
		{name: "time limit", body: `echo waiting >&2; exec sleep 60`, cfg: Config{Timeout: 200 * time.Millisecond}, stderr: "waiting\n",
			kind: ErrTimeout, exit: -1, signal: syscall.SIGKILL, message: `did not finish in time, stopped after`},
		{name: "time limit with outputs closed", body: `exec sleep 60 >&- 2>&-`, cfg: Config{Timeout: 200 * time.Millisecond},
			kind: ErrTimeout, exit: -1, signal: syscall.SIGKILL, message: `context deadline exceeded`},
		{name: "SIGTERM is no way out", body: `trap "" TERM INT HUP; while :; do sleep 60; done`, cfg: Config{Timeout: 200 * time.Millisecond},
			kind: ErrTimeout, exit: -1, signal: syscall.SIGKILL, message: `did not finish in time`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := script(t, tt.body)
			stdout, stderr, err := New(tt.cfg).Run(t.Context(), path, []byte(tt.stdin), nil)
			if diff := cmp.Diff([]string{tt.stdout, tt.stderr}, []string{string(stdout), string(stderr)}); diff != "" {
				t.Errorf("stdout, stderr (-want +got):\n%s", diff)
			}
			if tt.kind == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var perr *Error
			if !errors.Is(err, tt.kind) || !errors.As(err, &perr) {
				t.Fatalf("error is %v, want a *Error that is %v", err, tt.kind)
			}
			if errors.Is(tt.kind, ErrOutput) && tt.signal == 0 { // it may end by itself before it is killed
				perr.ExitCode, perr.Signal = tt.exit, 0
			}
			if perr.ExitCode != tt.exit || perr.Signal != tt.signal {
				t.Errorf("exit %d, signal %d; want %d, %d", perr.ExitCode, perr.Signal, tt.exit, tt.signal)
			}
			if !strings.HasPrefix(err.Error(), "plugin "+path+": ") || !strings.Contains(err.Error(), tt.message) {
				t.Errorf("error %q does not name %s and say %q", err, path, tt.message)
			}
			if perr.Elapsed > 10*time.Second {
				t.Errorf("took %s", perr.Elapsed)
			}
		})
	}
}

func TestRunHugeStdout(t *testing.T) {
	t.Parallel()
	path := script(t, `head -c 100000000 /dev/zero; echo done >"$DONE"`)
	done := filepath.Join(t.TempDir(), "done")
	stdout, _, err := New(Config{}).Run(t.Context(), path, nil, []string{"DONE=" + done})
	if !errors.Is(err, ErrOutput) || len(stdout) != DefaultMaxStdout {
		t.Fatalf("%d bytes, %v; want %d and ErrOutput", len(stdout), err, DefaultMaxStdout)
	}
	if _, err := os.Stat(done); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the plugin ran to its end (stat: %v)", err)
	}
}

func TestRunCannotStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	garbage := filepath.Join(dir, "garbage")
	writeFile(t, garbage, "\x7fELF, or half of it")
	noInterpreter := filepath.Join(dir, "nointerpreter")
	writeFile(t, noInterpreter, "#!/does/not/exist\n")
	tests := []struct {
		name, path string
		cause      error
	}{
		{"missing", filepath.Join(dir, "missing"), syscall.ENOENT},
		{"not executable", plain, syscall.EACCES},
		{"a directory", dir, syscall.EACCES},
		{"no binary", garbage, syscall.ENOEXEC},
		{"no interpreter", noInterpreter, syscall.ENOENT},
		{"relative", "plugin", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, _, err := New(Config{Retry: 20 * time.Millisecond}).Run(t.Context(), tt.path, nil, nil)
			if !errors.Is(err, ErrStart) || (tt.cause != nil && !errors.Is(err, tt.cause)) {
				t.Fatalf("error is %v, want ErrStart with %v", err, tt.cause)
			}
			if !strings.Contains(err.Error(), "plugin "+tt.path+": cannot be started: ") {
				t.Errorf("error %q does not name the plugin", err)
			}
		})
	}
}

func TestRunEnvironment(t *testing.T) {
	e := New(Config{})
	path := script(t, `exec env`)
	given := make([]string, 1, 8) // room behind it must not be written to
	given[0] = "CNI_COMMAND=ADD"
	stdout, _, err := e.Run(t.Context(), path, nil, given)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(stdout)) {
		// The shell itself sets these.
		if !strings.HasPrefix(line, "PWD=") && !strings.HasPrefix(line, "_=") && !strings.HasPrefix(line, "SHLVL=") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	slices.Sort(got)
	want := []string{"CNI_COMMAND=ADD", fmt.Sprintf("GOMAXPROCS=%d", min(2, runtime.NumCPU())), e.path}
	if !slices.Equal(want, got) {
		t.Errorf("environment %q, want %v", got, want)
	}
	if spare := given[:2][1]; spare != "" {
		t.Errorf("the caller's slice was written to: %q", spare)
	}
	stdout, _, err = e.Run(t.Context(), script(t, `echo "$PATH"; pwd`), nil, []string{"PATH=/bin"})
	if diff := cmp.Diff("/bin\n/\n", string(stdout)); diff != "" || err != nil {
		t.Errorf("own PATH, directory (-want +got):\n%s%v", diff, err)
	}
}

func TestPluginPath(t *testing.T) {
	t.Parallel()
	for _, tt := range [][2]string{
		{"", safePath},
		{"/opt/x:relative::/bin:.", "/opt/x:/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin"},
	} {
		if got := pluginPath(tt[0]); got != tt[1] {
			t.Errorf("pluginPath(%q) = %q, want %q", tt[0], got, tt[1])
		}
	}
}

// A grandchild in the plugin's group dies with it; one that left the group but
// holds the pipes is not waited for.
func TestRunGrandchildren(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"", "setsid "} {
		t.Run("by "+how+"sh", func(t *testing.T) {
			t.Parallel()
			pid := filepath.Join(t.TempDir(), "pid")
			path := script(t, how+`sh -c 'echo $$ >"$PIDFILE"; exec sleep 30' &
				while [ ! -s "$PIDFILE" ]; do sleep 0.01; done; echo begun; wait`)
			ctx, cancel := context.WithCancelCause(t.Context())
			reason := errors.New("the pod is gone")
			go func() {
				for ctx.Err() == nil {
					if b, err := os.ReadFile(pid); err == nil && bytes.HasSuffix(b, []byte("\n")) {
						cancel(reason)
					}
					time.Sleep(time.Millisecond)
				}
			}()
			begun := time.Now()
			_, _, err := New(Config{Timeout: 20 * time.Second}).Run(ctx, path, nil, []string{"PIDFILE=" + pid})
			if !errors.Is(err, ErrCanceled) || !errors.Is(err, reason) {
				t.Errorf("error is %v, want ErrCanceled and its cause", err)
			}
			if took := time.Since(begun); took > 10*time.Second {
				t.Errorf("Run took %s", took)
			}
			if how != "" { // out of reach of the kill
				kill(t, pid)
			}
			gone(t, pid)
		})
	}
}

// A plugin that ends and leaves a helper behind, with the pipes open, is done.
func TestRunHelperStays(t *testing.T) {
	t.Parallel()
	pid := filepath.Join(t.TempDir(), "pid")
	path := script(t, `sleep 30 & echo $! >"$PIDFILE"; echo result`)
	begun := time.Now()
	stdout, _, err := New(Config{}).Run(t.Context(), path, nil, []string{"PIDFILE=" + pid})
	if err != nil || string(stdout) != "result\n" {
		t.Errorf("%q, %v; want the result", stdout, err)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("Run took %s", took)
	}
	kill(t, pid)
	gone(t, pid)
}

// Everything that a plugin printed is returned, more than its pipe holds, also
// when a helper keeps the pipe open beyond the plugin's end.
func TestRunOutputBehindEnd(t *testing.T) {
	t.Parallel()
	const size = 900 << 10
	path := script(t, fmt.Sprintf(`sleep 30 & echo $! >"$PIDFILE"; head -c %d /dev/zero | tr '\0' r`, size))
	for i := range 8 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			pid := filepath.Join(t.TempDir(), "pid")
			stdout, _, err := New(Config{}).Run(t.Context(), path, nil, []string{"PIDFILE=" + pid})
			if err != nil || string(stdout) != strings.Repeat("r", size) {
				t.Errorf("%d bytes, %v; want %d", len(stdout), err, size)
			}
			kill(t, pid)
			gone(t, pid)
		})
	}
}

// kill kills the process whose id the file holds. It fails the test if there is
// none.
func kill(t *testing.T, pidFile string) {
	t.Helper()
	b, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("process %d of %s was not left alone: %v", pid, pidFile, err)
	}
}

// A file that is being copied first cannot be run (ETXTBSY while it is open
// for writing, ENOEXEC while it is half there), and then can.
func TestRunRetry(t *testing.T) {
	t.Parallel()
	echo, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(echo)
	if err != nil {
		t.Fatal(err)
	}
	e := New(Config{Retry: 20 * time.Second})
	for _, busy := range []bool{true, false} {
		t.Run(fmt.Sprintf("busy %t", busy), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "plugin")
			writeFile(t, path, string(whole[:40]))
			want := syscall.ENOEXEC
			finish := func() error {
				writeFile(t, path+".new", string(whole))
				return os.Rename(path+".new", path)
			}
			if busy {
				want = syscall.ETXTBSY
				writeFile(t, path, string(whole))
				f, err := os.OpenFile(path, os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				finish = f.Close
			}
			short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if _, _, err := e.Run(short, path, nil, nil); !errors.Is(err, want) || !errors.Is(err, ErrTimeout) {
				t.Fatalf("unfinished file: %v, want %v and ErrTimeout", err, want)
			}
			done := make(chan error, 1)
			go func() {
				_, _, err := e.Run(t.Context(), path, nil, nil)
				done <- err
			}()
			if err := finish(); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Errorf("finished file: %v", err)
			}
		})
	}
}

func TestRunContextEnded(t *testing.T) {
	t.Parallel()
	ran := filepath.Join(t.TempDir(), "ran")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := New(Config{}).Run(ctx, script(t, `echo >"$RAN"`), nil, []string{"RAN=" + ran})
	if !errors.Is(err, ErrCanceled) || !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want ErrCanceled", err)
	}
	if _, err := os.Stat(ran); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the plugin ran (stat: %v)", err)
	}
}

// No descriptor, child or goroutine stays behind.
func TestRunLeaksNothing(t *testing.T) {
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	e := New(Config{Timeout: 50 * time.Millisecond})
	ok, hang := script(t, `cat`), script(t, `exec sleep 60`)
	run := func() {
		for range 5 {
			_, _, _ = e.Run(t.Context(), ok, []byte("x"), nil)
			_, _, _ = e.Run(t.Context(), hang, bytes.Repeat([]byte("x"), 200<<10), nil)
			_, _, _ = e.Run(t.Context(), "/does/not/exist", []byte("x"), nil)
		}
	}
	run()
	before := count()
	run()
	deadline := time.Now().Add(5 * time.Second)
	for count() > before && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func TestExcerpt(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", maxExcerpt-1)
	for _, tt := range [][2]string{
		{"", ""},
		{"  one line\n", "one line"},
		{long + "é and more", long + " …"},
		{long + "aé and more", long + "a …"},
	} {
		if got := excerpt([]byte(tt[0])); got != tt[1] {
			t.Errorf("excerpt of %d bytes = %q, want %q", len(tt[0]), got, tt[1])
		}
	}
}

func BenchmarkRun(b *testing.B) {
	e, stdin, env := New(Config{}), []byte(`{"cniVersion":"1.1.0"}`), []string{"CNI_COMMAND=ADD"}
	b.Run("pluginexec", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := e.Run(b.Context(), "/bin/true", stdin, env); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("osexec", func(b *testing.B) {
		for b.Loop() {
			var out, errs bytes.Buffer
			c := exec.CommandContext(b.Context(), "/bin/true")
			c.Stdin, c.Stdout, c.Stderr, c.Env = bytes.NewReader(stdin), &out, &errs, env
			if err := c.Run(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
