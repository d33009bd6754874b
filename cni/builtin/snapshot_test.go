package builtin_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// snapshot describes what stands in a world, one thing a line, without what is random.
func (w *world) snapshot(fixedMAC string) []string {
	w.t.Helper()
	var lines []string
	for _, side := range []struct {
		name string
		ns   netns
	}{{"host", w.host}, {"pod", w.pod}} {
		err := side.ns.do(func() (err error) {
			var found []string
			for range 10 { // lists change while they are read
				if found, err = describe(fixedMAC); !errors.Is(err, netlink.ErrDumpInterrupted) {
					break
				}
			}
			for _, line := range found {
				lines = append(lines, side.name+": "+line)
			}
			return err
		})
		if err != nil {
			w.t.Fatalf("describe the %s: %v", side.name, err)
		}
	}
	lines = append(lines, w.files()...)
	slices.Sort(lines)
	return lines
}

// describe lists links, addresses, routes, rules and sysctls of the namespace of the
// calling thread.
func describe(fixedMAC string) (lines []string, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = plainName(l.Attrs().Name)
	}
	for _, l := range links {
		lines = append(lines, describeLink(l, names, fixedMAC))
		addresses, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, err
		}
		for _, a := range addresses {
			flags := a.Flags &^ (unix.IFA_F_TENTATIVE | unix.IFA_F_NODAD)
			lines = append(lines, fmt.Sprintf("address %s %s scope %d flags %#x label %s broadcast %v",
				names[a.LinkIndex], plainAddress(a.IPNet), a.Scope, flags, plainName(a.Label), a.Broadcast))
		}
		lines = append(lines, sysctls(l.Attrs().Name)...)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE) // of all tables
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			lines = append(lines, fmt.Sprintf("route table %d %s via %v dev %s src %s scope %d type %d proto %d metric %d mtu %d flags %#x",
				r.Table, plainAddress(r.Dst), r.Gw, names[r.LinkIndex], plainIP(r.Src), r.Scope, r.Type, r.Protocol, r.Priority, r.MTU, r.Flags&^unix.RTNH_F_LINKDOWN))
		}
		rules, err := netlink.RuleList(family)
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			lines = append(lines, "rule "+r.String())
		}
	}
	for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		value, err := os.ReadFile("/proc/sys/net/" + name)
		if err != nil {
			return nil, err
		}
		lines = append(lines, "sysctl "+name+" "+strings.TrimSpace(string(value)))
	}
	slices.Sort(lines)
	return slices.Compact(lines), nil
}

func describeLink(l netlink.Link, names map[int]string, fixedMAC string) string {
	a := l.Attrs()
	mac := ""
	if a.HardwareAddr.String() == fixedMAC {
		mac = fixedMAC
	}
	text := fmt.Sprintf("link %s %s flags %#x mtu %d master %s state %s txqlen %d group %d alias %q promisc %d mac %s",
		names[a.Index], l.Type(), a.RawFlags, a.MTU, names[a.MasterIndex], a.OperState, a.TxQLen, a.Group, a.Alias, a.Promisc, mac)
	if port, err := netlink.LinkGetProtinfo(l); a.MasterIndex != 0 && err == nil {
		text += " port " + port.String()
	}
	if bridge, ok := l.(*netlink.Bridge); ok && bridge.VlanFiltering != nil {
		text += fmt.Sprintf(" vlan_filtering %t", *bridge.VlanFiltering)
	}
	return text
}

// sysctls lists an interface's sysctls of both IP families, random ones aside.
func sysctls(name string) (lines []string) {
	for _, family := range []string{"ipv4", "ipv6"} {
		files, _ := filepath.Glob("/proc/sys/net/" + family + "/conf/" + name + "/*")
		for _, file := range files {
			if value, err := os.ReadFile(file); err == nil && filepath.Base(file) != "stable_secret" {
				lines = append(lines, fmt.Sprintf("sysctl %s/%s/%s %s", family, plainName(name), filepath.Base(file), strings.TrimSpace(string(value))))
			}
		}
	}
	return lines
}

// files lists what host-local and flannel keep.
func (w *world) files() (lines []string) {
	err := filepath.WalkDir(w.data, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		info, _ := entry.Info()
		lines = append(lines, fmt.Sprintf("file %s %v %q", strings.TrimPrefix(path, w.data), info.Mode(), strings.ReplaceAll(string(text), w.data, "DATADIR")))
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return lines
}

var randomName = regexp.MustCompile(`veth[0-9a-f]{5,8}`)

func plainName(name string) string { return randomName.ReplaceAllString(name, "veth*") }

func plainIP(ip net.IP) string {
	if ip.To4() == nil && ip.IsLinkLocalUnicast() {
		return "LL"
	}
	return ip.String()
}

// plainAddress leaves out link-local addresses, which come from random MAC addresses.
func plainAddress(n *net.IPNet) string {
	if ones, _ := n.Mask.Size(); ones > 64 || n.IP.To4() == nil && ones == 64 && !n.IP.Equal(n.IP.Mask(n.Mask)) {
		if s := plainIP(n.IP); s == "LL" {
			return "LL"
		}
	}
	return n.String()
}

// plainResult returns a result without what is random.
func (w *world) plainResult(result json.RawMessage, fixedMAC string) any {
	w.t.Helper()
	if result == nil {
		return nil
	}
	var all map[string]any
	if err := json.Unmarshal(result, &all); err != nil {
		w.t.Fatalf("result %s: %v", result, err)
	}
	interfaces, _ := all["interfaces"].([]any)
	for _, i := range interfaces {
		i := i.(map[string]any)
		i["name"] = plainName(i["name"].(string))
		if mac := i["mac"]; mac != fixedMAC {
			i["mac"] = len(fmt.Sprint(mac))
		}
		if i["sandbox"] == w.pod.path() {
			i["sandbox"] = "pod"
		}
	}
	return all
}
