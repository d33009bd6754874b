package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The log begins with logMagic and the number of the bbolt transaction that it
// follows. Entries follow, each of which is a change:
//
//	length of what follows the sum, uint32
//	CRC-32C of the transaction's number and of that, uint32
//	bucket, byte: recordsIn or metaIn
//	what, byte: logPut or logDelete
//	length of the key, uint16; the key; the value, of a put
//
// Numbers are little-endian. A log that follows another transaction, and what comes
// after an entry that is not whole, does not count. A log that begins anew leaves the
// entries of the one before behind it, whose sums are wrong then: to sync what is
// written into room that the file has takes half the time.
const (
	logMagic   = "crinet journal 1"
	headerLen  = len(logMagic) + 8
	logRoom    = 64 << 10 // what a log without room grows by, in bytes
	entryStart = 8        // length and sum
	changeHead = 4        // bucket, what, length of the key
)

const (
	logPut = iota
	logDelete
)

// address is where a value is.
type address struct {
	bucket byte
	key    string
}

// change is one change of a value; nil deletes it.
type change struct {
	address
	value []byte
}

// logFile is the open log. Its methods must not be called at the same time, but for
// sync.
type logFile struct {
	path string
	file *os.File
	size int64 // of what counts
	room int64 // size of the file
	// stale says that the file must be begun anew before it is written to.
	stale    bool
	follows  uint64 // the transaction
	onSynced func() // for tests: called when the log is on the disk
}

// openLog opens the log that follows the transaction, makes it if it is missing, and
// returns its changes.
func openLog(path string, readOnly bool, follows uint64) (*logFile, []change, error) {
	flags := os.O_RDWR | os.O_CREATE
	if readOnly {
		flags = os.O_RDONLY
	}
	_, missing := os.Stat(path)
	l := &logFile{path: path, follows: follows}
	var err error
	if l.file, err = os.OpenFile(path, flags, 0o600); err != nil {
		if readOnly && errors.Is(err, os.ErrNotExist) {
			return l, nil, nil
		}
		return nil, nil, err
	}
	if missing != nil {
		if err := syncDir(filepath.Dir(path)); err != nil {
			return nil, nil, errors.Join(err, l.file.Close())
		}
	}
	data, err := io.ReadAll(l.file)
	if err != nil {
		return nil, nil, errors.Join(err, l.file.Close())
	}
	l.room = int64(len(data))
	if len(data) < headerLen || string(data[:len(logMagic)]) != logMagic ||
		binary.LittleEndian.Uint64(data[len(logMagic):]) != follows {
		l.stale = true
		return l, nil, nil
	}
	changes, used := readChanges(data[headerLen:], follows)
	l.size = int64(headerLen + used)
	if !readOnly {
		// What is appended must not meet older entries behind it.
		if err := l.file.Truncate(l.size); err != nil {
			return nil, nil, errors.Join(err, l.file.Close())
		}
		l.room = l.size
	}
	return l, changes, nil
}

// syncDir makes sure that the directory's entries survive a loss of power.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// readChanges reads entries up to the first that is not whole, and says how many
// bytes they take.
func readChanges(data []byte, follows uint64) (changes []change, used int) {
	for {
		rest := data[used:]
		if len(rest) < entryStart+changeHead {
			return changes, used
		}
		length := int(binary.LittleEndian.Uint32(rest))
		if length < changeHead || length > len(rest)-entryStart {
			return changes, used
		}
		body := rest[entryStart : entryStart+length]
		keyLen := int(binary.LittleEndian.Uint16(body[2:]))
		if binary.LittleEndian.Uint32(rest[4:]) != checksum(body, follows) || keyLen > length-changeHead || body[0] >= buckets {
			return changes, used
		}
		c := change{address: address{body[0], string(body[changeHead : changeHead+keyLen])}}
		if body[1] == logPut {
			c.value = append([]byte{}, body[changeHead+keyLen:]...)
		}
		changes = append(changes, c)
		used += entryStart + length
	}
}

func checksum(data []byte, follows uint64) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(binary.LittleEndian.AppendUint64(nil, follows), table), table, data)
}

func encodeChange(c change, follows uint64) []byte {
	what := byte(logPut)
	if c.value == nil {
		what = logDelete
	}
	body := append([]byte{c.bucket, what}, binary.LittleEndian.AppendUint16(nil, uint16(len(c.key)))...)
	body = append(append(body, c.key...), c.value...)
	entry := binary.LittleEndian.AppendUint32(nil, uint32(len(body)))
	return append(binary.LittleEndian.AppendUint32(entry, checksum(body, follows)), body...)
}

// append adds a change, in one write. After an error the log is as before.
func (l *logFile) append(c change) error {
	if l.stale {
		if err := l.reset(l.follows); err != nil {
			return err
		}
	}
	entry := encodeChange(c, l.follows)
	end := l.size + int64(len(entry))
	if end > l.room {
		// On a full disk the file gets what there is; the entry's own write tells.
		n, _ := l.file.WriteAt(make([]byte, len(entry)+logRoom), l.size)
		l.room = l.size + int64(n)
	}
	if _, err := l.file.WriteAt(entry, l.size); err != nil {
		// A part of an entry does no harm: the next is written over it.
		return err
	}
	l.room = max(l.room, end)
	l.size = end
	return nil
}

// reset begins the log anew, behind another transaction.
func (l *logFile) reset(follows uint64) error {
	l.follows, l.stale, l.size = follows, true, 0
	header := binary.LittleEndian.AppendUint64([]byte(logMagic), follows)
	if _, err := l.file.WriteAt(header, 0); err != nil {
		return err
	}
	l.stale, l.size = false, int64(headerLen)
	l.room = max(l.room, l.size)
	return nil
}

// sync waits until what was appended before is on the disk.
func (l *logFile) sync() error {
	if err := unix.Fdatasync(int(l.file.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", l.path, err)
	}
	if l.onSynced != nil {
		l.onSynced()
	}
	return nil
}

func (l *logFile) close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}
