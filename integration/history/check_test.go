package history_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/integration/history"
)

// story writes a history by its steps, a second apart.
type story struct {
	events []history.Event
	now    time.Time
	calls  int
	ops    int
}

func newStory() *story { return &story{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)} }

func (s *story) add(e history.Event) int {
	s.now = s.now.Add(time.Second)
	e.Time = s.now
	s.events = append(s.events, e)
	return len(s.events) - 1
}

func (s *story) call(method, pod, sandbox string, ports ...string) {
	s.calls++
	c := history.Call{Number: s.calls, Method: method, Pod: pod, HostPorts: ports, First: strings.HasPrefix(pod, "kube-system/")}
	if method != "RunPodSandbox" {
		c.Sandbox = sandbox
	}
	s.add(history.Event{Kind: history.CallBegan, Call: &c})
}

// answer answers the last call.
func (s *story) answer(sandbox, err string) {
	for _, e := range slices.Backward(s.events) {
		if e.Kind == history.CallBegan {
			c := *e.Call
			c.Sandbox, c.Err = sandbox, err
			s.add(history.Event{Kind: history.CallEnded, Call: &c})
			return
		}
	}
}

func conf(id, address, extra string) json.RawMessage {
	return json.RawMessage(fmt.Sprintf(`{"type": "testplugin"%s, "prevResult": %s}`, extra, result(id, address)))
}

func result(id, address string) json.RawMessage {
	return json.RawMessage(fmt.Sprintf(`{"interfaces": [{"name": "br0"}, {"name": "veth%s"}, {"name": "eth0", "sandbox": "/netns/%s"}], "ips": [{"address": "%s"}]}`, id, id, address))
}

func (s *story) exec(verb, id, address, extra string) {
	s.add(history.Event{Kind: history.PluginExec, Exec: &history.Exec{Verb: verb, Sandbox: id, IfName: "eth0", NetNS: "/netns/" + id, Pod: "p", Config: conf(id, address, extra)}})
}

// operation ends now and began two seconds ago; with runs of the test plugin.
func (s *story) operation(verb, pod, id, address, extra string) *history.Operation {
	s.ops++
	s.now = s.now.Add(2 * time.Second)
	o := &history.Operation{ID: fmt.Sprintf("RUN-%d", s.ops), Verb: verb, Done: true, Pod: pod, Sandbox: id, IfName: "eth0", NetNS: "/netns/" + id,
		Begin: s.now.Add(-1500 * time.Millisecond), End: s.now}
	o.Runs = []history.Run{{Type: "testplugin", Command: verb, Begin: o.Begin, End: o.End, Config: conf(id, address, extra)}}
	if verb == "ADD" {
		o.Result, o.Addresses = result(id, address), []string{address}
	}
	s.add(history.Event{Kind: history.OperationEnd, Operation: o})
	return o
}

func element(pod, address string) history.Element {
	return history.Element{Set: "ports4", Key: "tcp/8080", Address: strings.TrimSuffix(address, "/16"), Port: 80, Comment: pod}
}

func (s *story) table(t history.Table) { s.add(history.Event{Kind: history.TableChange, Table: &t}) }

func (s *story) link(id string, state history.LinkState) {
	s.add(history.Event{Kind: history.LinkChange, Link: &history.Link{Index: 7, Name: "veth" + id, State: state}})
}

// The steps of a pod with a hostPort.
const address = "10.0.0.2/16"

func (s *story) asked(pod string) { s.call("RunPodSandbox", pod, "", "tcp/8080") }

func (s *story) added(pod, id string) {
	s.link(id, history.LinkUp)
	s.exec("ADD", id, address, "")
	s.operation("ADD", pod, id, address, "")
	s.table(history.Table{Added: []history.Element{element(pod, address)}})
}

func (s *story) up(pod, id string) {
	s.asked(pod)
	s.added(pod, id)
	s.answer(id, "")
}

func (s *story) unmapped(pod string) {
	s.table(history.Table{Removed: []history.Element{element(pod, address)}})
}

func (s *story) deleted(pod, id string) {
	s.exec("DEL", id, address, "")
	s.link(id, history.LinkDown)
	s.operation("DEL", pod, id, address, "")
}

func (s *story) down(pod, id string) {
	s.call("StopPodSandbox", "", id)
	s.unmapped(pod)
	s.deleted(pod, id)
	s.answer(id, "")
	s.call("RemovePodSandbox", "", id)
	s.answer(id, "")
}

func (s *story) end(left ...string) { s.add(history.Event{Kind: history.End, Left: left}) }

const pod, id = "default/p", "a"

func TestGoodHistories(t *testing.T) {
	for name, tell := range map[string]func(*story){
		"nothing":    func(s *story) { s.end() },
		"a pod":      func(s *story) { s.up(pod, id); s.down(pod, id); s.end() },
		"one stands": func(s *story) { s.up(pod, id); s.end() },
		"the runtime removes the namespace of a pod that failed while DEL waits with its hostPort": func(s *story) {
			s.asked(pod)
			s.added(pod, id)
			s.answer("", "crinetd is gone")
			begun := &history.Operation{ID: "DEL-1", Verb: "DEL", Pod: pod, Sandbox: id, IfName: "eth0", NetNS: "/netns/" + id, Begin: s.now}
			s.add(history.Event{Kind: history.OperationEnd, Operation: begun})
			s.link(id, history.LinkDown)
			s.unmapped(pod)
			s.exec("DEL", id, address, "")
			done := s.operation("DEL", pod, id, address, "")
			done.ID, done.Begin = begun.ID, begun.Begin
			s.end()
		},
		"a pod again with the address": func(s *story) {
			s.up(pod, id)
			s.down(pod, id)
			s.up(pod, "b")
			s.down(pod, "b")
			s.end()
		},
		"the address goes to another pod": func(s *story) {
			s.up(pod, id)
			s.down(pod, id)
			s.up("default/q", "b")
			s.down("default/q", "b")
			s.end()
		},
		"the table is made again": func(s *story) {
			s.up(pod, id)
			s.table(history.Table{Reset: true, Added: []history.Element{element(pod, address)}})
			s.down(pod, id)
			s.end()
		},
		"the first plugin of ADD was cut off by a kill, and undone": func(s *story) {
			s.asked(pod)
			s.exec("ADD", id, address, "")
			o := s.operation("ADD", pod, id, address, "")
			o.Done, o.Runs, o.Result, o.Addresses = false, nil, nil, nil
			s.table(history.Table{Added: []history.Element{element(pod, address)}})
			s.answer("", "unavailable")
			s.add(history.Event{Kind: history.DaemonKilled, Daemon: "crinetd"})
			s.unmapped(pod)
			s.exec("DEL", id, address, "")
			s.operation("DEL", pod, id, address, "")
			s.end()
		},
		"DEL is cut off, and done again": func(s *story) {
			s.up(pod, id)
			s.call("StopPodSandbox", "", id)
			s.unmapped(pod)
			s.exec("DEL", id, address, "")
			o := s.operation("DEL", pod, id, address, "")
			o.Done, o.Runs = false, nil
			s.answer(id, "unavailable")
			s.down(pod, id)
			s.end()
		},
		"ADD is tried again in place": func(s *story) {
			s.asked(pod)
			s.exec("ADD", id, address, "")
			s.exec("DEL", id, address, "")
			s.added(pod, id)
			s.answer(id, "")
			s.down(pod, id)
			s.end()
		},
		"messages were lost": func(s *story) {
			s.up(pod, id)
			s.add(history.Event{Kind: history.Lost})
			s.call("StopPodSandbox", "", id)
			s.exec("DEL", id, address, "")
			s.operation("DEL", pod, id, address, "")
			s.answer(id, "")
			s.end()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStory()
			tell(s)
			if found := history.Check(s.events); len(found) > 0 {
				t.Error(report(s.events, found))
			}
		})
	}
}

func report(events []history.Event, found []history.Violation) string {
	var b strings.Builder
	history.Report(&b, events, found)
	return b.String()
}

func TestBadHistories(t *testing.T) {
	const other, b = "default/q", "b"
	for _, c := range []struct {
		name string
		rule history.Rule
		tell func(*story)
	}{
		{"two pods with one address", history.AddressTwice, func(s *story) { s.up(pod, id); s.up(other, b); s.end() }},
		{"the first goes on for longer", history.AddressTwice, func(s *story) {
			s.up(pod, id)
			s.up(other, b)
			s.down(other, b)
			s.up("default/r", "c")
			s.end()
		}},
		{"the result of another sandbox", history.ResultOfAnother, func(s *story) {
			s.asked(pod)
			o := s.operation("ADD", pod, id, address, "")
			o.Result = result(b, address)
			s.answer(id, "")
			s.end()
		}},
		{"up without ADD", history.NoNetwork, func(s *story) { s.asked(pod); s.answer(id, ""); s.end() }},
		{"DEL while it starts", history.NetworkLost, func(s *story) { s.asked(pod); s.added(pod, id); s.deleted(pod, id); s.answer(id, ""); s.end() }},
		{"DEL while it is up", history.NetworkLost, func(s *story) { s.up(pod, id); s.unmapped(pod); s.deleted(pod, id); s.end() }},
		{"its link goes", history.NetworkLost, func(s *story) { s.up(pod, id); s.link(id, history.LinkGone); s.end() }},
		{"its hostPort goes", history.HostPortLost, func(s *story) { s.up(pod, id); s.unmapped(pod); s.end() }},
		{"the table is made again without it", history.HostPortLost, func(s *story) { s.up(pod, id); s.table(history.Table{Reset: true}); s.end() }},
		{"its hostPort never comes", history.HostPortLost, func(s *story) {
			s.up(pod, id)
			s.call("RunPodSandbox", other, "", "tcp/9090")
			s.operation("ADD", other, b, "10.0.0.3/16", "")
			s.answer(b, "")
			s.end()
		}},
		{"hostPort after the link", history.HostPortLeft, func(s *story) {
			s.up(pod, id)
			s.call("StopPodSandbox", "", id)
			s.deleted(pod, id)
			s.unmapped(pod)
			s.answer(id, "")
			s.end()
		}},
		{"hostPort after the removal", history.HostPortLeft, func(s *story) {
			s.up(pod, id)
			s.call("StopPodSandbox", "", id)
			s.exec("DEL", id, address, "")
			s.operation("DEL", pod, id, address, "")
			s.answer(id, "")
			s.end()
		}},
		{"hostPort to another pod", history.HostPortOfAnother, func(s *story) {
			s.up(pod, id)
			s.call("StopPodSandbox", "", id)
			s.deleted(pod, id)
			s.answer(id, "")
			s.asked(other)
			s.operation("ADD", other, b, address, "")
			s.answer(b, "")
			s.end()
		}},
		{"ADD after Stop", history.AfterRemoval, func(s *story) { s.up(pod, id); s.down(pod, id); s.exec("ADD", id, address, ""); s.end() }},
		{"ADD of crinetd after Stop", history.AfterRemoval, func(s *story) { s.up(pod, id); s.down(pod, id); s.operation("ADD", pod, id, address, ""); s.end() }},
		{"hostPort for a pod that is gone", history.AfterRemoval, func(s *story) {
			s.up(pod, id)
			s.down(pod, id)
			s.now = s.now.Add(time.Minute)
			s.table(history.Table{Added: []history.Element{element(pod, address)}})
			s.unmapped(pod)
			s.end()
		}},
		{"hostPort for nobody", history.AfterRemoval, func(s *story) { s.table(history.Table{Added: []history.Element{element(pod, address)}}); s.end() }},
		{"ADD of a plugin without DEL", history.AddWithoutDel, func(s *story) { s.asked(pod); s.exec("ADD", id, address, ""); s.answer("", "no"); s.end() }},
		{"ADD of a plugin twice", history.AddWithoutDel, func(s *story) {
			s.asked(pod)
			s.exec("ADD", id, address, "")
			s.added(pod, id)
			s.answer(id, "")
			s.end()
		}},
		{"ADD without DEL", history.AddWithoutDel, func(s *story) {
			s.asked(pod)
			s.operation("ADD", pod, id, address, "")
			s.answer("", "no")
			s.end()
		}},
		{"DEL of crinetd without a plugin's", history.AddWithoutDel, func(s *story) {
			s.up(pod, id)
			s.call("StopPodSandbox", "", id)
			s.unmapped(pod)
			s.exec("DEL", id, address, "")
			s.link(id, history.LinkDown)
			s.operation("DEL", pod, id, address, "").Runs = nil
			s.answer(id, "")
			s.end()
		}},
		{"DEL with another configuration", history.DelOfAnother, func(s *story) {
			s.up(pod, id)
			s.call("StopPodSandbox", "", id)
			s.unmapped(pod)
			s.exec("DEL", id, address, `, "later": true`)
			s.link(id, history.LinkDown)
			s.operation("DEL", pod, id, address, "")
			s.answer(id, "")
			s.end()
		}},
		{"DEL of a built-in with another configuration", history.DelOfAnother, func(s *story) {
			s.up(pod, id)
			s.call("StopPodSandbox", "", id)
			s.unmapped(pod)
			s.exec("DEL", id, address, "")
			s.link(id, history.LinkDown)
			s.operation("DEL", pod, id, address, `, "later": true`)
			s.answer(id, "")
			s.end()
		}},
		{"DEL with another result", history.DelOfAnother, func(s *story) {
			s.up(pod, id)
			s.call("StopPodSandbox", "", id)
			s.unmapped(pod)
			s.exec("DEL", id, "10.0.0.3/16", "")
			s.link(id, history.LinkDown)
			s.operation("DEL", pod, id, address, "")
			s.answer(id, "")
			s.end()
		}},
		{"the link stays", history.NetworkLeft, func(s *story) {
			s.up(pod, id)
			s.call("StopPodSandbox", "", id)
			s.unmapped(pod)
			s.exec("DEL", id, address, "")
			s.operation("DEL", pod, id, address, "")
			s.answer(id, "")
			s.end()
		}},
		{"left at the end", history.LeftAtEnd, func(s *story) { s.end("address 10.0.0.2") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStory()
			c.tell(s)
			found := history.Check(s.events)
			at := slices.IndexFunc(found, func(v history.Violation) bool { return v.Rule == c.rule })
			if at < 0 {
				t.Fatalf("%q is not found, but:\n%s", c.rule, report(s.events, found))
			}
			if proof := found[at].Proof; len(proof) == 0 || proof[len(proof)-1] >= len(s.events) {
				t.Errorf("the proof is %v of %d events", proof, len(s.events))
			}
		})
	}
}

// ADDs that wait: those that came first run first, critical pods before all others.
func TestOrder(t *testing.T) {
	type add struct {
		pod        string
		begin, ran int // seconds
	}
	for _, c := range []struct {
		name string
		adds []add
		bad  string // the pod that was overtaken
	}{
		{"as they came", []add{{"default/a", 0, 10}, {"default/b", 2, 12}, {"default/c", 4, 14}}, ""},
		{"together", []add{{"default/a", 0, 10}, {"default/b", 0, 5}}, ""},
		{"overtaken", []add{{"default/a", 0, 10}, {"default/b", 3, 5}}, "default/a"},
		{"critical before others", []add{{"default/a", 0, 10}, {"kube-system/b", 3, 5}}, ""},
		{"critical after others", []add{{"default/a", 0, 8}, {"kube-system/b", 3, 10}}, "kube-system/b"},
		{"critical that came when others ran", []add{{"default/a", 0, 3}, {"kube-system/b", 3, 10}}, ""},
		{"critical overtaken by critical", []add{{"kube-system/a", 0, 10}, {"kube-system/b", 3, 5}}, "kube-system/a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStory()
			start := s.now
			at := func(second int) time.Time { return start.Add(time.Duration(second) * time.Second) }
			for i, a := range c.adds {
				s.call("RunPodSandbox", a.pod, "")
				s.events = append(s.events, history.Event{Time: at(a.ran + 1), Kind: history.OperationEnd, Operation: &history.Operation{
					ID: fmt.Sprintf("RUN-%d", i), Verb: "ADD", Done: true, Pod: a.pod, Sandbox: a.pod, Begin: at(a.begin), End: at(a.ran + 1),
					Runs: []history.Run{{Type: "bridge", Command: "ADD", Begin: at(a.ran), End: at(a.ran + 1)}},
				}})
			}
			var bad []string
			for _, v := range history.Check(s.events) {
				if v.Rule == history.Order {
					bad = append(bad, v.Sandbox)
				}
			}
			var want []string
			if c.bad != "" {
				want = []string{c.bad}
			}
			if diff := cmp.Diff(want, bad); diff != "" {
				t.Errorf("overtaken (-want +got):\n%s", diff)
			}
		})
	}
}
