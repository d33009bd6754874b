package headroom

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/cni"
)

// attachment is one of a bridge network with this IPAM configuration.
func attachment(name, ipam string) *cni.Attachment {
	return &cni.Attachment{Network: name, ConfList: fmt.Appendf(nil,
		`{"cniVersion": "1.0.0", "name": %q, "plugins": [{"type": "bridge", "capabilities": {"ipRanges": true}, "ipam": %s}]}`, name, ipam)}
}

// rig is a Counter with what it asks.
type rig struct {
	*Counter
	t           *testing.T
	next        *cni.Attachment
	attachments []*cni.Attachment
	sandboxes   map[string]bool
	asked       int
	runtimeErr  error
	log         strings.Builder
}

func newRig(t *testing.T, next *cni.Attachment) *rig {
	t.Helper()
	r := &rig{t: t, next: next, sandboxes: make(map[string]bool)}
	r.Counter = New(Config{
		Log: slog.New(slog.NewTextHandler(&r.log, nil)),
		Next: func() (*cni.Attachment, error) {
			if r.next == nil {
				return nil, errors.New("no network")
			}
			return r.next, nil
		},
		Attachments: func() ([]*cni.Attachment, error) { return r.attachments, nil },
		Sandboxes: func(context.Context) (map[string]bool, error) {
			r.asked++
			return r.sandboxes, r.runtimeErr
		},
	})
	return r
}

// hold makes the file of an address, as host-local does, of that age.
func (r *rig) hold(dir, address, holder string, age time.Duration) {
	r.t.Helper()
	path := filepath.Join(dir, address)
	at := time.Now().Add(-age)
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(path, []byte(holder+"\r\neth0"), 0o600), os.Chtimes(path, at, at)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) only() Range {
	r.t.Helper()
	r.Count(r.t.Context())
	if len(r.Ranges()) != 1 {
		r.t.Fatalf("%d ranges, want one: %+v", len(r.Ranges()), r.Ranges())
	}
	return r.Ranges()[0]
}

func TestRanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	conf := func(rest string) string {
		return fmt.Sprintf(`{"type": "host-local", "dataDir": %q, %s}`, dir, rest)
	}
	type want struct {
		Name                   string
		Set                    int
		Size, Reserved, Usable uint64
	}
	tests := []struct {
		name, ipam, ranges string
		want               []want
	}{
		{"a subnet", conf(`"subnet": "10.0.0.0/24"`), "", []want{{"10.0.0.0/24", 0, 256, 3, 253}}},
		{"the smallest", conf(`"subnet": "10.0.0.0/30"`), "", []want{{"10.0.0.0/30", 0, 4, 3, 1}}},
		{"limits without the gateway", conf(`"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.10", "rangeEnd": "10.0.0.19"`), "",
			[]want{{"10.0.0.10-10.0.0.19", 0, 256, 246, 10}}},
		{"a gateway inside", conf(`"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.10", "rangeEnd": "10.0.0.19", "gateway": "10.0.0.12"`), "",
			[]want{{"10.0.0.10-10.0.0.19", 0, 256, 247, 9}}},
		{"limits that are the subnet's", conf(`"subnet": "10.0.0.0/29", "rangeStart": "10.0.0.1", "rangeEnd": "10.0.0.6"`), "",
			[]want{{"10.0.0.0/29", 0, 8, 3, 5}}},
		{"a set of two, and IPv6", conf(`"ranges": [[{"subnet": "10.0.0.0/29"}, {"subnet": "10.1.0.0/29"}], [{"subnet": "fd00::/64"}]]`), "",
			[]want{{"10.0.0.0/29", 0, 8, 3, 5}, {"10.1.0.0/29", 0, 8, 3, 5}, {"fd00::/64", 1, Many, 0, Many}}},
		{"all of IPv6", conf(`"subnet": "::/0"`), "", []want{{"::/0", 0, Many, 0, Many}}},
		{"limits in IPv6", conf(`"subnet": "fd00::/64", "rangeStart": "fd00::10", "rangeEnd": "fd00::1f"`), "",
			[]want{{"fd00::10-fd00::1f", 0, Many, Many - 16, 16}}},
		{"the pod CIDRs", conf(`"routes": []`), `[[{"subnet": "10.9.0.0/25"}], [{"subnet": "fd09::/120"}]]`,
			[]want{{"10.9.0.0/25", 0, 128, 3, 125}, {"fd09::/120", 1, 256, 2, 254}}},
		{"another IPAM", `{"type": "dhcp"}`, "", nil},
		{"no subnet", `{"type": "host-local", "subnet": "10.0.0.0"}`, "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := attachment("net", tt.ipam)
			if tt.ranges != "" {
				a.CapabilityArgs = map[string]json.RawMessage{"ipRanges": json.RawMessage(tt.ranges)}
			}
			r := newRig(t, a)
			r.Count(t.Context())
			var got []want
			for _, found := range r.Ranges() {
				got = append(got, want{found.Range, found.Set, found.Size, found.Reserved, found.Usable()})
				if found.Free != found.Usable() || !found.Selected || found.Dir != filepath.Join(dir, "net") {
					t.Errorf("%+v", found)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestFlannel takes the ranges from flanneld's file, also when that changes.
func TestFlannel(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	env := filepath.Join(dir, "subnet.env")
	write := func(subnet string) {
		t.Helper()
		text := "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=" + subnet + "\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
		if err := os.WriteFile(env, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := newRig(t, &cni.Attachment{Network: "cbr0", ConfList: fmt.Appendf(nil,
		`{"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "flannel", "subnetFile": %q, "ipam": {"dataDir": %q}}]}`, env, dir)})
	r.Count(t.Context())
	if len(r.Ranges()) != 0 {
		t.Errorf("without flanneld's file there are the ranges %+v", r.Ranges())
	}
	for _, subnet := range []string{"10.244.3.1/24", "10.244.7.1/25"} {
		write(subnet)
		got := r.only()
		if want := strings.Replace(subnet, ".1/", ".0/", 1); got.Range != want || got.Dir != filepath.Join(dir, "cbr0") {
			t.Errorf("%s: %+v", subnet, got)
		}
	}
}

// TestCount fills a network of five addresses, and empties it.
func TestCount(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := newRig(t, attachment("small", fmt.Sprintf(`{"type": "host-local", "dataDir": %q, "subnet": "10.0.0.0/29"}`, dir)))
	files := filepath.Join(dir, "small")
	check := func(used, free, leaked uint64, notice string, exhausted bool) {
		t.Helper()
		got := r.only()
		want := Range{Network: "small", Range: "10.0.0.0/29", Selected: true, Dir: files, Size: 8, Reserved: 3, Used: used, Free: free, Leaked: leaked}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Range{}, "Leaks"), cmpopts.IgnoreUnexported(Range{})); diff != "" {
			t.Error(diff)
		}
		if network, left, usable, ok := r.Left(); network != "small" || left != free || usable != 5 || !ok {
			t.Errorf("Left says %q, %d, %d, %v", network, left, usable, ok)
		}
		if got := r.Notice(); notice == "" && got != "" || !strings.Contains(got, notice) {
			t.Errorf("Notice says %q, want %q", got, notice)
		}
		if err := r.Exhausted("small"); (err != nil) != exhausted || err != nil && !strings.HasPrefix(err.Error(), "no addresses: ") {
			t.Errorf("Exhausted says %v, want %v", err, exhausted)
		}
		if err := r.Exhausted("other"); err != nil {
			t.Errorf("another network: %v", err)
		}
	}
	check(0, 5, 0, "", false)
	for i, id := range []string{"a", "b"} {
		r.hold(files, fmt.Sprintf("10.0.0.%d", 2+i), id, 0)
		r.attachments = append(r.attachments, &cni.Attachment{Network: "gone", ContainerID: id, ConfList: []byte(`{}`)})
	}
	// Files that are no addresses of the range do not count.
	r.hold(files, "last_reserved_ip.0", "x", time.Hour)
	r.hold(files, "lock", "", time.Hour)
	r.hold(files, "10.0.0.1", "gateway", time.Hour)
	r.hold(files, "192.0.2.1", "elsewhere", 0)
	check(2, 3, 0, "", false)
	r.hold(files, "10.0.0.4", "fresh", time.Minute)        // its ADD may be under way
	r.hold(files, "10.0.0.5", "of the runtime", time.Hour) // the journal does not know it
	r.sandboxes["of the runtime"] = true
	check(4, 1, 0, `network "small" has 1 of 5 addresses left in 10.0.0.0/29`, false)
	r.hold(files, "10.0.0.6", "gone\x1b[31m", time.Hour)
	check(4, 0, 1, `no addresses: network "small" has given out all 5 of 10.0.0.0/29, 1 of them leaked`, true)
	if diff := cmp.Diff(1, len(r.Ranges()[0].Leaks)); diff != "" || r.Ranges()[0].Leaks[0].File != filepath.Join(files, "10.0.0.6") {
		t.Errorf("%+v", r.Ranges()[0].Leaks)
	}
	r.runtimeErr = errors.New("down")
	check(4, 0, 1, "no addresses", true) // as it said before
	for _, name := range []string{"10.0.0.6", "10.0.0.5", "10.0.0.4"} {
		if err := os.Remove(filepath.Join(files, name)); err != nil {
			t.Fatal(err)
		}
	}
	check(2, 3, 0, "", false)
	for text, want := range map[string]int{"addresses run out": 1, "new pods get no address": 1, "enough addresses again": 1} {
		if got := strings.Count(r.log.String(), text); got != want {
			t.Errorf("the log says %q %d times, want %d:\n%s", text, got, want, r.log.String())
		}
	}
}

// TestRangesOfPodsThatRun: the ranges of earlier networks are shown, and say nothing of
// new pods. An address of two ranges counts in both.
func TestRangesOfPodsThatRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ipam := func(rest string) string { return fmt.Sprintf(`{"type": "host-local", "dataDir": %q, %s}`, dir, rest) }
	r := newRig(t, attachment("net", ipam(`"subnet": "10.0.0.0/24"`)))
	old := attachment("net", ipam(`"subnet": "10.0.0.0/30"`))
	old.ContainerID = "a"
	again := attachment("net", ipam(`"subnet": "10.0.0.0/24", "routes": []`))
	again.ContainerID = "b"
	other := attachment("other", ipam(`"subnet": "10.0.0.0/24"`)) // the same addresses, handed out once more
	other.ContainerID = "c"
	r.attachments = []*cni.Attachment{old, again, old, other}
	r.hold(filepath.Join(dir, "other"), "10.0.0.2", "c", 0)
	r.hold(filepath.Join(dir, "other"), "10.0.0.3", "c", 0)
	r.hold(filepath.Join(dir, "net"), "10.0.0.2", "a", 0)
	r.Count(t.Context())
	type seen struct {
		Network    string
		Range      string
		Selected   bool
		Used, Free uint64
	}
	var got []seen
	for _, found := range r.Ranges() {
		got = append(got, seen{found.Network, found.Range, found.Selected, found.Used, found.Free})
	}
	if diff := cmp.Diff([]seen{{"net", "10.0.0.0/24", true, 1, 252}, {"net", "10.0.0.0/30", false, 1, 0}, {"other", "10.0.0.0/24", false, 2, 251}}, got); diff != "" {
		t.Error(diff)
	}
	if r.Notice() != "" || r.Exhausted("net") != nil {
		t.Errorf("Notice %q, Exhausted %v of ranges that new pods do not get", r.Notice(), r.Exhausted("net"))
	}
	r.next = nil
	r.Count(t.Context())
	if len(r.Ranges()) != 3 || r.Ranges()[0].Selected {
		t.Errorf("without a selected network: %+v", r.Ranges())
	}
}

// TestManyFiles: a folder that has not changed is not read again, one that has only
// opens what is new, and the runtime is asked when somebody is unknown.
func TestManyFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := newRig(t, attachment("large", fmt.Sprintf(`{"type": "host-local", "dataDir": %q, "subnet": "10.0.0.0/16"}`, dir)))
	files := filepath.Join(dir, "large")
	const n = 5000
	for i := range n {
		r.hold(files, fmt.Sprintf("10.0.%d.%d", 1+i/250, i%250), "a", time.Hour)
	}
	r.attachments = []*cni.Attachment{{ContainerID: "a", ConfList: []byte(`{}`)}}
	past := time.Now().Add(-time.Minute)
	touch := func() {
		t.Helper()
		if err := os.Chtimes(files, past, past); err != nil {
			t.Fatal(err)
		}
	}
	touch()
	if got := r.only(); got.Used != n || r.asked != 0 {
		t.Errorf("%d used, the runtime was asked %d times", got.Used, r.asked)
	}
	if r.changed() {
		t.Error("a folder that has not changed is to be read again")
	}
	// What is in a file that has not changed is not read again.
	path := filepath.Join(files, "10.0.1.7")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(path, []byte("b"), 0o600), os.Chtimes(path, info.ModTime(), info.ModTime())); err != nil {
		t.Fatal(err)
	}
	r.hold(files, "10.0.200.1", "b", time.Hour)
	if !r.changed() {
		t.Error("a file more, and the folder is not to be read again")
	}
	if got := r.only(); got.Used != n || got.Leaked != 1 || r.asked != 1 {
		t.Errorf("%d used, %d leaked, the runtime was asked %d times", got.Used, got.Leaked, r.asked)
	}
}

// TestWhatIsInTheFolder: nothing that somebody puts there blocks the count.
func TestWhatIsInTheFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := newRig(t, attachment("odd", fmt.Sprintf(`{"type": "host-local", "dataDir": %q, "subnet": "10.0.0.0/24"}`, dir)))
	files := filepath.Join(dir, "odd")
	if err := errors.Join(
		os.MkdirAll(filepath.Join(files, "10.0.0.2"), 0o755),
		unix.Mkfifo(filepath.Join(files, "10.0.0.3"), 0o600),
		os.Symlink("/dev/zero", filepath.Join(files, "10.0.0.4")),
		os.WriteFile(filepath.Join(files, "10.0.0.5"), nil, 0o600),
		os.WriteFile(filepath.Join(files, "10.0.0.6"), []byte(strings.Repeat("x", 1<<20)), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	got := r.only()
	if got.Used != 5 || got.Leaked != 0 || got.Problem != "" {
		t.Errorf("%+v", got)
	}
	if err := os.RemoveAll(files); err != nil {
		t.Fatal(err)
	}
	if got := r.only(); got.Used != 0 {
		t.Errorf("%+v", got)
	}
	if err := os.WriteFile(files, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := r.only(); got.Problem == "" {
		t.Errorf("a folder that is none: %+v", got)
	}
}

// TestRun counts by itself when a file comes and when it goes.
func TestRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := newRig(t, attachment("net", fmt.Sprintf(`{"type": "host-local", "dataDir": %q, "subnet": "10.0.0.0/24"}`, dir)))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	defer func() { cancel(); <-done }()
	await := func(used uint64) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			if all := r.Ranges(); len(all) == 1 && all[0].Used == used {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%+v, want %d used", r.Ranges(), used)
			}
		}
	}
	await(0)
	r.hold(filepath.Join(dir, "net"), "10.0.0.2", "a", 0)
	await(1)
	if err := os.Remove(filepath.Join(dir, "net", "10.0.0.2")); err != nil {
		t.Fatal(err)
	}
	await(0)
}

// BenchmarkCount counts a folder of 65,000 addresses: the first time, when one file is
// new, and when nothing is.
func BenchmarkCount(b *testing.B) {
	dir := b.TempDir()
	files := filepath.Join(dir, "large")
	if err := os.Mkdir(files, 0o755); err != nil {
		b.Fatal(err)
	}
	for i := range 65000 {
		if err := os.WriteFile(fmt.Sprintf("%s/10.0.%d.%d", files, i/256, i%256), []byte("a\r\neth0"), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	next := attachment("large", fmt.Sprintf(`{"type": "host-local", "dataDir": %q, "subnet": "10.0.0.0/16"}`, dir))
	counter := func() *Counter {
		return New(Config{
			Log: slog.New(slog.DiscardHandler), Next: func() (*cni.Attachment, error) { return next, nil },
			Attachments: func() ([]*cni.Attachment, error) {
				return []*cni.Attachment{{ContainerID: "a", ConfList: []byte(`{}`)}}, nil
			},
			Sandboxes: func(context.Context) (map[string]bool, error) { return map[string]bool{}, nil },
		})
	}
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			counter().Count(b.Context())
		}
	})
	c := counter()
	c.Count(b.Context())
	for name, at := range map[string]func() time.Time{
		"changed":   time.Now,
		"unchanged": func() time.Time { return time.Unix(1, 0) },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if now := at(); os.Chtimes(files, now, now) != nil {
					b.Fatal("the folder's time cannot be set")
				}
				c.Count(b.Context())
			}
			if len(c.Ranges()) != 1 || c.Ranges()[0].Used < 64000 {
				b.Fatalf("%+v", c.Ranges())
			}
		})
	}
}
