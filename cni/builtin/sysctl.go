package builtin

import (
	"bytes"
	"fmt"
	"os"
)

// sysctlRoot is where sysctls are. Those below net are of the namespace of the thread
// that opens them.
const sysctlRoot = "/proc/sys/net/"

// setSysctl sets a sysctl below net, named with slashes: a name of an interface may
// have dots.
func setSysctl(name, value string) error {
	if err := os.WriteFile(sysctlRoot+name, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set a sysctl: %w", err)
	}
	return nil
}

// trySysctl is setSysctl where the reference plugins do without, as on a node
// without IPv6.
func trySysctl(name, value string) { _ = setSysctl(name, value) }

// needSysctl sets a sysctl if it has another value: it may be set, and not be
// writable.
func needSysctl(name, value string) error {
	if now, err := os.ReadFile(sysctlRoot + name); err == nil && string(bytes.TrimSpace(now)) == value {
		return nil
	}
	return setSysctl(name, value)
}

// enableForwarding lets the node forward packets of an IP family.
func enableForwarding(v4 bool) error {
	name := "ipv6/conf/all/forwarding"
	if v4 {
		name = "ipv4/ip_forward"
	}
	if err := needSysctl(name, "1"); err != nil {
		return fmt.Errorf("enable forwarding: %w", err)
	}
	return nil
}
