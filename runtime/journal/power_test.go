package journal

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// disk is what of a journal is certainly on the disk: the files as of their last sync.
type disk struct {
	t           *testing.T
	dir         string
	j           *Journal
	db, log     []byte
	transaction uint64
}

func newDisk(t *testing.T) *disk {
	t.Helper()
	d := &disk{t: t, dir: t.TempDir()}
	d.j = open(t, d.dir)
	d.j.log.onSynced = func() { d.log = d.read(logName) }
	d.lookAtFile()
	return d
}

func (d *disk) read(name string) []byte {
	d.t.Helper()
	data, err := os.ReadFile(filepath.Join(d.dir, name))
	if err != nil {
		d.t.Fatal(err)
	}
	return data
}

// lookAtFile notes the bbolt file if it has been written: bbolt syncs what it writes.
func (d *disk) lookAtFile() {
	d.t.Helper()
	if now := transaction(d.j.db); now != d.transaction {
		d.db, d.transaction = d.read(fileName), now
	}
}

// sector is what a disk writes as a whole.
const sector = 512

// lose is the journal after a loss of power: the files as of their last sync, and of
// what was written to the log since any sectors.
func (d *disk) lose(random *rand.Rand) *Journal {
	d.t.Helper()
	now := d.read(logName)
	log := make([]byte, len(now))
	copy(log, d.log)
	chance := random.IntN(101)
	for at := 0; at < len(now); at += sector {
		if end := min(at+sector, len(now)); random.IntN(100) < chance {
			copy(log[at:end], now[at:end])
		}
	}
	if random.IntN(3) == 0 {
		log = log[:max(len(d.log), random.IntN(len(log)+1))]
	}
	dir := d.t.TempDir()
	for name, data := range map[string][]byte{fileName: d.db, logName: log} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
	return open(d.t, dir)
}

// TestLossOfPower changes records at random and loses the power at random. What
// PutDurable stored must be there as it was stored then, or as it was later.
func TestLossOfPower(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			d := newDisk(t)
			stored := make(map[string]int)  // id -> number of the last change that is durable
			touched := make(map[string]int) // id -> number of the last change
			deleted := make(map[string]bool)
			for step := range 400 {
				id := fmt.Sprintf("id%02d", random.IntN(30))
				r := record(id)
				r.Tries = step
				var err error
				switch random.IntN(3) {
				case 0:
					err = d.j.PutDurable(r)
					// A sync takes along all that came before.
					stored[id], deleted[id] = step, false
				case 1:
					err = d.j.Put(r)
				default:
					err = d.j.Delete(r.Key())
					deleted[id] = true
				}
				if err != nil {
					t.Fatal(err)
				}
				touched[id] = step
				if random.IntN(60) == 0 {
					d.j.mu.Lock()
					err = d.j.checkpoint()
					d.j.mu.Unlock()
					if err != nil {
						t.Fatal(err)
					}
				}
				d.lookAtFile()
				if random.IntN(10) == 0 {
					compareAfterLoss(t, d.lose(random), stored, touched, deleted)
				}
			}
		})
	}
}

func compareAfterLoss(t *testing.T, j *Journal, stored, touched map[string]int, deleted map[string]bool) {
	t.Helper()
	for id, at := range stored {
		r, err := j.Get(Key{id, "eth0"})
		switch {
		case err != nil:
			t.Fatal(err)
		case r == nil && !deleted[id]:
			t.Fatalf("record %s was durable and is gone", id)
		case r != nil && (r.Tries < at || r.Tries > touched[id]):
			t.Fatalf("record %s is of change %d, want one from %d to %d", id, r.Tries, at, touched[id])
		}
	}
	if err := j.Put(record("afterwards")); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestKilled reads the files as they are while the journal is open: what was written
// is the kernel's, also what was never synced.
func TestKilled(t *testing.T) {
	d := newDisk(t)
	for i := range 20 {
		if err := d.j.Put(record(fmt.Sprintf("id%02d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.j.Delete(Key{"id07", "eth0"}); err != nil {
		t.Fatal(err)
	}
	if d.log != nil {
		t.Error("a change that need not be durable has waited for the disk")
	}
	dir := t.TempDir()
	for _, name := range []string{fileName, logName} {
		if err := os.WriteFile(filepath.Join(dir, name), d.read(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := open(t, dir).All()
	if err != nil || len(all) != 19 {
		t.Errorf("%d records after a kill (%v), want 19", len(all), err)
	}
}

// An older crinetd that has worked with the file in between leaves a log that belongs
// to another state of it.
func TestLogOfAnotherStateIsLeftOut(t *testing.T) {
	d := newDisk(t)
	if err := d.j.PutDurable(record("old")); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, fileName), d.db, 0o600); err != nil {
		t.Fatal(err)
	}
	between, _, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := between.Put(record("new")); err != nil {
		t.Fatal(err)
	}
	if err := between.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, logName), d.log, 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := open(t, dir).All()
	if err != nil || len(all) != 1 || all[0].Attachment.ContainerID != "new" {
		t.Errorf("%v, %v; want the record of the file alone", all, err)
	}
}

// TestLogGoesToTheFile writes more than the log may hold.
func TestLogGoesToTheFile(t *testing.T) {
	j := open(t, t.TempDir())
	before := transaction(j.db)
	r := record("big")
	r.LastError = string(bytes.Repeat([]byte("x"), 1<<20))
	for range 2 * maxLog >> 20 {
		if err := j.Put(r); err != nil {
			t.Fatal(err)
		}
	}
	if j.log.size >= maxLog || transaction(j.db) == before {
		t.Errorf("the log has %d bytes after transaction %d", j.log.size, transaction(j.db))
	}
	if got, err := j.Get(r.Key()); err != nil || got.LastError != r.LastError {
		t.Errorf("the record is not as it was: %v", err)
	}
}
