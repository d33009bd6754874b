// Package journal records, in one bbolt file, what crinetd did for which sandbox.
// From the records crinetd can undo it after any crash and any change of the
// configuration.
//
// Put and Delete return when the change is on the disk. Changes that arrive while
// a transaction is being written share the next one, so that fifty pods at once do
// not wait for fifty syncs. Reads see what is written. A Journal may be used from
// many goroutines; a lock on the file keeps a second process out.
package journal

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
)

// fileName is the journal's name in the state dir.
const fileName = "journal.db"

// lockTimeout is how long Open waits for another process to let go of the file.
const lockTimeout = 2 * time.Second

// maxBatch bounds the changes that are written in one transaction.
const maxBatch = 256

var (
	recordsBucket = []byte("records")
	metaBucket    = []byte("meta")
)

// ErrInUse is returned by Open when another process has the journal open.
var ErrInUse = errors.New("another crinetd has it open")

// ErrNewer is returned by Open when a record was written by a crinetd that is
// newer than this one. The file is left as it is.
var ErrNewer = errors.New("written by a newer crinetd: run that one, or drain the node first")

// errClosed is returned for changes after Close.
var errClosed = errors.New("journal: closed")

// Journal is an open journal.
type Journal struct {
	db      *bbolt.DB
	frozen  error // why no change can be written; usually nil
	changes chan change
	done    chan struct{} // closed when the writer has ended

	mu     sync.RWMutex // guards the closing of changes
	closed bool
}

// change is one change that waits for its transaction.
type change struct {
	bucket, key, value []byte // a nil value deletes
	done               chan<- error
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
	db, err := openFile(path)
	if err != nil && damaged(err) {
		moved = fmt.Sprintf("%s.damaged-%s", path, time.Now().UTC().Format("20060102T150405.000"))
		log.Error("the journal is damaged: it is moved aside and a new one begun; "+
			"crinetd recovers the networks of its pods from the cache of CNI results",
			"file", path, "movedTo", moved, "err", err)
		if err := os.Rename(path, moved); err != nil {
			return nil, "", fmt.Errorf("journal %s is damaged and cannot be moved aside: %w", path, err)
		}
		db, err = openFile(path)
	}
	if err != nil {
		return nil, "", fmt.Errorf("journal %s: %w", path, err)
	}
	if db.IsReadOnly() {
		err = fmt.Errorf("journal %s: the file system was read-only when crinetd started: %w; repair it and restart crinetd", path, syscall.EROFS)
		log.Error("no pod can be networked, and no removal be recorded", "err", err)
	}
	j = &Journal{
		db:      db,
		frozen:  err,
		changes: make(chan change, maxBatch),
		done:    make(chan struct{}),
	}
	go j.write()
	return j, moved, nil
}

// openFile opens the file and reads every record. bbolt trusts the pages of its
// file, so that damage can cause a panic or a fault in mapped memory; openFile
// returns both as errors.
func openFile(path string) (db *bbolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			db, err = nil, damageError{fmt.Errorf("%v", p)}
		}
	}()
	options := &bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType}
	db, err = bbolt.Open(path, 0o600, options)
	if errors.Is(err, syscall.EROFS) {
		options.ReadOnly = true
		db, err = bbolt.Open(path, 0o600, options)
	}
	if err != nil {
		return nil, openError(err)
	}
	if err := prepare(db); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// openError marks the errors that are about the file's contents. bbolt has many of
// those, so it marks all but the errors of the system.
func openError(err error) error {
	var errno syscall.Errno
	switch {
	case errors.Is(err, bbolterrors.ErrTimeout):
		return ErrInUse
	case errors.As(err, &errno):
		return err
	default:
		return damageError{err}
	}
}

// prepare makes the buckets and checks that every record can be read.
func prepare(db *bbolt.DB) error {
	if !db.IsReadOnly() {
		if err := makeBuckets(db); err != nil {
			return err
		}
	}
	return db.View(func(tx *bbolt.Tx) error {
		if tx.Bucket(recordsBucket) == nil || tx.Bucket(metaBucket) == nil {
			return errors.New("it was never written to") // only a read-only file has no buckets here
		}
		return tx.Bucket(recordsBucket).ForEach(func(key, data []byte) error {
			_, err := decode(key, data)
			if err != nil && !errors.Is(err, ErrNewer) {
				return damageError{err}
			}
			return err
		})
	})
}

func makeBuckets(db *bbolt.DB) error {
	return db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{recordsBucket, metaBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
}

// damageError marks an error as one of the file's contents.
type damageError struct{ error }

func (e damageError) Unwrap() error { return e.error }

func damaged(err error) bool {
	var d damageError
	return errors.As(err, &d)
}

// Put stores a record. When it returns nil, the record is on the disk; after an
// error it may be or not.
func (j *Journal) Put(r *Record) error { return <-j.PutLater(r) }

// PutLater stores a record as Put does, but does not wait. The channel gets the
// outcome. Changes are written in the order of the calls.
func (j *Journal) PutLater(r *Record) <-chan error {
	data, err := encode(r)
	if err != nil {
		done := make(chan error, 1)
		done <- err
		return done
	}
	return j.change(recordsBucket, []byte(r.Key().String()), data)
}

// Delete removes a record. It returns nil if there is none.
func (j *Journal) Delete(key Key) error {
	return <-j.change(recordsBucket, []byte(key.String()), nil)
}

// Get returns a record, or nil if there is none.
func (j *Journal) Get(key Key) (r *Record, err error) {
	err = j.db.View(func(tx *bbolt.Tx) error {
		if data := tx.Bucket(recordsBucket).Get([]byte(key.String())); data != nil {
			r, err = decode([]byte(key.String()), data)
		}
		return err
	})
	return r, err
}

// Sandbox returns the records of the sandboxes whose id begins with prefix, ordered
// by id. Runtimes accept a unique prefix in place of an id.
func (j *Journal) Sandbox(prefix string) (records []*Record, err error) {
	err = j.db.View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket(recordsBucket).Cursor()
		for key, data := cursor.Seek([]byte(prefix)); key != nil && bytes.HasPrefix(key, []byte(prefix)); key, data = cursor.Next() {
			r, err := decode(key, data)
			if err != nil {
				return err
			}
			records = append(records, r)
		}
		return nil
	})
	return records, err
}

// All returns all records, in the order of their sandboxes' ids.
func (j *Journal) All() ([]*Record, error) { return j.Sandbox("") }

// PutMeta stores a value that does not belong to a sandbox.
func (j *Journal) PutMeta(name string, value []byte) error {
	return <-j.change(metaBucket, []byte(name), bytes.Clone(value))
}

// Meta returns a value that PutMeta stored, or nil.
func (j *Journal) Meta(name string) (value []byte, err error) {
	err = j.db.View(func(tx *bbolt.Tx) error {
		value = bytes.Clone(tx.Bucket(metaBucket).Get([]byte(name)))
		return nil
	})
	return value, err
}

// Close writes the changes that wait and closes the file. Later changes fail.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	close(j.changes)
	j.mu.Unlock()
	<-j.done
	return j.db.Close()
}

// change hands a change to the writer. The channel gets the outcome.
func (j *Journal) change(bucket, key, value []byte) <-chan error {
	done := make(chan error, 1)
	j.mu.RLock()
	defer j.mu.RUnlock()
	switch {
	case j.closed:
		done <- errClosed
		return done
	case j.frozen != nil:
		done <- j.frozen
		return done
	}
	j.changes <- change{bucket: bucket, key: key, value: value, done: done}
	return done
}

// write is the writer. It takes a change and all that have come meanwhile, and
// writes them in one transaction, until the channel is closed and empty.
func (j *Journal) write() {
	defer close(j.done)
	for first := range j.changes {
		j.commit(j.gather(first))
	}
}

// gather returns a change and those that wait behind it.
func (j *Journal) gather(first change) []change {
	batch := []change{first}
	for len(batch) < maxBatch {
		select {
		case c, ok := <-j.changes:
			if !ok {
				return batch
			}
			batch = append(batch, c)
		default:
			return batch
		}
	}
	return batch
}

// commit writes a batch and answers each of its changes.
func (j *Journal) commit(batch []change) {
	err := j.db.Update(func(tx *bbolt.Tx) error {
		for _, c := range batch {
			bucket := tx.Bucket(c.bucket)
			var err error
			if c.value == nil {
				err = bucket.Delete(c.key)
			} else {
				err = bucket.Put(c.key, c.value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("journal %s: write: %w", j.db.Path(), err)
	}
	for _, c := range batch {
		c.done <- err
	}
}
