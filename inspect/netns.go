package inspect

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const netlinkRoute = unix.NETLINK_ROUTE

// checkNetNS says whether the sandbox's namespace is there.
func (i *inspection) checkNetNS() bool {
	have := ""
	var fs unix.Statfs_t
	switch err := unix.Statfs(i.netns, &fs); {
	case i.netns == "":
		have = "no path: the namespace is gone"
	case err != nil:
		have = err.Error()
	case fs.Type != unix.NSFS_MAGIC:
		have = "a file that is no network namespace"
	}
	return i.check(PartNetNS, i.netns, have, remake)
}

// handleIn opens a netlink socket in a namespace. It does so on a thread that goes
// back, or ends with its goroutine if it cannot.
func handleIn(path string) (handle *netlink.Handle, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		home, openErr := os.Open("/proc/thread-self/ns/net")
		if openErr != nil {
			runtime.UnlockOSThread()
			err = openErr
			return
		}
		defer home.Close()
		if err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			return
		}
		handle, err = netlink.NewHandle(netlinkRoute)
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	<-done
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket in %s: %w", path, err)
	}
	return handle, nil
}

// inside is a command line of ip(8) in the sandbox's namespace.
func (i *inspection) inside(format string, words ...any) string {
	dir, name := filepath.Split(i.netns)
	if dir == "/run/netns/" || dir == "/var/run/netns/" {
		return fmt.Sprintf("ip -n %s ", word(name)) + outside(format, words...)
	}
	return fmt.Sprintf("nsenter --net=%s ip ", word(i.netns)) + outside(format, words...)
}

// outside makes a command line of words that a shell takes as they are.
func outside(format string, words ...any) string {
	for n := range words {
		words[n] = word(fmt.Sprint(words[n]))
	}
	return fmt.Sprintf(format, words...)
}

// word quotes a word for a shell if that would not take it as it is: interfaces may
// have any name.
func word(text string) string {
	safe := func(r rune) bool {
		return r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r)) || strings.ContainsRune("-_.:/@=+%,", r)
	}
	if text != "" && strings.IndexFunc(text, func(r rune) bool { return !safe(r) }) < 0 {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
