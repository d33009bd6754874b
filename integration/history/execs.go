package history

import (
	"encoding/json"
	"reflect"
	"slices"
	"time"
)

// config is a plugin's configuration without and with what differs by call.
type config struct {
	own        any // all but prevResult
	prevResult any // without its version
}

// decode decodes a configuration; ok is false for one that was cut.
func decode(text json.RawMessage) (c config, ok bool) {
	var keys map[string]any
	if json.Unmarshal(text, &keys) != nil {
		return config{}, false
	}
	c.prevResult = withoutVersion(keys["prevResult"])
	delete(keys, "prevResult")
	c.own = keys
	return c, true
}

func withoutVersion(result any) any {
	if keys, ok := result.(map[string]any); ok {
		delete(keys, "cniVersion")
	}
	return result
}

// prevResultOf returns the prevResult of a configuration.
func prevResultOf(text json.RawMessage) json.RawMessage {
	var keys struct {
		PrevResult json.RawMessage `json:"prevResult"`
	}
	if json.Unmarshal(text, &keys) != nil {
		return nil
	}
	return keys.PrevResult
}

// execs: every ADD that a plugin ran has its DEL, with the same configuration and
// arguments, and with the result if the ADD was answered.
func (m *model) execs() {
	for _, s := range m.inOrder {
		byIfName := make(map[string][]int)
		for _, i := range s.execs {
			byIfName[m.events[i].Exec.IfName] = append(byIfName[m.events[i].Exec.IfName], i)
		}
		for _, execs := range byIfName {
			m.execsOf(s, execs)
		}
	}
}

// execsOf goes through the execs of one attachment.
func (m *model) execsOf(s *sandbox, execs []int) {
	open := -1 // the ADD that has no DEL yet
	for _, i := range execs {
		switch m.events[i].Exec.Verb {
		case "ADD":
			if open >= 0 {
				m.breach(AddWithoutDel, s, []int{open, i}, "a plugin ran ADD again without a DEL between")
			}
			open = i
		case "DEL":
			if open >= 0 {
				m.pair(s, open, i)
			}
			open = -1
		}
	}
	if open >= 0 && m.end >= 0 && !s.stands() {
		m.breach(AddWithoutDel, s, []int{open}, "a plugin ran ADD and never DEL")
	}
}

// pair holds the first DEL of an ADD against it.
func (m *model) pair(s *sandbox, add, del int) {
	a, d := m.events[add].Exec, m.events[del].Exec
	if a.Args != d.Args {
		m.breach(DelOfAnother, s, []int{add, del}, "DEL had the arguments %q, ADD %q", d.Args, a.Args)
	}
	was, ok1 := decode(a.Config)
	now, ok2 := decode(d.Config)
	if !ok1 || !ok2 {
		return
	}
	if !reflect.DeepEqual(was.own, now.own) {
		m.breach(DelOfAnother, s, []int{add, del}, "DEL had another configuration than ADD")
	}
	op := m.answeredAdd(s, m.events[del].Time)
	if op == nil {
		return
	}
	var result any
	if json.Unmarshal(op.Result, &result) != nil {
		return
	}
	if !reflect.DeepEqual(withoutVersion(result), now.prevResult) {
		m.breach(DelOfAnother, s, []int{op.index, del}, "DEL did not get the result of ADD")
	}
}

// answeredAdd is the ADD whose result a DEL at a time must have: one that had succeeded,
// and that no DEL has undone.
func (m *model) answeredAdd(s *sandbox, at time.Time) (op *operation) {
	for _, add := range s.adds {
		if add.succeeded() && add.End.Before(at) {
			op = add
		}
	}
	if op == nil || slices.ContainsFunc(s.dels, func(del *operation) bool {
		return del.succeeded() && del.Begin.After(op.Begin) && del.End.Before(at)
	}) {
		return nil
	}
	return op
}

// operations: every ADD that succeeded is undone by one that runs DEL of each of its
// plugins, with the configuration of ADD.
func (m *model) operations() {
	for _, s := range m.inOrder {
		for _, add := range s.adds {
			if add.succeeded() {
				m.undone(s, add)
			}
		}
	}
}

func (m *model) undone(s *sandbox, add *operation) {
	ran := make(map[string]Run)
	for _, del := range s.dels {
		if del.Begin.Before(add.Begin) {
			continue
		}
		for _, r := range del.Runs {
			if before, known := ran[r.Type]; r.Command == "DEL" && (!known || before.Err != "") {
				ran[r.Type] = r
			}
		}
		if !del.succeeded() {
			continue
		}
		for _, r := range add.Runs {
			if r.Command == "ADD" {
				m.undoneRun(s, add, del, r, ran)
			}
		}
		return
	}
	if m.end >= 0 && !s.stands() {
		m.breach(AddWithoutDel, s, []int{add.index}, "its ADD succeeded, and no DEL did")
	}
}

func (m *model) undoneRun(s *sandbox, add, del *operation, was Run, ran map[string]Run) {
	now, found := ran[was.Type]
	if !found {
		m.breach(AddWithoutDel, s, []int{add.index, del.index}, "plugin %s ran ADD, and no DEL when its network was removed", was.Type)
		return
	}
	a, ok1 := decode(was.Config)
	d, ok2 := decode(now.Config)
	if ok1 && ok2 && !reflect.DeepEqual(a.own, d.own) {
		m.breach(DelOfAnother, s, []int{add.index, del.index}, "plugin %s had another configuration in DEL than in ADD", was.Type)
	}
}
