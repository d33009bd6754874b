package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/config"
)

// tc is a node and what one check says of it.
type tc struct {
	name    string
	check   string
	files   map[string]string // the node's tree
	flags   []string          // of crinetd; --network-plugin=cni is the first
	crinetd *Crinetd          // nil: it does not answer
	runtime *Runtime          // nil: it does not answer
	links   *links            // nil: there are none
	rules   *ruleset          // nil: there are none
	image   bool              // the tree is not that of the running system
	want    Outcome
	found   string // a part of what is found
	mend    string // a part of the mend
}

// errAway is what those say who do not answer.
var errAway = errors.New("nobody is there")

// mynet is a network with a bridge.
const mynet = `{"cniVersion":"1.0.0","name":"mynet","plugins":[{"type":"bridge","bridge":"mynet0","isGateway":true,"ipam":{"type":"host-local","subnet":"10.10.0.0/24"}}]}`

// dual is a network of both IP families.
const dual = `{"cniVersion":"1.0.0","name":"dual","plugins":[{"type":"bridge","ipam":{"type":"host-local","ranges":[[{"subnet":"10.20.0.0/24"}],[{"subnet":"fd00:20::/64"}]]}}]}`

// conf is a tree with mynet, and other files.
func conf(more ...string) map[string]string {
	files := map[string]string{"/etc/cni/net.d/10-mynet.conflist": mynet}
	for i := 0; i < len(more); i += 2 {
		files[more[i]] = more[i+1]
	}
	return files
}

// oldAndEmpty is the text of a file that is an hour old and has none.
const oldAndEmpty = "old and empty"

// writeTree makes a tree. A text that begins with -> makes a symbolic link; modes are
// 0755, or 0600 for the text 600. A text that begins with old is an hour old.
func writeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(text, "->"); ok {
			err = os.Symlink(target, path)
		} else {
			mode := os.FileMode(0o755)
			if text == "600" {
				mode = 0o600
			}
			err = os.WriteFile(path, []byte(strings.TrimPrefix(text, oldAndEmpty)), mode)
		}
		if strings.HasPrefix(text, "old") {
			then := time.Now().Add(-time.Hour)
			err = errors.Join(err, os.Chtimes(path, then, then))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// preset has a source answer without being read.
func preset[T any](s *source[T], value T) {
	s.once.Do(func() {
		s.done = make(chan struct{})
		s.value = value
		close(s.done)
	})
}

// node is the node of a case.
func (c *tc) node(t *testing.T) *Node {
	t.Helper()
	n := &Node{Root: writeTree(t, c.files), Live: !c.image, Version: "v1"}
	if err := n.FindOptions(append([]string{"--network-plugin=cni"}, c.flags...)); err != nil {
		t.Fatal(err)
	}
	if c.image {
		return n
	}
	n.Crinetd = func(context.Context) (*Crinetd, error) {
		if c.crinetd == nil {
			return nil, errAway
		}
		return c.crinetd, nil
	}
	n.Runtime = func(context.Context) (*Runtime, error) {
		if c.runtime == nil {
			return nil, errAway
		}
		return c.runtime, nil
	}
	if c.links == nil {
		c.links = &links{}
	}
	if c.rules == nil {
		c.rules = &ruleset{}
	}
	preset(&n.links, c.links)
	preset(&n.ruleset, c.rules)
	return n
}

// run runs the cases.
func run(t *testing.T, cases []tc) {
	t.Helper()
	seen := make(map[string]map[Outcome]bool)
	for _, c := range cases {
		t.Run(c.check+"/"+c.name, func(t *testing.T) {
			checks, err := Select(Checks(), []string{c.check})
			if err != nil {
				t.Fatal(err)
			}
			r := Run(t.Context(), c.node(t), checks)[0]
			if r.Outcome != c.want || !strings.Contains(r.Found, c.found) || !strings.Contains(r.Mend, c.mend) {
				t.Errorf("got %+v\nwant %s, found %q, mend %q", r, c.want, c.found, c.mend)
			}
			if (r.Failed() || r.Outcome == Outcome(Info)) != (r.Mend != "" && r.Why != "") {
				t.Errorf("a finding needs reason and mend, and nothing else does: %+v", r)
			}
		})
		if seen[c.check] == nil {
			seen[c.check] = make(map[Outcome]bool)
		}
		seen[c.check][c.want] = true
	}
	for check, outcomes := range seen {
		bad := outcomes[Outcome(Error)] || outcomes[Outcome(Warning)] || outcomes[Outcome(Info)]
		if !bad || !outcomes[OK] {
			t.Errorf("%s has no case that is well, or none that is not", check)
		}
	}
}

// mustOptions are crinetd's defaults.
func mustOptions(t *testing.T) *config.Options {
	t.Helper()
	n := &Node{Root: t.TempDir()}
	if err := n.FindOptions(nil); err != nil {
		t.Fatal(err)
	}
	return n.Options
}
