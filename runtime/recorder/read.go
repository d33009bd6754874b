package recorder

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Query says which operations are asked for.
type Query struct {
	// Pod names a pod or a sandbox, see [Operation.Matches].
	Pod string
	// Failed leaves those out that succeeded or are under way.
	Failed bool
	// Limit is how many are returned at most; 0 stands for [Keep].
	Limit int
}

// Read returns the operations in the files of a state dir, the newest first, without
// the crinetd that writes them. Those that have no end count as cut off. It reads both
// files, and decodes only lines that may be asked for.
func Read(dir string, q Query) ([]Operation, error) {
	return read(dir, q, func(*Operation) bool { return false })
}

// read is Read; running says whether an operation is under way, and updates it.
func read(dir string, q Query, running func(*Operation) bool) ([]Operation, error) {
	if q.Limit <= 0 || q.Limit > Keep {
		q.Limit = Keep
	}
	f := finder{query: q, running: running, needle: needle(q.Pod), seen: make(map[string]bool)}
	// In this order: a file that is replaced in between is read twice, not left out.
	for _, name := range []string{CurrentFile, OlderFile} {
		text, err := readFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		all := bytes.Split(text, []byte("\n"))
		for _, line := range slices.Backward(all[:max(len(all)-1, 0)]) { // the last has no end
			f.look(line)
		}
	}
	slices.SortStableFunc(f.found, func(a, b Operation) int { return b.Start.Compare(a.Start) })
	return f.found[:min(len(f.found), q.Limit)], nil
}

// needle is what every line of a pod has in it: the last part of its name, or its id,
// as JSON writes it.
func needle(pod string) []byte {
	name := quote(pod[strings.LastIndexByte(pod, '/')+1:])
	return name[1 : len(name)-1]
}

// readFile reads one of the files; one that is not there is empty.
func readFile(path string) (text []byte, err error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return readAll(file)
}

// finder goes through lines, the newest first.
type finder struct {
	query   Query
	running func(*Operation) bool
	needle  []byte // is in every line that is asked for
	seen    map[string]bool
	found   []Operation
}

func (f *finder) look(line []byte) {
	if len(f.found) >= f.query.Limit+maxUnderWay {
		return
	}
	id, done := head(line)
	if id == "" || f.seen[id] { // the end of the operation was seen
		return
	}
	f.seen[id] = true
	if !bytes.Contains(line, f.needle) {
		return
	}
	if f.query.Failed && done && !bytes.Contains(line, []byte(`"err":"`)) {
		return
	}
	var o Operation
	if json.Unmarshal(line, &o) != nil || !o.Matches(f.query.Pod) {
		return
	}
	if o.State != Done && !f.running(&o) {
		o.State = CutOff
	}
	if !f.query.Failed || o.Failed() {
		f.found = append(f.found, o)
	}
}

// maxUnderWay is how many operations may be under way while another one begins and
// ends: lines are ordered by their end, and what is found by the begin.
const maxUnderWay = 64
