package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// files are the contents of a conf dir. A name that ends in "/" is a folder,
// the content "-> x" a symlink.
type files map[string]string

func (f files) make(t *testing.T, dir string) {
	t.Helper()
	for _, folders := range []bool{true, false} {
		for name, content := range f {
			path := filepath.Join(dir, name)
			target, isLink := strings.CutPrefix(content, "-> ")
			var err error
			switch {
			case strings.HasSuffix(name, "/") != folders:
			case folders:
				err = os.Mkdir(path, 0o755)
			case isLink:
				err = os.Symlink(target, path)
			default:
				err = os.WriteFile(path, []byte(content), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

type scanTest struct {
	name  string
	files files
	want  string
}

func runScanTests(t *testing.T, tests []scanTest) {
	t.Parallel()
	plugins, binDir := standard(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			tt.files.make(t, dir)
			s := Scan(ReadDir(dir), plugins, nil, ScanOptions{})
			if diff := cmp.Diff(tt.want, dump(s, binDir)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			for _, n := range s.Networks {
				checkNetwork(t, n)
			}
			if again := Scan(ReadDir(dir), plugins, s, ScanOptions{}); !again.same(s) {
				t.Errorf("a second scan differs:\n%s", dump(again, binDir))
			}
		})
	}
}

// TestScanFiles: which files are read, and in which order.
func TestScanFiles(t *testing.T) {
	runScanTests(t, []scanTest{
		{"no files", files{}, ""},
		{"the seed's bridge", files{"10-mynet.conf": seedBridge}, "10-mynet.conf: mynet 0.3.0 bridge+host-local\n"},
		{"flannel's list", files{"10-flannel.conflist": flannelList},
			"10-flannel.conflist: cbr0 0.3.1 bridge portmap(portMappings) can portMappings\n"},
		{"a .json of either kind", files{"1.json": list1("a"), "2.json": `{"name":"b","cniVersion":"1.0.0","type":"loopback"}`},
			"1.json: a 1.0.0 bridge\n2.json: b 1.0.0 loopback\n"},
		{"in file-name order", files{"b.conf": `{"name":"two","type":"loopback"}`, "a.conflist": list1("one"), "B.json": list1("three"), "10.conflist": list1("four")},
			"10.conflist: four 1.0.0 bridge\nB.json: three 1.0.0 bridge\na.conflist: one 1.0.0 bridge\nb.conf: two 0.1.0 loopback\n"},
		{"foreign files", files{"README": "hello", ".10-x.conflist": "{", ".conf": "{", "a.conflist.bak": "{", "calico-kubeconfig": "apiVersion: v1", "folder.conf/": "", "a.conflist~": "{", "x.CONF": "{"}, ""},
		{"crinet's own file", files{OwnFile: `{"name":"crinet","cniVersion":"1.0.0","plugins":[{"type":"crinet"}]}`}, ""},
		{"crinet's shim elsewhere", files{"5.conflist": one("x", "1.0.0", `{"type":"crinet"}`), "6.conf": `{"name":"y","type":"crinet"}`},
			"own[x] conf/5.conflist: is crinet's own shim\nown[y] conf/6.conf: is crinet's own shim\n"},
		{"too large", files{"1.conflist": list1("a") + strings.Repeat(" ", maxFile), "2.conflist": list1("b")},
			"2.conflist: b 1.0.0 bridge\nbroken[] conf/1.conflist: is larger than 1048576 bytes\n"},
		{"symlinks", files{"1.conflist": "-> ..data/x", "..data": "-> ..2026", "..2026/": "", "..2026/x": list1("a"), "2.conflist": "-> nowhere", "3.conflist": "-> 3.conflist",
			"4.conflist": "-> ..2026", "net.d": "-> ..2026", "5.conflist": list1("net.d")},
			"1.conflist: a 1.0.0 bridge\n5.conflist: net.d 1.0.0 bridge\n" +
				"broken[] conf/2.conflist: is a symlink to nothing\nbroken[] conf/3.conflist: too many levels of symbolic links\n" +
				"broken[] conf/4.conflist: is no regular file\n"},
	})
}

// TestScanBroken: files that hold no configuration.
func TestScanBroken(t *testing.T) {
	runScanTests(t, []scanTest{
		{"one bad file among good ones", files{"1.conflist": `{"name":`, "2.conflist": list1("b"), "3.conf": "", "4.conf": seedBridge},
			"2.conflist: b 1.0.0 bridge\n4.conf: mynet 0.3.0 bridge+host-local\n" +
				"broken[] conf/1.conflist:1:8: is broken: unexpected end of JSON input\nbroken[] conf/3.conf: is empty\n"},
		{"a JSON error's place", files{"1.conflist": "{\n  \"name\": \"a\",\n  \"plugins\": [,]\n}"},
			"broken[] conf/1.conflist:3:15: is broken: invalid character ',' looking for beginning of value\n"},
		{"blank, binary, no object", files{"1.conf": " \n", "2.conf": "\x00\x01", "3.conf": "[]", "4.conf": "null", "5.conf": `"x"`, "6.conf": "{} {}"},
			"broken[] conf/1.conf: is empty\nbroken[] conf/2.conf:1:1: is broken: invalid character '\\x00' looking for beginning of value\n" +
				"broken[] conf/3.conf:1:1: is broken: it holds no JSON object\nbroken[] conf/4.conf:1:1: is broken: it holds no JSON object\n" +
				"broken[] conf/5.conf:1:1: is broken: it holds no JSON object\nbroken[] conf/6.conf:1:4: is broken: invalid character '{' after top-level value\n"},
		{"wrong types", files{"1.conflist": `{"name":5,"plugins":[]}`, "2.conflist": `{"name":"a","plugins":{}}`, "3.conflist": one("a", "1.0.0", `"bridge"`),
			"4.conflist": one("a", "1.0.0", `{"type":["x"]}`), "5.conflist": one("a", "1.0.0", `{"type":"bridge","capabilities":{"x":1}}`),
			"6.conflist": `{"name":"a","disableCheck":1,"plugins":[]}`, "7.conflist": `{"name":"a","cniVersions":"1.0.0","plugins":[]}`, "8.conf": `{"name":"a","type":"bridge","ipam":"x"}`},
			"broken[] conf/1.conflist:1:9: name: is a number; want a string\n" +
				"broken[] conf/2.conflist:1:23: plugins: is an object; want a list\n" +
				"broken[] conf/3.conflist:1:45: plugin: is a string; want an object\n" +
				"broken[] conf/4.conflist:1:45: plugin: type is an array; want a string\n" +
				"broken[] conf/5.conflist:1:45: plugin: capabilities is a number; want true or false\n" +
				"broken[] conf/6.conflist:1:28: disableCheck is 1; want true or false\n" +
				"broken[] conf/7.conflist:1:27: cniVersions: is a string; want a list\n" +
				"broken[] conf/8.conf:1:1: plugin: ipam is a string; want an object\n"},
		{"numbers too large", files{"1.conflist": `{"name":"a","x":1e999,"plugins":[{"type":"bridge"}]}`},
			"broken[] conf/1.conflist:1:17: x: is a number 1e999; want a smaller number\n"},
		{"names", files{"1.conflist": `{"plugins":[{"type":"bridge"}]}`, "2.conf": `{"type":"bridge"}`, "3.conflist": list1("../x"), "4.conf": `{"type":"bridge","name":"-a"}`},
			"broken[] conf/1.conflist:1:1: has no network name\nbroken[] conf/2.conf:1:1: has no network name\n" +
				"broken[] conf/3.conflist:1:30: network name \"../x\" has other characters than letters, digits, '_', '.' and '-', or begins with one of the latter\n" +
				"broken[] conf/4.conf:1:25: network name \"-a\" has other characters than letters, digits, '_', '.' and '-', or begins with one of the latter\n"},
		{"plugins", files{"1.conflist": `{"name":"a"}`, "2.conflist": `{"name":"a","plugins":[]}`, "3.conflist": `{"name":"a","plugins":[null]}`, "4.conflist": `{"name":"a","plugins":[{"name":"x"}]}`,
			"5.conflist": `{"name":"a","plugins":[{"type":"../bridge"}]}`, "6.conf": `{"name":"a","type":"bridge","ipam":{"type":".."}}`, "7.conf": list1("a"), "8.conf": `{"name":"a"}`, "9.conflist": `{"name":"a","loadOnlyInlinedPlugins":true}`},
			"broken[] conf/1.conflist:1:1: has no plugins\nbroken[] conf/2.conflist:1:1: has no plugins\n" +
				"broken[] conf/3.conflist:1:24: a plugin has no type\nbroken[] conf/4.conflist:1:24: a plugin has no type\n" +
				"broken[] conf/5.conflist:1:24: plugin type \"../bridge\" is no file name\nbroken[] conf/6.conf:1:1: plugin type \"..\" is no file name\n" +
				"broken[] conf/7.conf:1:1: is a list of plugins; a .conf file holds a single one, a list is named .conflist\n" +
				"broken[] conf/8.conf:1:1: a plugin has no type\nbroken[] conf/9.conflist:1:1: has no plugins\n"},
		{"too many plugins", files{"1.conflist": one("a", "1.0.0", strings.Repeat(`{"type":"bridge"},`, maxPlugins)+`{"type":"bridge"}`)},
			"broken[] conf/1.conflist:1:1: has 65 plugins; want at most 64\n"},
	})
}

// TestScanPlugins: configurations and the plugins that there are.
func TestScanPlugins(t *testing.T) {
	runScanTests(t, []scanTest{
		{"no such plugin", files{"1.conflist": one("a", "1.0.0", `{"type":"weave","ipam":{"type":"none"}},{"type":"portmap"}`), "2.conflist": one("b", "1.0.0", `{"type":"bridge","ipam":{"type":"whereabouts"}}`)},
			"unusable[a] conf/1.conflist: plugin weave is not in bin\n" +
				"unusable[b] conf/2.conflist: IPAM plugin whereabouts is no executable in bin\n"},
		{"plugins that do not work", files{"1.conflist": one("a", "1.0.0", `{"type":"garbage"}`), "2.conflist": one("b", "1.0.0", `{"type":"plain"}`)},
			"unusable[a] conf/1.conflist: plugin bin/garbage is no CNI plugin: its answer to VERSION cannot be read: decoding version info: invalid character 'h' looking for beginning of value: \"hello\\n\"\n" +
				"unusable[b] conf/2.conflist: plugin bin/plain is not executable (mode 0644)\n"},
		{"CNI versions", files{"1.conflist": one("a", "9.9.9", `{"type":"bridge"}`), "2.conflist": one("b", "1.1.0", `{"type":"bridge"},{"type":"old"}`),
			"3.conflist": `{"name":"c","cniVersions":["0.4.0","1.1.0","2.0.0","1.0.0"],"plugins":[{"type":"old"}]}`,
			"4.conflist": `{"name":"d","cniVersion":"0.4.0","cniVersions":["1.1.0"],"plugins":[{"type":"bridge"}]}`,
			"5.conflist": `{"name":"e","plugins":[{"type":"bridge"}]}`, "6.conflist": `{"name":"f","cniVersions":["3.0.0"],"plugins":[{"type":"bridge"}]}`,
			"7.conf": `{"name":"g","cniVersion":"1.1.0","type":"bridge","ipam":{"type":"old"}}`, "8.conf": `{"name":"h","cniVersion":"1.0","type":"bridge"}`},
			"3.conflist: c 1.0.0 old\n4.conflist: d 1.1.0 bridge\n5.conflist: e 0.1.0 bridge\n" +
				"broken[] conf/1.conflist:1:15: asks for CNI version \"9.9.9\"; known are 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n" +
				"unusable[b] conf/2.conflist: asks for CNI version 1.1.0; plugin bin/old reports 0.3.1, 0.4.0, 1.0.0\n" +
				"broken[] conf/6.conflist:1:27: asks for CNI version \"3.0.0\"; known are 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n" +
				"unusable[g] conf/7.conf: asks for CNI version 1.1.0; IPAM plugin bin/old reports 0.3.1, 0.4.0, 1.0.0\n" +
				"broken[] conf/8.conf:1:26: asks for CNI version \"1.0\"; known are 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n"},
		{"one name twice", files{"1.conflist": one("a", "1.0.0", `{"type":"weave"}`), "2.conflist": list1("a"), "3.conf": `{"name":"a","type":"loopback"}`},
			"2.conflist: a 1.0.0 bridge\nunusable[a] conf/1.conflist: plugin weave is not in bin\n" +
				"duplicate[a] conf/3.conf: has the network name a, as 2.conflist before it\n"},
		{"capabilities", files{"1.conflist": one("a", "1.0.0", `{"type":"bridge","capabilities":{"mac":true,"ips":false,"dns":true}},{"type":"portmap","capabilities":{"portMappings":true,"mac":true}}`)},
			"1.conflist: a 1.0.0 bridge(dns,mac) portmap(mac,portMappings) can dns,mac,portMappings\n"},
		{"who needs the pod CIDR", files{
			"1.conflist": one("a", "1.0.0", `{"type":"bridge","capabilities":{"ipRanges":true},"ipam":{"type":"host-local"}},{"type":"portmap"}`),
			"2.conflist": one("b", "1.0.0", `{"type":"bridge","capabilities":{"ipRanges":true},"ipam":{"type":"host-local","ranges":[]}}`),
			"3.conflist": one("c", "1.0.0", `{"type":"bridge","capabilities":{"ipRanges":true},"ipam":{"type":"host-local","subnet":"10.0.0.0/8"}}`),
			"4.conflist": one("d", "1.0.0", `{"type":"bridge","capabilities":{"ipRanges":true},"ipam":{"type":"host-local","ranges":[[{"subnet":"10.0.0.0/8"}]]}}`),
			"5.conflist": one("e", "1.0.0", `{"type":"bridge","capabilities":{"ipRanges":false},"ipam":{"type":"host-local"}}`),
			"6.conflist": one("f", "1.0.0", `{"type":"bridge","capabilities":{"ipRanges":true},"ipam":{"type":"dhcp"}}`),
			"7.conf":     `{"name":"g","cniVersion":"1.0.0","type":"bridge","capabilities":{"ipRanges":true},"ipam":{"type":"host-local","dataDir":"/x"}}`},
			"1.conflist: a 1.0.0 bridge+host-local(ipRanges) portmap can ipRanges NEEDS-CIDR\n" +
				"2.conflist: b 1.0.0 bridge+host-local(ipRanges) can ipRanges NEEDS-CIDR\n" +
				"3.conflist: c 1.0.0 bridge+host-local(ipRanges) can ipRanges\n" +
				"4.conflist: d 1.0.0 bridge+host-local(ipRanges) can ipRanges\n" +
				"5.conflist: e 1.0.0 bridge+host-local\n" +
				"6.conflist: f 1.0.0 bridge+dhcp(ipRanges) can ipRanges\n" +
				"7.conf: g 1.0.0 bridge+host-local(ipRanges) can ipRanges NEEDS-CIDR\n"},
		{"keys that come twice or in another case", files{"1.conflist": `{"name":"x","name":"a","cniVersion":"1.0.0","plugins":[{"type":"bridge","Type":"loopback"},{"Type":"loopback","type":"portmap"}]}`},
			"1.conflist: a 1.0.0 bridge portmap\n"},
	})
}

// TestScanFolders: plugins in the network's folder.
func TestScanFolders(t *testing.T) {
	runScanTests(t, []scanTest{
		{"plugins in the network's folder", files{"1.conflist": one("a", "1.0.0", `{"type":"bridge"}`), "a/": "", "a/20.conf": `{"type":"portmap"}`, "a/10.conf": `{"type":"bandwidth"}`, "a/30.json": "{", "a/.40.conf": "{",
			"2.conflist": `{"name":"b","cniVersion":"1.0.0"}`, "b/": "", "b/1.conf": `{"type":"loopback"}`,
			"3.conflist": `{"name":"c","cniVersion":"1.0.0","loadOnlyInlinedPlugins":"True","plugins":[{"type":"bridge"}]}`, "c/": "", "c/1.conf": "{",
			"4.conf": `{"name":"d","type":"bridge"}`, "d/": "", "d/1.conf": "{", "other/": "", "other/1.conf": "{"},
			"1.conflist: a 1.0.0 bridge bandwidth portmap\n2.conflist: b 1.0.0 loopback\n3.conflist: c 1.0.0 bridge\n4.conf: d 0.1.0 bridge\n"},
		{"broken ones in the network's folder", files{"1.conflist": list1("a"), "a/": "", "a/1.conf": "{\n]", "2.conflist": list1("b"), "b/": "", "b/1.conf": `{"type":1}`, "3.conflist": list1("c"), "c/": "", "c/1.conf": `{"name":"x"}`},
			"broken[] conf/a/1.conf:2:1: is broken: invalid character ']' looking for beginning of object key string\n" +
				"broken[] conf/b/1.conf:1:1: plugin: type is a number; want a string\nbroken[] conf/c/1.conf:1:1: a plugin has no type\n"},
	})
}
