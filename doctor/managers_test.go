package doctor

import "testing"

func TestLinkManagerChecks(t *testing.T) {
	t.Parallel()
	const def = "[Match]\nOriginalName=*\n[Link]\nNamePolicy=keep kernel\nMACAddressPolicy=persistent\n"
	udev := func(more ...string) map[string]string {
		return conf(append([]string{"/run/udev/control", "", "/usr/lib/systemd/network/99-default.link", def}, more...)...)
	}
	executed, builtIn := &Crinetd{Executed: []string{"bridge"}}, &Crinetd{}
	nm := func(more ...string) map[string]string {
		return conf(append([]string{"/proc/3/comm", "NetworkManager\n"}, more...)...)
	}
	nd := func(more ...string) map[string]string {
		return conf(append([]string{"/proc/3/comm", "systemd-network\n"}, more...)...)
	}
	run(t, []tc{
		{name: "no udev", check: "mac-address-policy", files: conf("/usr/lib/systemd/network/99-default.link", def), crinetd: executed, want: Skipped},
		{name: "executed", check: "mac-address-policy", files: udev(), crinetd: executed, want: Outcome(Warning), found: "/usr/lib/systemd/network/99-default.link gives a bridge", mend: "/etc/systemd/network/10-crinet.link"},
		{name: "built in", check: "mac-address-policy", files: udev(), crinetd: builtIn, want: OK, found: "built-in"},
		{name: "switched off", check: "mac-address-policy", files: udev(), flags: []string{"--builtin-plugins=off"}, want: Outcome(Warning)},
		{name: "mended", check: "mac-address-policy", files: udev("/etc/systemd/network/10-crinet.link", "[Match]\nOriginalName=*\nDriver=bridge veth\n[Link]\nMACAddressPolicy=none\n"), crinetd: executed, want: OK, found: "leaves"},
		{name: "of the uplink only", check: "mac-address-policy", files: conf("/run/udev/control", "", "/etc/systemd/network/10.link", "[Match]\nOriginalName=eth*\n[Link]\nMACAddressPolicy=persistent\n"), crinetd: executed, want: OK},
		{name: "hidden", check: "mac-address-policy", files: udev("/etc/systemd/network/99-default.link", "[Match]\nOriginalName=*\n"), crinetd: executed, want: OK},
		{name: "not running", check: "network-manager", files: conf(), want: Skipped},
		{name: "unaware", check: "network-manager", files: nm("/etc/NetworkManager/NetworkManager.conf", "[main]\nplugins=keyfile\n"), want: Outcome(Warning), found: "mynet0", mend: "interface-name:mynet0"},
		{name: "makes no connections", check: "network-manager", files: nm("/etc/NetworkManager/NetworkManager.conf", "[main]\nno-auto-default=*\n"), want: Outcome(Info), mend: "unmanaged-devices"},
		{name: "aware", check: "network-manager", files: nm("/etc/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices=interface-name:veth*;interface-name:mynet0\n"), want: OK},
		{name: "by device", check: "network-manager", files: nm("/etc/NetworkManager/conf.d/a.conf", "[device-pods]\nmatch-device=type:veth;type:bridge\nmanaged=0\n"), want: OK},
		{name: "half aware", check: "network-manager", files: nm("/etc/NetworkManager/conf.d/a.conf", "[keyfile]\nunmanaged-devices=interface-name:cali*;type:veth\n"), want: Outcome(Warning), found: "may manage mynet0"},
		{name: "not running", check: "networkd", files: conf(), want: Skipped},
		{name: "uplink only", check: "networkd", files: nd("/etc/systemd/network/10.network", "[Match]\nName=eth* en*\n[Network]\nDHCP=yes\n"), want: OK},
		{name: "all", check: "networkd", files: nd("/etc/systemd/network/10.network", "[Match]\nName=*\n[Network]\nDHCP=yes\n"), want: Outcome(Warning), found: "/etc/systemd/network/10.network matches veth", mend: "Unmanaged=yes"},
		{name: "all but", check: "networkd", files: nd("/etc/systemd/network/10.network", "[Match]\nName=!veth* mynet*\n[Network]\nDHCP=yes\n"), want: OK},
		{name: "unmanaged", check: "networkd", files: nd("/etc/systemd/network/10.network", "[Match]\nName=*\n", "/etc/systemd/network/05.network", "[Match]\nName=veth* mynet0\n[Link]\nUnmanaged=yes\n"), want: OK},
	})
}
