package socket

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// activatedEnv makes this test binary a process that takes its sockets from the
// service manager, answers one connection on each, and prints their paths.
const activatedEnv = "CRINET_SOCKET_TEST_ACTIVATED"

func serveActivated() int {
	found, err := Activated(nil)
	if err != nil {
		fmt.Println("error:", err)
		return 0
	}
	for path, l := range found {
		fmt.Println(path)
		conn, err := l.Accept()
		if err != nil {
			fmt.Println("error:", err)
			return 0
		}
		if _, err := conn.Write([]byte("ok")); err != nil {
			fmt.Println("error:", err)
		}
		conn.Close()
		l.Close()
	}
	return 0
}

// activated runs such a process with these sockets, as systemd does.
func activated(t *testing.T, name string, sockets ...net.Listener) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `LISTEN_PID=$$ exec "$0"`, self)
	names := strings.TrimSuffix(strings.Repeat(name+":", len(sockets)), ":")
	cmd.Env = append(os.Environ(), activatedEnv+"=1", fmt.Sprintf("LISTEN_FDS=%d", len(sockets)), "LISTEN_FDNAMES="+names)
	for _, s := range sockets {
		file, err := s.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// TestActivated hands a listening socket to two processes, one after the other: who
// connected before the first one began is served by it, who connects while there
// is none is served by the second, and the path stays.
func TestActivated(t *testing.T) {
	t.Parallel()
	path := filepath.Join(tempDir(t), "s")
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	for range 2 {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if out := activated(t, ActivationName, lis); out != path+"\n" {
			t.Fatalf("the process printed %q", out)
		}
		answer := make([]byte, 2)
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(answer); err != nil || string(answer) != "ok" {
			t.Errorf("answer %q, %v", answer, err)
		}
		conn.Close()
	}
}

func TestActivatedRefuses(t *testing.T) {
	t.Parallel()
	lis, err := net.Listen("unix", filepath.Join(tempDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	if out := activated(t, "other", lis); !strings.Contains(out, "want FileDescriptorName=crinet") {
		t.Errorf("a socket of another name: %s", out)
	}
	if out := activated(t, ActivationName, tcp); !strings.Contains(out, "want a unix stream socket") {
		t.Errorf("a TCP socket: %s", out)
	}
	if out := activated(t, ActivationName); out != "" {
		t.Errorf("without sockets: %s", out)
	}
}
