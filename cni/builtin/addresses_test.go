package builtin_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/cni/builtin"
)

// What host-local had begun to reserve when it was killed is freed: files of addresses
// that are empty, and not those that somebody made before. It waits for the store's lock.
func TestFreeBegun(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	dir := filepath.Join(data, "net")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "net", "type": "ptp",
		"ipam": map[string]any{"type": "host-local", "dataDir": data, "subnet": "10.1.0.0/24"}})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for name, file := range map[string]struct {
		text string
		age  time.Duration
	}{
		"10.1.0.2":           {text: "one\r\neth0", age: 0},
		"10.1.0.3":           {age: 0},
		"10.1.0.4":           {age: time.Hour},
		"fd00::3":            {age: time.Second},
		"last_reserved_ip.0": {age: 0},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(file.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now, now.Add(-file.age)); err != nil {
			t.Fatal(err)
		}
	}
	lockPath := filepath.Join(dir, "lock")
	held, err := os.Create(lockPath)
	if err != nil {
		t.Fatal(err)
	}
	lock(t, held)
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := builtin.FreeBegun(short, config, now.Add(-time.Minute)); err == nil || !strings.Contains(err.Error(), lockPath) {
		t.Errorf("while the store is locked: %v", err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := builtin.FreeBegun(t.Context(), config, now.Add(-time.Minute)); err != nil {
			t.Error(err)
		}
	}
	var left []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		left = append(left, entry.Name())
	}
	if diff := cmp.Diff([]string{"10.1.0.2", "10.1.0.4", "last_reserved_ip.0", "lock"}, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}
