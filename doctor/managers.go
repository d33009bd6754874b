package doctor

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

const linkConcern = "link managers"

func linkChecks() []Check {
	return []Check{
		{Name: "mac-address-policy", Looks: "udev's MACAddressPolicy for bridges and veths (.link files, in udev's order)", Severity: Warning, run: macPolicy,
			Why: "udev changes a new bridge's or veth's MAC address while a plugin sets it up: the first pods send to the old one"},
		{Name: "network-manager", Looks: "whether NetworkManager leaves the pods' interfaces alone", Severity: Warning, run: networkManager,
			Why: "it takes addresses and routes off interfaces of pods, or asks for DHCP on them"},
		{Name: "networkd", Looks: ".network files of systemd-networkd that match the pods' interfaces", Severity: Warning, run: networkd,
			Why: "it takes addresses off the pods' interfaces, asks for DHCP on them, and waits for them at boot"},
	}
}

// podLinks are names that interfaces of the selected network's pods have on the node.
func (n *Node) podLinks(ctx context.Context) []string {
	names := []string{"veth0a1b2c3d"}
	if net := n.selected(ctx); net != nil {
		names = append(names, net.bridges()...)
		if net.has("flannel") {
			names = append(names, "flannel.1")
		}
	}
	return names
}

// sections are the settings of an ini file: section -> key -> values in their order.
type sections map[string]map[string][]string

// ini reads a file such as systemd's and NetworkManager's.
func (n *Node) ini(name string) sections {
	s, current := sections{}, ""
	for _, l := range n.grep([]string{name}, func(string) bool { return true }) {
		if strings.HasPrefix(l.Text, "[") && strings.HasSuffix(l.Text, "]") {
			current = strings.Trim(l.Text, "[]")
			continue
		}
		key, value, ok := strings.Cut(l.Text, "=")
		if !ok {
			continue
		}
		if s[current] == nil {
			s[current] = map[string][]string{}
		}
		key = strings.TrimSpace(key)
		s[current][key] = append(s[current][key], strings.TrimSpace(value))
	}
	return s
}

// ordered returns the files of a suffix in the order of their names, those of /etc in
// the place of those of /run and /usr (systemd.link(5)).
func (n *Node) ordered(folder, suffix string) []string {
	byName := make(map[string]string)
	for _, dir := range []string{"/lib/systemd/", "/usr/lib/systemd/", "/usr/local/lib/systemd/", "/run/systemd/", "/etc/systemd/"} {
		for _, file := range n.glob(dir + folder + "/*" + suffix) {
			byName[filepath.Base(file)] = file
		}
	}
	var files []string
	for _, name := range sortedKeys(byName) {
		files = append(files, byName[name])
	}
	return files
}

// applies says whether a [Match] section is one of a link of that name and kind.
func applies(match map[string][]string, name, kind string) bool {
	if len(match) == 0 {
		return false // systemd ignores files that match all by having no match
	}
	for key, values := range match {
		var patterns []string
		for _, v := range values {
			patterns = append(patterns, strings.Fields(v)...)
		}
		switch key {
		case "Name", "OriginalName":
			if !anyMatch(patterns, name) {
				return false
			}
		case "Driver", "Kind":
			if !anyMatch(patterns, kind) {
				return false
			}
		case "Type":
			if !anyMatch(patterns, map[string]string{"bridge": "bridge", "veth": "ether"}[kind]) {
				return false
			}
		default:
			return false // hardware, a path, a virtual machine: not such links
		}
	}
	return true
}

// anyMatch says whether one of systemd's patterns matches; ! at the first one turns
// them around.
func anyMatch(patterns []string, name string) bool {
	if len(patterns) == 0 {
		return false
	}
	first, negated := strings.CutPrefix(patterns[0], "!")
	patterns = append([]string{first}, patterns[1:]...)
	return slices.ContainsFunc(patterns, func(p string) bool { ok, err := path.Match(p, name); return ok && err == nil }) != negated
}

func macPolicy(ctx context.Context, n *Node) Result {
	if !n.exists("/run/udev/control") && !n.runs(ctx, "systemd-udevd", "(udev-worker)") {
		return skip("udev does not run")
	}
	net := n.selected(ctx)
	if net == nil || len(net.bridges()) == 0 {
		return skip("the pods' network has no Linux bridge")
	}
	c, err := n.askCrinetd(ctx)
	builtIn := len(n.Options.BuiltinPlugins) > 0
	if err == nil {
		builtIn = !slices.Contains(c.Executed, "bridge")
	}
	for _, link := range []struct{ name, kind string }{{net.bridges()[0], "bridge"}, {"veth0a1b2c3d", "veth"}} {
		for _, file := range n.ordered("network", ".link") {
			settings := n.ini(file)
			if !applies(settings["Match"], link.name, link.kind) {
				continue
			}
			policy := settings["Link"]["MACAddressPolicy"]
			if len(policy) == 0 || policy[len(policy)-1] != "persistent" {
				break // the first file that matches counts, and no other
			}
			if builtIn {
				return good("%s gives a %s a persistent MAC address; crinetd's built-in bridge sets its own before anybody sees it", file, link.kind)
			}
			return bad(`printf '[Match]\nOriginalName=*\nDriver=bridge veth\n[Link]\nMACAddressPolicy=none\n' >/etc/systemd/network/10-crinet.link && udevadm control --reload`,
				"%s gives a %s such as %s a persistent MAC address, and the plugin bridge is executed", file, link.kind, link.name)
		}
	}
	return good("udev leaves the MAC addresses of bridges and veths alone")
}

func networkManager(ctx context.Context, n *Node) Result {
	if !n.runs(ctx, "NetworkManager") {
		return skip("NetworkManager does not run")
	}
	var patterns []string
	files := append(n.glob("/usr/lib/NetworkManager/conf.d/*.conf"), append([]string{"/etc/NetworkManager/NetworkManager.conf"}, n.glob("/etc/NetworkManager/conf.d/*.conf")...)...)
	for _, file := range files {
		for section, keys := range n.ini(file) {
			if section == "keyfile" {
				for _, v := range keys["unmanaged-devices"] {
					patterns = append(patterns, strings.FieldsFunc(v, func(c rune) bool { return c == ';' || c == ',' })...)
				}
			}
			if strings.HasPrefix(section, "device") && slices.Contains(keys["managed"], "0") {
				for _, v := range keys["match-device"] {
					patterns = append(patterns, strings.FieldsFunc(v, func(c rune) bool { return c == ';' || c == ',' })...)
				}
			}
		}
	}
	var managed []string
	for _, name := range n.podLinks(ctx) {
		if !slices.ContainsFunc(patterns, func(p string) bool { return unmanaged(p, name) }) {
			managed = append(managed, name)
		}
	}
	if len(managed) == 0 {
		return good("NetworkManager runs and leaves the pods' interfaces alone")
	}
	names := "interface-name:veth*"
	for _, name := range n.podLinks(ctx)[1:] {
		names += ";interface-name:" + name
	}
	return bad(fmt.Sprintf(`printf '[keyfile]\nunmanaged-devices=%s\n' >/etc/NetworkManager/conf.d/crinet.conf && systemctl reload NetworkManager`, names),
		"NetworkManager runs and may manage %s: no unmanaged-devices names them", few(managed))
}

// unmanaged says whether a device specification of NetworkManager's names a link.
func unmanaged(spec, name string) bool {
	spec = strings.TrimSpace(spec)
	if spec == "*" || spec == "type:veth" && strings.HasPrefix(name, "veth") || spec == "type:bridge" && !strings.HasPrefix(name, "veth") {
		return true
	}
	pattern, ok := strings.CutPrefix(spec, "interface-name:")
	if !ok {
		return false
	}
	match, err := path.Match(strings.TrimPrefix(pattern, "="), name)
	return match && err == nil
}

func networkd(ctx context.Context, n *Node) Result {
	if !n.runs(ctx, "systemd-network") { // the kernel's name has 15 bytes
		return skip("systemd-networkd does not run")
	}
	for i, name := range n.podLinks(ctx) {
		kind := "bridge"
		if i == 0 {
			kind = "veth"
		}
		for _, file := range n.ordered("network", ".network") {
			settings := n.ini(file)
			if !applies(settings["Match"], name, kind) {
				continue
			}
			if slices.Contains(settings["Link"]["Unmanaged"], "yes") || slices.Contains(settings["Link"]["Unmanaged"], "true") {
				break
			}
			return bad(`printf '[Match]\nName=veth* `+strings.Join(n.podLinks(ctx)[1:], " ")+`\n[Link]\nUnmanaged=yes\n' >/etc/systemd/network/05-crinet.network && networkctl reload`,
				"%s matches %s", file, name)
		}
	}
	return good("systemd-networkd runs, and none of its files matches the pods' interfaces")
}
