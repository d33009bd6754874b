package main

import (
	"bufio"
	"bytes"
	"debug/buildinfo"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/integration/node"
)

// describeMachine prints what the numbers depend on.
func describeMachine(out io.Writer, kit *node.Kit) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("ask for the kernel's version: %w", err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("ask for the size of the memory: %w", err)
	}
	cpu, err := cpuModel()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "machine: %d CPUs (%s), %d GB, Linux %s\n", runtime.NumCPU(), cpu,
		info.Totalram*uint64(info.Unit)>>30, unix.ByteSliceToString(uts.Release[:]))
	var versions []string
	for _, tool := range []string{"containerd", "runc", "cni/bridge"} {
		version, err := moduleVersion(kit.Tool(tool))
		if err != nil {
			return err
		}
		versions = append(versions, tool+" "+version)
	}
	fmt.Fprintf(out, "versions: %s; crinet built with %s\n", strings.Join(versions, ", "), runtime.Version())
	return nil
}

// cpuModel is the first processor's name (proc_cpuinfo(5)).
func cpuModel() (string, error) {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", fmt.Errorf("look for the processor's name: %w", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value), nil
		}
	}
	return runtime.GOARCH, nil
}

// moduleVersion is the version of the module that a Go program was built from.
func moduleVersion(path string) (string, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the version of %s: %w", path, err)
	}
	for _, dep := range append(info.Deps, &info.Main) {
		if strings.HasPrefix(info.Path+"/", dep.Path+"/") {
			return dep.Version, nil
		}
	}
	return "unknown", nil
}
