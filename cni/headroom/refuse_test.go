package headroom

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/cni"
)

func idle() bool { return false }

// refuses fails unless the next pod is refused with these texts, or admitted without any.
func (r *rig) refuses(busy func() bool, texts ...string) {
	r.t.Helper()
	network, err := r.Refusal(busy)
	if (err != nil) != (len(texts) > 0) || (network != "") != (err != nil) {
		r.t.Fatalf("Refusal says %q, %v; want %q", network, err, texts)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			r.t.Errorf("Refusal says %v, want %q in it", err, text)
		}
	}
}

func (r *rig) free(path string) {
	r.t.Helper()
	if err := os.Remove(path); err != nil {
		r.t.Fatal(err)
	}
}

// A pod is refused when the folder, and not only the last count, has no address left,
// and nobody is being removed. The truth is the folder's now.
func TestRefusal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := filepath.Join(dir, "small")
	small := func(subnet string) *cni.Attachment {
		return attachment("small", fmt.Sprintf(`{"type": "host-local", "dataDir": %q, "subnet": %q}`, dir, subnet))
	}
	r := newRig(t, small("10.0.0.0/29"))
	r.refuses(idle) // nothing is counted yet
	r.Count(t.Context())
	r.refuses(idle)
	for i := range 4 {
		r.hold(files, fmt.Sprintf("10.0.0.%d", 2+i), "a", 0)
		r.refuses(idle)
	}
	last := filepath.Join(files, "10.0.0.6")
	for range 20 { // each time at once, without a count in between
		r.hold(files, "10.0.0.6", "a", 0)
		r.refuses(idle, "no IP addresses available in range set", `network "small" has given out all 5 of 10.0.0.0/29: remove pods`)
		r.refuses(func() bool { return true })
		r.free(last)
		r.refuses(idle)
	}
	r.hold(files, "10.0.0.6", "gone", time.Hour)
	r.Count(t.Context())
	r.refuses(idle, "all 5 of 10.0.0.0/29, 1 of them leaked: crinetctl status names their files")
	// A removal that begins while the folder is listed.
	asked := 0
	r.refuses(func() bool { asked++; return asked > 1 })

	r.next = small("10.0.0.0/28") // the operator gives it a larger range
	r.refuses(idle)
	r.next = attachment("small", `{"type": "dhcp"}`)
	r.refuses(idle)
	r.next = nil
	r.refuses(idle)
	r.next = small("10.0.0.0/29")
	r.refuses(idle, "no IP addresses available")
	if err := os.RemoveAll(files); err != nil {
		t.Fatal(err)
	}
	r.refuses(idle)
}

// A pod needs an address of each family, from any range of the family.
func TestRefusalDualStack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := filepath.Join(dir, "dual")
	r := newRig(t, attachment("dual", fmt.Sprintf(
		`{"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.0.0.0/30"}, {"subnet": "10.1.0.0/30"}], [{"subnet": "fd00::/126"}]]}`, dir)))
	r.Count(t.Context())
	r.hold(files, "10.0.0.2", "a", 0)
	r.hold(files, "fd00::2", "a", 0)
	r.refuses(idle) // the last of both
	r.hold(files, "10.1.0.2", "b", 0)
	r.refuses(idle, "all 2 of 10.0.0.0/30, 10.1.0.0/30")
	r.free(filepath.Join(files, "10.0.0.2"))
	r.refuses(idle)
	r.hold(files, "fd00::3", "b", 0)
	r.refuses(idle, "of fd00::/126")
	r.free(filepath.Join(files, "fd00::2"))
	r.refuses(idle)
}

// Where there are many addresses left, nothing is read for a pod; and a folder that has
// not changed for a while is not listed again.
func TestRefusalReadsLittle(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := filepath.Join(dir, "net")
	conf := func(subnet string) *cni.Attachment {
		return attachment("net", fmt.Sprintf(`{"type": "host-local", "dataDir": %q, "subnet": %q}`, dir, subnet))
	}
	r := newRig(t, conf("10.0.0.0/24"))
	r.hold(files, "10.0.0.2", "a", 0)
	r.Count(t.Context())
	asked := func() bool { t.Error("a pod was looked at with many addresses left"); return false }
	r.refuses(asked)
	if len(r.listed) != 0 {
		t.Errorf("listed %v", r.listed)
	}
	r.next = conf("10.0.0.0/30")
	r.Count(t.Context())
	past := time.Now().Add(-time.Minute)
	if err := os.Chtimes(files, past, past); err != nil {
		t.Fatal(err)
	}
	r.refuses(idle, "all 1 of 10.0.0.0/30")
	seen := r.listed[files]
	r.refuses(idle, "all 1 of 10.0.0.0/30")
	if !seen.stable || r.listed[files] != seen {
		t.Error("a folder that has not changed was listed again")
	}
	r.free(filepath.Join(files, "10.0.0.2"))
	r.refuses(idle)
	if r.listed[files] == seen {
		t.Error("a folder that has changed was not listed again")
	}
}
