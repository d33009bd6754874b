package why

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/inspect"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/recorder"
)

var began = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// node is what is known on a node, in the order in which it happened.
type node struct {
	operations []recorder.Operation
	records    []*journal.Record
	offline    bool
	boot       string // the records' is empty
	findings   []inspect.Finding
	inspected  []string
}

func pod(name string) journal.Pod {
	return journal.Pod{Namespace: "default", Name: name, UID: "uid-" + name}
}

// op adds an operation.
func (n *node) op(verb, name, sandbox, failure string, change ...func(*recorder.Operation)) *node {
	o := recorder.Operation{
		ID: string(rune('a' + len(n.operations))), State: recorder.Done, Verb: verb, By: recorder.ByCRI, Pod: pod(name), Sandbox: sandbox, Err: failure,
		Start: began.Add(time.Duration(len(n.operations)) * time.Second), Network: "mynet", File: "/etc/cni/net.d/10-mynet.conflist",
	}
	if verb == recorder.Add && failure == "" {
		o.Result = json.RawMessage(`{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.2/16"}]}`)
	}
	if sandbox != "" {
		o.IfName = "eth0"
	}
	for _, c := range change {
		c(&o)
	}
	n.operations = append(n.operations, o)
	return n
}

// has adds a record.
func (n *node) has(state journal.State, name, sandbox string, change ...func(*journal.Record)) *node {
	r := &journal.Record{
		State: state, Pod: pod(name), Created: began.Add(time.Duration(len(n.operations)) * time.Second),
		Attachment: cni.Attachment{ContainerID: sandbox, IfName: "eth0", Network: "mynet"},
	}
	for _, c := range change {
		c(r)
	}
	n.records = append(n.records, r)
	return n
}

func (n *node) tell(t *testing.T, what string) (*Story, error) {
	t.Helper()
	s := Sources{
		Told: "test",
		Find: func(q recorder.Query) (found []recorder.Operation, err error) {
			for i := len(n.operations) - 1; i >= 0; i-- {
				if n.operations[i].Matches(q.Pod) {
					found = append(found, n.operations[i])
				}
			}
			return found, nil
		},
		Inspect: func(_ context.Context, r *journal.Record) []inspect.Finding {
			n.inspected = append(n.inspected, r.Attachment.ContainerID)
			return n.findings
		},
	}
	s.Stands = func(r *journal.Record) bool { return r.BootID == n.boot }
	if !n.offline {
		s.Records = func() ([]*journal.Record, error) { return n.records, nil }
	}
	return Tell(t.Context(), s, what)
}

func state(state string) func(*recorder.Operation) {
	return func(o *recorder.Operation) { o.State = state }
}

func running(typ string, seconds float64) func(*recorder.Operation) {
	return func(o *recorder.Operation) {
		o.State, o.Took = recorder.UnderWay, seconds
		o.Runs = []recorder.Run{{Type: typ, Command: "ADD", Running: true, Took: seconds}}
	}
}

// The verdict is that of the newest sandbox.
func TestVerdicts(t *testing.T) {
	gone := inspect.Finding{Part: inspect.PartAddress, Want: "10.1.0.2/16 on eth0", Have: "it is not", Mend: "put it back"}
	for _, c := range []struct {
		name    string
		node    *node
		verdict Verdict
		fault   string // a part of it
		mend    string // a part of the first one
	}{
		{"good", (&node{}).op("ADD", "web", "aaaa", "").has(journal.Attached, "web", "aaaa"), Stands, "", ""},
		{"adopted", (&node{}).has(journal.Attached, "web", "aaaa", func(r *journal.Record) { r.Adopted = true }), Stands, "", ""},
		{"failed, then good", (&node{}).op("ADD", "web", "aaaa", "no").op("ADD", "web", "bbbb", "").has(journal.Attached, "web", "bbbb"), Stands, "", ""},
		{"refused, then good", (&node{}).op("RunPodSandbox", "web", "", "pod refused: no").op("ADD", "web", "bbbb", "").has(journal.Attached, "web", "bbbb"), Stands, "", ""},
		{"asked again while it stands", (&node{}).op("ADD", "web", "aaaa", "").op("RunPodSandbox", "web", "", "name is reserved").has(journal.Attached, "web", "aaaa"), Stands, "", ""},
		{"another pod of the name is refused", (&node{}).op("ADD", "web", "aaaa", "").has(journal.Attached, "web", "aaaa", func(r *journal.Record) { r.Pod.UID = "older" }).
			op("RunPodSandbox", "web", "", "pod refused: no"), Refused, "no", "crinetctl status"},
		{"part gone", (&node{findings: []inspect.Finding{{OK: true}, gone}}).op("ADD", "web", "aaaa", "").has(journal.Attached, "web", "aaaa"),
			Broken, "address: want 10.1.0.2/16 on eth0, have it is not", "put it back"},
		{"CHECK fails", (&node{}).op("ADD", "web", "aaaa", "").op("CHECK", "web", "aaaa", "no lease").has(journal.Attached, "web", "aaaa"), Broken, "CHECK: no lease", "crinetctl status"},
		{"refused", (&node{}).op("RunPodSandbox", "web", "", "pod refused: pod default/web: hostPort tcp *:80 is held by pod a/b (sandbox x)"),
			Refused, "held by pod a/b", "Free hostPort tcp *:80, which pod a/b (sandbox x) holds"},
		{"the runtime's failure", (&node{}).op("ADD", "web", "aaaa", "").op("DEL", "web", "aaaa", "").op("RunPodSandbox", "web", "", "runc: no"), Failed, "runc: no", "crinetctl status"},
		{"bypassed", (&node{}).op("RunPodSandbox", "web", "aaaa", "the runtime networked the pod without calling crinet", func(o *recorder.Operation) { o.IfName = "" }),
			Failed, "without calling", "another CNI configuration"},
		{"failed", (&node{}).op("ADD", "web", "aaaa", "plugin foo: words"), Failed, "plugin foo: words", "plugin foo"},
		{"failed, removed later", (&node{}).op("ADD", "web", "aaaa", "no").op("DEL", "web", "aaaa", ""), Failed, "no", "crinetctl status"},
		{"cut off", (&node{}).op("ADD", "web", "aaaa", "", state(recorder.CutOff)).op("DEL", "web", "aaaa", ""), CutOff, "crinetd ended", "Nothing"},
		{"removed", (&node{}).op("ADD", "web", "aaaa", "").op("DEL", "web", "aaaa", ""), Removed, "", ""},
		{"removed at the second try", (&node{}).op("ADD", "web", "aaaa", "").op("DEL", "web", "aaaa", "no").op("DEL", "web", "aaaa", ""), Removed, "", ""},
		{"not removed", (&node{}).op("ADD", "web", "aaaa", "").op("DEL", "web", "aaaa", "no carrier").
			has(journal.Detaching, "web", "aaaa", func(r *journal.Record) { r.LastError = "no carrier" }), Staying, "no carrier", "crinetctl status"},
		{"failed, and not undone", (&node{}).op("ADD", "web", "aaaa", "no").op("DEL", "web", "aaaa", "no carrier").
			has(journal.Detaching, "web", "aaaa", func(r *journal.Record) { r.LastError = "no carrier" }), Failed, "no", "crinetctl status"},
		{"under way", (&node{}).op("ADD", "web", "aaaa", "", running("foo", 1)).has(journal.Attaching, "web", "aaaa"), UnderWay, "foo has been running ADD for 1s", "Nothing yet"},
		{"hangs", (&node{}).op("ADD", "web", "aaaa", "", running("foo", 30)).has(journal.Attaching, "web", "aaaa"), UnderWay, "and hangs", "Plugin foo hangs"},
		{"under way, and nothing recorded", (&node{}).has(journal.Attaching, "web", "aaaa"), UnderWay, "under way", "Nothing yet"},
		{"of an earlier boot", (&node{boot: "this"}).op("ADD", "web", "aaaa", "").has(journal.Attached, "web", "aaaa"), Staying, "restarted", "crinetctl status"},
		{"offline, good", (&node{offline: true}).op("ADD", "web", "aaaa", ""), Stands, "", ""},
		{"offline, part gone", (&node{offline: true, findings: []inspect.Finding{gone}}).op("ADD", "web", "aaaa", ""), Broken, "address", "put it back"},
		{"offline, removed", (&node{offline: true}).op("ADD", "web", "aaaa", "").op("DEL", "web", "aaaa", ""), Removed, "", ""},
		{"offline, failed", (&node{offline: true}).op("ADD", "web", "aaaa", "no"), Failed, "no", "crinetctl status"},
	} {
		t.Run(c.name, func(t *testing.T) {
			story, err := c.node.tell(t, "web")
			if err != nil {
				t.Fatal(err)
			}
			mend := strings.Join(story.Mends, " ")
			if story.Verdict != c.verdict || !strings.Contains(story.Fault, c.fault) || (story.Fault == "") != (c.fault == "") ||
				!strings.Contains(mend, c.mend) || (mend == "") != (c.mend == "") || story.Pod != pod("web") {
				t.Errorf("the story is %s: %q, mends %q", story.Verdict, story.Fault, story.Mends)
			}
			if story.OK() != (c.fault == "") {
				t.Errorf("OK is %t", story.OK())
			}
			if stands := c.verdict == Stands || c.verdict == Broken; stands != (len(c.node.inspected) == 1) {
				t.Errorf("inspected: %q", c.node.inspected)
			}
		})
	}
}

// A pod is named in five ways. Several pods of one name are listed, and a name wins
// over a sandbox's id that begins so.
func TestWhichPod(t *testing.T) {
	n := (&node{}).op("ADD", "web", "aaaa1111", "").op("ADD", "aaaa", "bbbb2222", "").op("ADD", "db", "bbbb3333", "")
	n.op("ADD", "db", "cccc", "", func(o *recorder.Operation) { o.Pod.Namespace = "other" })
	n.has(journal.Attached, "only-journalled", "dddd")
	for what, want := range map[string]string{
		"web": "default/web", "default/web": "default/web", "uid-web": "default/web", "aaaa1": "default/web", "bbbb2222": "default/aaaa",
		"aaaa": "default/aaaa", "other/db": "other/db", "only-journalled": "default/only-journalled", "dddd": "default/only-journalled",
		"db": "several", "bbbb": "several", "nobody": "unknown", "": "unknown",
	} {
		story, err := n.tell(t, what)
		got := "unknown"
		switch {
		case errors.Is(err, ErrUnknown):
		case err != nil:
			t.Fatal(err)
		case len(story.Candidates) > 1:
			got = "several"
		default:
			got = story.Pod.String()
		}
		if got != want {
			t.Errorf("%q is %s, want %s", what, got, want)
		}
	}
}

// A sandbox has all that is known of it: the journal's four steps, what its operations
// say, and repeated refusals once.
func TestSandboxes(t *testing.T) {
	n := (&node{}).op("RunPodSandbox", "web", "", "pod refused: no").op("RunPodSandbox", "web", "", "pod refused: no").
		op("ADD", "web", "aaaa", "failed").op("ADD", "web", "bbbb", "")
	n.has(journal.Attached, "web", "bbbb", func(r *journal.Record) {
		r.Steps = []journal.StepTime{{Step: "create"}, {Step: "netns"}, {Step: "plugin"}, {Step: "start", Duration: time.Second}}
		r.Attachment.Result = json.RawMessage(`{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.9/16"}]}`)
	})
	story, err := n.tell(t, "web")
	if err != nil || len(story.Sandboxes) != 3 {
		t.Fatalf("%+v, %v", story, err)
	}
	first := story.Sandboxes[0]
	if first.ID != "bbbb" || len(first.Steps) != 4 || first.Steps[3].Took != 1 || len(first.Addresses) != 1 || first.Addresses[0] != "10.1.0.9/16" ||
		first.File != "/etc/cni/net.d/10-mynet.conflist" || first.State != "attached" || first.Decisive().Sandbox != "bbbb" {
		t.Errorf("the newest is %+v", first)
	}
	if story.Sandboxes[1].ID != "aaaa" || story.Sandboxes[2].ID != "" || len(story.Sandboxes[2].Operations) != 2 {
		t.Errorf("the older ones are %+v", story.Sandboxes[1:])
	}
}

// Each class of errors has its mend; words that nobody knows are said to be the
// plugin's own.
func TestHints(t *testing.T) {
	sandbox := &Sandbox{Network: "mynet", File: "/etc/cni/net.d/10-mynet.conflist"}
	for text, want := range map[string]string{
		`network "mynet": ADD of sandbox x: plugin foo: no executable of that name in /opt/cni/bin: install it there`:                                                                                    "Install the plugin foo, executable",
		`plugin bridge: failed to find plugin "host-local" in path [/opt/cni/bin]`:                                                                                                                       "Install the plugin host-local, executable",
		`pod refused: pod a/b: network not ready: no usable CNI network in /etc/cni/net.d; files: 10-a.conflist: plugin foo is not in /opt/cni/bin; plugins: bridge`:                                     "Install the plugin foo, executable",
		`failed to find plugin "foo" in path [/opt/cni/bin]`:                                                                                                                                             "Install the plugin foo",
		`network not ready: waiting for network real in /etc/cni/net.d since 12:03:04, the network of this node's pods before the reboot is real: until 12:08:04 (--network-wait) no other one is taken`: "see whether its agent runs",
		`plugin bridge: failed to allocate for range 0: no IP addresses available in range set: 10.1.0.1-10.1.0.4`:                                                                                       "/var/lib/cni/networks/mynet",
		`plugin /opt/cni/bin/foo: did not finish in time, stopped after 2m0s: context deadline exceeded`:                                                                                                 "Plugin foo hangs",
		`plugin foo: the runtime has given up on ADD: the runtime gave up waiting and ended its call`:                                                                                                    "Plugin foo hangs",
		`pod refused: pod a/b: network not ready: plugin foo is away`:                                                                                                                                    "crinetctl status says why",
		`plugin foo: error calling DHCP.Allocate: dial unix /run/cni/dhcp.sock: connect: no such file or directory`:                                                                                      "cni-dhcp.socket",
		`plugin portmap: exec: "iptables": executable file not found in $PATH`:                                                                                                                           "install the package iptables",
		`plugin portmap: running [/usr/sbin/iptables -t nat -C X]: exit status 4: Another app is currently holding the xtables lock`:                                                                     "iptables -w",
		`plugin portmap: failed to run "nft": not found`:                                                                                                                                                 "install the package iptables (or nftables)",
		`hostPort tcp *:80 is held by process 42 (nginx)`:                                                                                                                                                "process 42 (nginx) holds",
		`network not ready: no usable CNI network in /etc/cni/net.d: 10-a.conflist is broken`:                                                                                                            "crinetctl validate",
		`plugin foo: open /run/flannel/subnet.env: no such file or directory`:                                                                                                                            "flanneld",
		`the pod gets no network, since its record cannot be written: journal /var/lib/crinet/journal.db: write: no space left on device`:                                                                "Make room",
		`journal: write: read-only file system`:                                                                                                                                                          "read-write",
		`plugin foo: open /x: permission denied`:                                                                                                                                                         "SELinux",
		`/run/netns/x is no network namespace; the runtime must create it before ADD`:                                                                                                                    "Delete the pod",
		`pod a/b: the runtime networked the pod without calling crinet`:                                                                                                                                  "00-crinet.conflist",
		`network not ready: the runtime's side: containerd has not loaded it`:                                                                                                                            "line Runtime",
		`network "n" takes its addresses from the node's pod CIDR, which is not known`:                                                                                                                   "--pod-cidr",
		`plugin bridge: "cni0" already has an IP address different from 10.1.0.1/16`:                                                                                                                     "bridge of its own",
		`plugin calico: Get "https://10.96.0.1:443/x": dial tcp 10.96.0.1:443: connect: connection refused`:                                                                                              "could not reach",
		`hostPorts can't be mapped on this node, nor pods masqueraded: no nft_fib`:                                                                                                                       "docs/compatibility.md",
		`plugin foo: the moon is full`: "those of plugin foo",
		`nobody knows`:                 "journalctl -u crinetd",
	} {
		got := strings.Join(hint(text, sandbox), " ")
		if !strings.Contains(got, want) {
			t.Errorf("%s:\n  %s\n  does not say %q", text, got, want)
		}
	}
}
