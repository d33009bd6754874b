package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.etcd.io/bbolt"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/hostport"
)

func open(t *testing.T, dir string) *Journal {
	t.Helper()
	j, moved, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if moved != "" {
		t.Fatalf("the journal was taken for damaged and moved to %s", moved)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j
}

func record(id string) *Record {
	return &Record{
		State:   Attached,
		Plugin:  "cni",
		Pod:     Pod{Namespace: "ns", Name: "pod-" + id, UID: "uid-" + id},
		BootID:  "boot",
		Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		Attachment: cni.Attachment{
			ContainerID: id, IfName: "eth0", NetNS: "/netns/" + id, Network: "mynet",
			Args:           [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", "pod-" + id}},
			ConfList:       json.RawMessage(`{"cniVersion":"1.0.0","name":"mynet","plugins":[{"type":"bridge"}]}`),
			CapabilityArgs: map[string]json.RawMessage{"mac": json.RawMessage(`"02:00:00:00:00:01"`)},
			Result:         json.RawMessage(`{"cniVersion":"1.0.0"}`),
		},
		HostPorts: []hostport.Mapping{
			{Protocol: hostport.TCP, HostPort: 80, ContainerPort: 8080},
			{Protocol: hostport.UDP, HostIP: netip.MustParseAddr("2001:db8::1"), HostPort: 53, ContainerPort: 53},
		},
		Steps: []StepTime{{Step: "plugin", Start: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Duration: time.Second}},
	}
}

func TestRecordsSurviveReopening(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	want := record("a1")
	for _, r := range []*Record{want, record("a2")} {
		if err := j.Put(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(j.Delete(Key{"a2", "eth0"}), j.Delete(Key{"never", "eth0"}), j.PutMeta("podCIDR", []byte("10.1.0.0/16"))); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}

	j = open(t, dir)
	got, err := j.All()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]*Record{want}, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("records after reopening (-want +got):\n%s", diff)
	}
	if meta, err := j.Meta("podCIDR"); err != nil || string(meta) != "10.1.0.0/16" {
		t.Errorf("Meta = %q, %v", meta, err)
	}
	if gone, err := j.Get(Key{"a2", "eth0"}); gone != nil || err != nil {
		t.Errorf("Get of a deleted record = %v, %v", gone, err)
	}
}

func TestSandboxFindsByPrefix(t *testing.T) {
	j := open(t, t.TempDir())
	for _, id := range []string{"ab1", "ab2", "b"} {
		if err := j.Put(record(id)); err != nil {
			t.Fatal(err)
		}
	}
	for prefix, want := range map[string]int{"ab1": 1, "ab": 2, "b": 1, "": 3, "c": 0, "ab11": 0} {
		if got, err := j.Sandbox(prefix); err != nil || len(got) != want {
			t.Errorf("Sandbox(%q) = %d records, %v; want %d", prefix, len(got), err, want)
		}
	}
}

// Callers that come together share a sync.
func TestConcurrentChangesShareSyncs(t *testing.T) {
	j := open(t, t.TempDir())
	var syncs atomic.Int64
	held := make(chan struct{})
	j.log.onSynced = func() { syncs.Add(1); <-held }
	const n = 200
	var wg sync.WaitGroup
	errs := make(chan error, n)
	for i := range n {
		wg.Go(func() { errs <- j.PutDurable(record(fmt.Sprintf("id%03d", i))) })
	}
	for { // the first sync lasts until all have written
		all, err := j.All()
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == n {
			break
		}
		runtime.Gosched()
	}
	close(held)
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := syncs.Load(); got > 3 {
		t.Errorf("%d changes at once took %d syncs", n, got)
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	if _, _, err := Open(dir, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrInUse) {
		t.Errorf("second Open = %v, want ErrInUse", err)
	}
}

func TestDamagedFileIsMovedAside(t *testing.T) {
	full := func(t *testing.T) []byte {
		dir := t.TempDir()
		j := open(t, dir)
		for i := range 100 {
			if err := j.Put(record(fmt.Sprintf("id%03d", i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(dir, fileName))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for name, damage := range map[string]func([]byte) []byte{
		"text":        func([]byte) []byte { return bytes.Repeat([]byte("not a journal\n"), 2000) },
		"short":       func(b []byte) []byte { return b[:100] },
		"half":        func(b []byte) []byte { return b[:len(b)/2] },
		"meta only":   func(b []byte) []byte { return b[:2*os.Getpagesize()] },
		"meta zeroed": func(b []byte) []byte { clear(b[:2*os.Getpagesize()]); return b },
		"data zeroed": func(b []byte) []byte { clear(b[2*os.Getpagesize():]); return b },
		"data noise": func(b []byte) []byte {
			copy(b[3*os.Getpagesize():], bytes.Repeat([]byte{0xff, 0x5a}, 40*os.Getpagesize()))
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			data := damage(full(t))
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, fileName), data, 0o600); err != nil {
				t.Fatal(err)
			}
			var log strings.Builder
			j, moved, err := Open(dir, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			kept, err := os.ReadFile(moved)
			if err != nil || !bytes.Equal(kept, data) {
				t.Errorf("the damaged file was not kept as it was: %v", err)
			}
			if !strings.Contains(log.String(), moved) {
				t.Errorf("the log does not say where the file went: %s", log.String())
			}
			if err := j.Put(record("new")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNewerRecordIsRefusedAndKept(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir)
	err := j.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketNames[recordsIn]).Put([]byte("x/eth0"), fmt.Appendf(nil, `{"version":%d}`, recordVersion+1))
	})
	if err := errors.Join(err, j.Close()); err != nil {
		t.Fatal(err)
	}
	if _, moved, err := Open(dir, slog.New(slog.DiscardHandler)); !errors.Is(err, ErrNewer) || moved != "" {
		t.Errorf("Open = %q, %v; want ErrNewer and the file left alone", moved, err)
	}
}

func TestUnwritableDirIsAnError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, moved, err := Open(filepath.Join(file, "state"), slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), file) || moved != "" {
		t.Errorf("Open under a file = %q, %v; want an error that names it", moved, err)
	}
}

func TestChangesAfterCloseAreRefused(t *testing.T) {
	j := open(t, t.TempDir())
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Put(record("a")); !errors.Is(err, errClosed) {
		t.Errorf("Put after Close = %v, want errClosed", err)
	}
	if err := j.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
}

func BenchmarkPut(b *testing.B) {
	j, _, err := Open(b.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer j.Close()
	for b.Loop() {
		if err := j.Put(record("id")); err != nil {
			b.Fatal(err)
		}
	}
}
