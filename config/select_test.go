package config

import (
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func confDir(nameContent ...string) *Dir {
	d := &Dir{Path: "/etc/cni/net.d"}
	for i := 0; i < len(nameContent); i += 2 {
		d.Files = append(d.Files, File{Name: nameContent[i], Data: []byte(nameContent[i+1])})
	}
	return d
}

func TestSelect(t *testing.T) {
	t.Parallel()
	plugins, _ := standard(t)
	s := Scan(confDir(
		"1.conflist", `{"name":`,
		"2.conflist", one("first", "1.0.0", `{"type":"loopback"},{"type":"portmap"}`),
		"3.conflist", one("second", "1.0.0", `{"type":"bridge"}`),
		"4.conflist", one("third", "1.0.0", `{"type":"bridge"}`),
		"5.conflist", one("loopback", "1.0.0", `{"type":"old"}`),
		"6.conflist", one("weave", "1.0.0", `{"type":"weave-net"}`),
	), plugins, nil, ScanOptions{})
	tests := []struct{ ask, want string }{
		{"cni", "first (/etc/cni/net.d/2.conflist: loopback, portmap)"},
		{"second", "second (/etc/cni/net.d/3.conflist: bridge)"},
		{"bridge", "second (/etc/cni/net.d/3.conflist: bridge)"},
		{"loopback", "loopback (/etc/cni/net.d/5.conflist: old)"}, // the name goes before the type
		{"old", "loopback (/etc/cni/net.d/5.conflist: old)"},
		{"portmap", ""}, // not the first plugin of any
		{"weave", ""},
		{"Second", ""},
	}
	for _, tt := range tests {
		n, err := s.Select(tt.ask)
		got := ""
		if n != nil {
			got = n.String()
		}
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("Select(%s) = %s, %v; want %s", tt.ask, got, err, tt.want)
		}
	}
}

func TestSelectError(t *testing.T) {
	t.Parallel()
	plugins, binDir := standard(t)
	tests := []struct {
		name, ask string
		snapshot  *Snapshot
		want      string
	}{
		{"no dir", "cni", Scan(&Dir{Path: "/etc/cni/net.d", Err: fs.ErrNotExist}, plugins, nil, ScanOptions{}),
			"no usable CNI network in /etc/cni/net.d; the directory does not exist; plugins: bandwidth, bridge, dhcp, host-local, loopback, old, portmap, unasked"},
		{"nothing", "cni", Scan(confDir(), nil, nil, ScanOptions{}),
			"no usable CNI network in /etc/cni/net.d; it holds no configuration; plugins: none in "},
		{"another network", "calico", Scan(confDir("1.conflist", list1("mynet")), plugins, nil, ScanOptions{}),
			"no usable network in /etc/cni/net.d is named calico or begins with a plugin of that type; networks: mynet (bridge); plugins: bandwidth, bridge, dhcp, host-local, loopback, old, portmap, unasked"},
		{"the one that was asked for comes first", "weave", Scan(confDir("1.conflist", "{", "2.conflist", one("weave", "1.0.0", `{"type":"weave-net"}`)), plugins, nil, ScanOptions{}),
			"no usable network in /etc/cni/net.d is named weave or begins with a plugin of that type; files: 2.conflist: plugin weave-net is not in bin; 1.conflist:1:1: is broken: unexpected end of JSON input; plugins: bandwidth, bridge, dhcp, host-local, loopback, old, portmap, unasked"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := tt.snapshot.Select(tt.ask)
			if err == nil {
				t.Fatal("no error")
			}
			if diff := cmp.Diff(tt.want, strings.ReplaceAll(err.Error(), binDir, "bin")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// However much there is, the message fits a condition and says that it is cut.
func TestSelectErrorShort(t *testing.T) {
	t.Parallel()
	plugins, _ := standard(t)
	var files []string
	for i := range 100 {
		files = append(files, fmt.Sprintf("%03d-é.conflist", i), one("n", "1.0.0", fmt.Sprintf(`{"type":"%s"}`, strings.Repeat("é", 150+i))))
		files = append(files, fmt.Sprintf("%03d-ok.conflist", i), list1(fmt.Sprintf("network-%d", i)))
	}
	_, err := Scan(confDir(files...), plugins, nil, ScanOptions{}).Select("nope")
	if err == nil {
		t.Fatal("no error")
	}
	msg := err.Error()
	if len(msg) > 1024 || !utf8.ValidString(msg) || strings.Count(msg, " more") != 2 || !strings.Contains(msg, "é…") || !strings.Contains(msg, "; networks: network-0 (bridge)") || !strings.Contains(msg, "; plugins: bandwidth") {
		t.Errorf("%d bytes: %s", len(msg), msg)
	}
}
