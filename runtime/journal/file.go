package journal

import (
	"bytes"
	"errors"
	"fmt"
	"runtime/debug"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"
)

// lockTimeout is how long Open waits for another process to let go of the file.
const lockTimeout = 2 * time.Second

// The buckets, by their number in the log.
const (
	recordsIn = iota
	metaIn
	buckets // how many there are
)

var bucketNames = [buckets][]byte{[]byte("records"), []byte("meta")}

// openFile opens the bbolt file and reads all of it. bbolt trusts the pages of its
// file, so that damage can cause a panic or a fault in mapped memory; openFile
// returns both as errors.
func openFile(path string) (db *bbolt.DB, all contents, err error) {
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
		return nil, contents{}, openError(err)
	}
	if all, err = readFile(db); err != nil {
		return nil, contents{}, errors.Join(err, db.Close())
	}
	return db, all, nil
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

// readFile makes the buckets if they are missing, reads all of the file and checks
// that every record can be read.
func readFile(db *bbolt.DB) (contents, error) {
	all := contents{records: make(map[string][]byte), meta: make(map[string][]byte)}
	if err := makeBuckets(db); err != nil {
		return all, err
	}
	err := db.View(func(tx *bbolt.Tx) error {
		err := tx.Bucket(bucketNames[recordsIn]).ForEach(func(key, data []byte) error {
			all.records[string(key)] = bytes.Clone(data)
			all.keys = append(all.keys, string(key))
			return check(key, data)
		})
		if err != nil {
			return err
		}
		return tx.Bucket(bucketNames[metaIn]).ForEach(func(key, data []byte) error {
			all.meta[string(key)] = bytes.Clone(data)
			return nil
		})
	})
	return all, err
}

// check tells damage from a record that a newer crinetd wrote.
func check(key, data []byte) error {
	_, err := decode(key, data)
	if err != nil && !errors.Is(err, ErrNewer) {
		return damageError{err}
	}
	return err
}

// makeBuckets makes the buckets that are missing: any write would be another
// transaction than the one that the log follows.
func makeBuckets(db *bbolt.DB) error {
	missing := false
	err := db.View(func(tx *bbolt.Tx) error {
		for _, name := range bucketNames {
			missing = missing || tx.Bucket(name) == nil
		}
		return nil
	})
	switch {
	case err != nil || !missing:
		return err
	case db.IsReadOnly():
		return errors.New("it was never written to")
	}
	return db.Update(func(tx *bbolt.Tx) error {
		for _, name := range bucketNames {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
}

// transaction is the number of the last transaction that was committed.
func transaction(db *bbolt.DB) (id uint64) {
	// The error is that of the function, which has none.
	_ = db.View(func(tx *bbolt.Tx) error { id = uint64(tx.ID()); return nil })
	return id
}

// damageError marks an error as one of the file's contents.
type damageError struct{ error }

func (e damageError) Unwrap() error { return e.error }

func damaged(err error) bool {
	var d damageError
	return errors.As(err, &d)
}
