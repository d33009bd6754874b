// Package journal records what crinetd did for which sandbox. From the records
// crinetd can undo it after any crash and any change of the configuration.
//
// # Files
//
// One bbolt file holds all records as of the last checkpoint, and a log beside it
// what has changed since. A change is appended to the log by one write, and thus
// survives the end of crinetd, kill -9 included: what is written is the kernel's.
// [Journal.PutDurable] waits until it is on the disk as well, and so survives a loss
// of power; callers that come together share one sync. When the log has grown, and at
// Open and Close, its changes go to the bbolt file in one transaction, and the log
// begins anew. The log names the transaction that it follows, so that it is never
// applied to another state of the file.
//
// After a loss of power the journal is that of the last sync or later: the log ends
// where its checksums do.
//
// A Journal may be used from many goroutines; a lock on the file keeps a second
// process out. Reads are answered from memory.
package journal

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
)

// The journal's names in the state dir.
const (
	fileName = "journal.db"
	logName  = fileName + ".log"
)

// maxLog is the size in bytes from which on the log's changes go to the bbolt file:
// some hundred pods.
const maxLog = 4 << 20

// ErrInUse is returned by Open when another process has the journal open.
var ErrInUse = errors.New("another crinetd has it open")

// ErrNewer is returned by Open when a record was written by a crinetd that is
// newer than this one. The file is left as it is.
var ErrNewer = errors.New("written by a newer crinetd: run that one, or drain the node first")

// errClosed is returned for changes after Close.
var errClosed = errors.New("journal: closed")

// Journal is an open journal.
type Journal struct {
	db     *bbolt.DB
	slog   *slog.Logger
	frozen error // why no change can be written; usually nil
	syncer syncer
	// waiting are the callers that wait for a sync.
	waiting sync.WaitGroup

	mu     sync.RWMutex // guards what follows
	log    *logFile
	now    contents
	dirty  map[address]struct{} // what has changed since the checkpoint
	closed bool
}

// Open opens the journal in dir and makes both if they are missing. If the file is
// damaged, Open logs an error, renames the file to moved and begins an empty
// journal; the caller recovers what it can from elsewhere. Otherwise moved is
// empty. On a file system that is mounted read-only the records can be read, and
// every change fails.
func Open(dir string, log *slog.Logger) (j *Journal, moved string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", fmt.Errorf("state dir: %w", err)
	}
	path := filepath.Join(dir, fileName)
	j, err = openBoth(path, log)
	if err != nil && damaged(err) {
		suffix := ".damaged-" + time.Now().UTC().Format("20060102T150405.000")
		moved = path + suffix
		log.Error("the journal is damaged: it is moved aside and a new one begun; "+
			"crinetd recovers the networks of its pods from the cache of CNI results",
			"file", path, "movedTo", moved, "err", err)
		if err := moveAside(dir, suffix); err != nil {
			return nil, "", fmt.Errorf("journal %s is damaged and cannot be moved aside: %w", path, err)
		}
		j, err = openBoth(path, log)
	}
	if err != nil {
		return nil, "", fmt.Errorf("journal %s: %w", path, err)
	}
	if j.db.IsReadOnly() {
		j.frozen = fmt.Errorf("journal %s: the file system was read-only when crinetd started: %w; repair it and restart crinetd", path, syscall.EROFS)
		log.Error("no pod can be networked, and no removal be recorded", "err", j.frozen)
	}
	return j, moved, nil
}

// moveAside renames the bbolt file, and the log that belongs to it.
func moveAside(dir, suffix string) error {
	file, log := filepath.Join(dir, fileName), filepath.Join(dir, logName)
	if err := os.Rename(file, file+suffix); err != nil {
		return err
	}
	err := os.Rename(log, log+suffix)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// openBoth opens both files and brings them together.
func openBoth(path string, log *slog.Logger) (*Journal, error) {
	db, now, err := openFile(path)
	if err != nil {
		return nil, err
	}
	j := &Journal{db: db, slog: log, now: now, dirty: make(map[address]struct{})}
	j.syncer.requests = make(chan chan<- error, syncQueue)
	j.syncer.done = make(chan struct{})
	var changes []change
	j.log, changes, err = openLog(filepath.Join(filepath.Dir(path), logName), db.IsReadOnly(), transaction(db))
	if err == nil {
		err = j.replay(changes)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	go j.syncer.run(j.syncLog)
	return j, nil
}

// replay applies the log's changes, and begins a new log.
func (j *Journal) replay(changes []change) error {
	for _, c := range changes {
		if c.bucket == recordsIn && c.value != nil {
			if err := check([]byte(c.key), c.value); err != nil {
				return err
			}
		}
		j.now.apply(c)
		j.dirty[c.address] = struct{}{}
	}
	if len(changes) == 0 || j.db.IsReadOnly() {
		return nil
	}
	if err := j.checkpoint(); err != nil {
		j.slog.Error("the journal's log grows for now", "err", err)
	}
	return nil
}

// Put stores a record so that it survives the end of crinetd, however that comes.
// After an error it may be stored or not.
func (j *Journal) Put(r *Record) error { return j.put(r, false) }

// PutDurable stores a record as Put does, and so that it survives a loss of power.
func (j *Journal) PutDurable(r *Record) error { return j.put(r, true) }

func (j *Journal) put(r *Record, durable bool) error {
	data, err := encode(r)
	if err != nil {
		return err
	}
	return j.change(change{address{recordsIn, r.Key().String()}, data}, durable)
}

// Delete removes a record. It returns nil if there is none. It survives what Put
// survives.
func (j *Journal) Delete(key Key) error {
	return j.change(change{address{recordsIn, key.String()}, nil}, false)
}

// Get returns a record, or nil if there is none.
func (j *Journal) Get(key Key) (*Record, error) {
	j.mu.RLock()
	data := j.now.records[key.String()]
	j.mu.RUnlock()
	if data == nil {
		return nil, nil
	}
	return decode([]byte(key.String()), data)
}

// Sandbox returns the records of the sandboxes whose id begins with prefix, ordered
// by id. Runtimes accept a unique prefix in place of an id.
func (j *Journal) Sandbox(prefix string) (records []*Record, err error) {
	j.mu.RLock()
	found := j.now.withPrefix(prefix)
	j.mu.RUnlock()
	for _, c := range found {
		r, err := decode([]byte(c.key), c.value)
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, nil
}

// All returns all records, in the order of their sandboxes' ids.
func (j *Journal) All() ([]*Record, error) { return j.Sandbox("") }

// PutMeta stores a value that does not belong to a sandbox, as PutDurable does.
func (j *Journal) PutMeta(name string, value []byte) error {
	return j.change(change{address{metaIn, name}, bytes.Clone(value)}, true)
}

// Meta returns a value that PutMeta stored, or nil.
func (j *Journal) Meta(name string) (value []byte, err error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return bytes.Clone(j.now.meta[name]), nil
}

// Close writes all changes to the bbolt file and closes both files. Later changes
// fail.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	j.mu.Unlock()
	j.waiting.Wait()
	close(j.syncer.requests)
	<-j.syncer.done
	j.mu.Lock()
	defer j.mu.Unlock()
	var err error
	if len(j.dirty) > 0 && j.frozen == nil {
		err = j.checkpoint()
	}
	return errors.Join(err, j.log.close(), j.db.Close())
}

// change writes a change, and waits for the disk if it is to be durable.
func (j *Journal) change(c change, durable bool) error {
	err := j.write(c, durable)
	if err == nil && durable {
		err = <-j.syncer.request()
		j.waiting.Done()
	}
	if err != nil && !errors.Is(err, errClosed) && j.frozen == nil {
		err = fmt.Errorf("journal %s: write: %w", j.db.Path(), err)
	}
	return err
}

// write writes a change. With durable the caller must ask for a sync, and say when it
// is over.
func (j *Journal) write(c change, durable bool) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closed:
		return errClosed
	case j.frozen != nil:
		return j.frozen
	}
	appended := j.log.append(c)
	if appended != nil && c.value != nil {
		return appended
	}
	j.now.apply(c)
	j.dirty[c.address] = struct{}{}
	if appended != nil || j.log.size >= maxLog {
		// Where the log has no room, a removal may fit into the bbolt file.
		if err := j.checkpoint(); err != nil && appended != nil {
			return errors.Join(appended, err)
		}
	}
	if durable {
		j.waiting.Add(1)
	}
	return nil
}

// checkpoint writes what has changed to the bbolt file and begins a new log. The
// caller holds mu.
func (j *Journal) checkpoint() error {
	err := j.db.Update(func(tx *bbolt.Tx) error {
		for at := range j.dirty {
			bucket := tx.Bucket(bucketNames[at.bucket])
			var err error
			if value := j.now.get(at); value != nil {
				err = bucket.Put([]byte(at.key), value)
			} else {
				err = bucket.Delete([]byte(at.key))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	clear(j.dirty)
	return j.log.reset(transaction(j.db))
}

// syncLog brings the log to the disk. If that fails the kernel may have dropped what
// it could not write, so that the bbolt file has to have it.
func (j *Journal) syncLog() error {
	err := j.log.sync()
	if err == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return errors.Join(err, j.checkpoint())
}

// contents is what the journal holds, encoded.
type contents struct {
	records map[string][]byte
	keys    []string // of records, sorted
	meta    map[string][]byte
}

func (c *contents) get(at address) []byte {
	if at.bucket == metaIn {
		return c.meta[at.key]
	}
	return c.records[at.key]
}

func (c *contents) apply(change change) {
	if change.bucket == metaIn {
		c.meta[change.key] = change.value
		return
	}
	i, found := slices.BinarySearch(c.keys, change.key)
	switch {
	case change.value == nil && found:
		delete(c.records, change.key)
		c.keys = slices.Delete(c.keys, i, i+1)
	case change.value != nil:
		c.records[change.key] = change.value
		if !found {
			c.keys = slices.Insert(c.keys, i, change.key)
		}
	}
}

// withPrefix returns the records whose keys begin so, in their order.
func (c *contents) withPrefix(prefix string) (found []change) {
	first, _ := slices.BinarySearch(c.keys, prefix)
	for _, key := range c.keys[first:] {
		if !strings.HasPrefix(key, prefix) {
			break
		}
		found = append(found, change{address{recordsIn, key}, c.records[key]})
	}
	return found
}
