package history

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Rule is a promise that a history can break.
type Rule string

const (
	// AddressTwice means: two pods have one address at one time.
	AddressTwice Rule = "one address, one pod"
	// ResultOfAnother means: an ADD was answered with the network of another sandbox.
	ResultOfAnother Rule = "ADD answers for its own sandbox"
	// NoNetwork means: RunPodSandbox succeeded for a sandbox whose ADD did not.
	NoNetwork Rule = "a sandbox that is up has a network"
	// NetworkLost means: DEL, or the end of a link, between RunPodSandbox and StopPodSandbox.
	NetworkLost Rule = "the network stands until Stop begins"
	// HostPortLost means: an element of a pod that is up is not in the table, or went.
	HostPortLost Rule = "hostPorts stand until Stop begins"
	// HostPortLeft means: an element stood when the pod's way was closed or its removal done.
	HostPortLeft Rule = "hostPorts go before the address"
	// HostPortOfAnother means: an element led to the address of another pod.
	HostPortOfAnother Rule = "a hostPort leads to its owner"
	// AfterRemoval means: something was done for a sandbox whose removal had been reported.
	AfterRemoval Rule = "nothing is done after the removal"
	// AddWithoutDel means: an ADD has no DEL although its pod is gone.
	AddWithoutDel Rule = "every ADD has its DEL"
	// DelOfAnother means: DEL had another configuration, other arguments or another result than ADD.
	DelOfAnother Rule = "DEL is that of ADD"
	// NetworkLeft means: a link stood after the pod's removal was reported.
	NetworkLeft Rule = "a removal that is reported is done"
	// Order means: an ADD that waited was overtaken.
	Order Rule = "ADD in order, critical pods first"
	// LeftAtEnd means: something is left when all pods are gone.
	LeftAtEnd Rule = "nothing is left at the end"
)

const (
	// lag is how much later than it happened the kernel's message may be read.
	lag = 3 * time.Second
	// orderSlack is how much two ADDs may differ and still count as having come together.
	orderSlack = time.Second
)

// Violation is one breach of a rule.
type Violation struct {
	Rule    Rule
	Sandbox string // empty where there is none
	Text    string
	Proof   []int // the events that prove it, by their index
}

func (v Violation) String() string { return fmt.Sprintf("%s: %s", v.Rule, v.Text) }

// Report writes violations with the events that prove them.
func Report(w io.Writer, events []Event, violations []Violation) {
	for _, v := range violations {
		fmt.Fprintf(w, "%s\n", v)
		for _, i := range v.Proof {
			line, err := json.Marshal(events[i])
			if err != nil {
				line = []byte(err.Error())
			}
			fmt.Fprintf(w, "\tline %d: %s\n", i+1, shorten(line))
		}
	}
}

// mostProof bounds an event in a report in bytes; the history has all of it.
const mostProof = 400

func shorten(line []byte) string {
	if len(line) > mostProof {
		return string(line[:mostProof]) + " …"
	}
	return string(line)
}

// Check holds a history against the model and returns what breaks it, in the order of
// the events. It takes time in proportion to the events, but for sorting.
func Check(events []Event) []Violation {
	m := newModel(events)
	for _, rule := range []func(){
		m.addresses, m.results, m.networks, m.hostPortsOfPods, m.elements, m.closedLinks, m.execs, m.operations, m.removals, m.order, m.left,
	} {
		rule()
	}
	slices.SortStableFunc(m.found, func(a, b Violation) int { return cmp.Compare(last(a.Proof), last(b.Proof)) })
	return m.found
}

func last(proof []int) int { return proof[len(proof)-1] }

// model is a history, by sandbox.
type model struct {
	events []Event
	found  []Violation

	sandboxes map[string]*sandbox
	inOrder   []*sandbox            // in the order of their first event
	byPod     map[string][]*sandbox // by namespace/name
	first     map[string]bool       // pods whose ADD comes first
	ops       []*operation          // in the order of their first line
	links     map[string][]int      // name -> its events
	lives     []*life
	livesOf   map[string][]*life // by comment
	lost      bool               // messages of the kernel are missing
	users     map[string]int     // link of the node -> how many sandboxes had it
	end       int                // index of the End, -1 without
}

// sandbox is what the history tells of one sandbox.
type sandbox struct {
	id, pod   string
	hostPorts []string
	up        moment // answer of the RunPodSandbox that made it
	stopping  moment // begin of the first Stop or Remove
	stopped   moment // answer of the first Stop or Remove that succeeded
	removed   moment // answer of the first Remove that succeeded
	adds      []*operation
	dels      []*operation
	execs     []int // in the order of their times
	unknown   bool  // an ADD was cut off: what it had is not known
	addrs     map[string]bool
	links     []string // on the node, those that it shares as well
}

// moment is an event and its time; the zero moment has not come.
type moment struct {
	time  time.Time
	index int
}

func (m moment) came() bool              { return !m.time.IsZero() }
func (m moment) before(t time.Time) bool { return m.came() && m.time.Before(t) }

// note has the moment be at t, if that is earlier than it is, or if it has not come.
func (m *moment) note(t time.Time, index int) {
	if !m.came() || !t.IsZero() && t.Before(m.time) {
		*m = moment{t, index}
	}
}

// operation is an operation of crinetd's with the index of the line that says most.
type operation struct {
	*Operation
	index int
}

func (o *operation) succeeded() bool { return o.Done && o.Err == "" }

func newModel(events []Event) *model {
	m := &model{
		events: events, sandboxes: make(map[string]*sandbox), byPod: make(map[string][]*sandbox), first: make(map[string]bool),
		links: make(map[string][]int), livesOf: make(map[string][]*life), users: make(map[string]int), end: -1,
	}
	ops := make(map[string]*operation)
	for i := range events {
		e := &events[i]
		switch e.Kind {
		case CallBegan:
			m.began(i, e)
		case CallEnded:
			m.answered(i, e)
		case OperationEnd:
			m.operation(i, e.Operation, ops)
		case PluginExec:
			if e.Exec.Sandbox != "" {
				s := m.sandbox(e.Exec.Sandbox, podOf(e.Exec))
				s.execs = append(s.execs, i)
			}
		case LinkChange:
			m.links[e.Link.Name] = append(m.links[e.Link.Name], i)
		case Lost:
			m.lost = true
		case End:
			m.end = i
		case TableChange, DaemonKilled, DaemonStart, Sampled:
		}
	}
	m.complete()
	m.replayTable()
	return m
}

// podOf reads the pod's namespace/name from CNI_ARGS, if it is there.
func podOf(e *Exec) string {
	for pair := range strings.SplitSeq(e.Args, ";") {
		if value, ok := strings.CutPrefix(pair, "K8S_POD_NAMESPACE="); ok {
			return value + "/" + e.Pod
		}
	}
	return "" // crinetd's operation says it
}

func (m *model) sandbox(id, pod string) *sandbox {
	s := m.sandboxes[id]
	if s == nil {
		s = &sandbox{id: id, addrs: make(map[string]bool)}
		m.sandboxes[id] = s
		m.inOrder = append(m.inOrder, s)
	}
	if s.pod == "" && pod != "" {
		s.pod = pod
	}
	return s
}

func (m *model) began(i int, e *Event) {
	if e.Call.First {
		m.first[e.Call.Pod] = true
	}
	if e.Call.Method == "RunPodSandbox" || e.Call.Sandbox == "" {
		return
	}
	m.sandbox(e.Call.Sandbox, "").stopping.note(e.Time, i)
}

func (m *model) answered(i int, e *Event) {
	if e.Call.Err != "" || e.Call.Sandbox == "" {
		return
	}
	s := m.sandbox(e.Call.Sandbox, e.Call.Pod)
	if e.Call.Method == "RunPodSandbox" {
		s.up, s.hostPorts = moment{e.Time, i}, e.Call.HostPorts
		return
	}
	s.stopped.note(e.Time, i)
	if e.Call.Method == "RemovePodSandbox" {
		s.removed.note(e.Time, i)
	}
}

// operation keeps of the lines of one operation the one that says how it ended.
func (m *model) operation(i int, o *Operation, known map[string]*operation) {
	if before := known[o.ID]; before != nil {
		if o.Done {
			before.Operation, before.index = o, i
		}
		return
	}
	op := &operation{o, i}
	known[o.ID] = op
	m.ops = append(m.ops, op)
	if o.Sandbox == "" {
		return
	}
	s := m.sandbox(o.Sandbox, o.Pod)
	switch o.Verb {
	case "ADD":
		s.adds = append(s.adds, op)
	case "DEL":
		s.dels = append(s.dels, op)
	}
}

// complete brings what has its own times into their order, and collects addresses.
func (m *model) complete() {
	byBegin := func(a, b *operation) int { return a.Begin.Compare(b.Begin) }
	for _, s := range m.inOrder {
		slices.SortStableFunc(s.adds, byBegin)
		slices.SortStableFunc(s.dels, byBegin)
		slices.SortStableFunc(s.execs, func(a, b int) int { return m.events[a].Time.Compare(m.events[b].Time) })
		for _, op := range s.adds {
			s.unknown = s.unknown || !op.Done
			for _, address := range op.Addresses {
				s.addrs[bare(address)] = true
			}
			if _, names := interfacesOf(op.Result); op.succeeded() {
				s.addLinks(names)
			}
		}
		for _, i := range s.execs {
			// What an ADD that was cut off had come to.
			if e := m.events[i].Exec; e.Verb == "ADD" {
				_, names := interfacesOf(prevResultOf(e.Config))
				s.addLinks(names)
				for _, address := range addressesOf(prevResultOf(e.Config)) {
					s.addrs[bare(address)] = true
				}
			}
		}
		for _, name := range s.links {
			m.users[name]++
		}
		if s.pod != "" {
			m.byPod[s.pod] = append(m.byPod[s.pod], s)
		}
	}
}

// addLinks adds links on the node that the sandbox has or shares.
func (s *sandbox) addLinks(names []string) {
	for _, name := range names {
		if !slices.Contains(s.links, name) {
			s.links = append(s.links, name)
		}
	}
}

// bare is an address without its prefix length.
func bare(address string) string {
	address, _, _ = strings.Cut(address, "/")
	return address
}

// has says whether an address is, or may have been, the sandbox's.
func (s *sandbox) has(address string) bool { return s.unknown || s.addrs[address] }

// stands says whether the sandbox is up at the end of the history.
func (s *sandbox) stands() bool { return s.up.came() && !s.stopping.came() }

// name names a sandbox in a text.
func (s *sandbox) name() string { return fmt.Sprintf("pod %s (sandbox %s)", s.pod, short(s.id)) }

func short(id string) string { return id[:min(len(id), 13)] }

// breach adds a violation.
func (m *model) breach(rule Rule, s *sandbox, proof []int, format string, args ...any) {
	v := Violation{Rule: rule, Text: fmt.Sprintf(format, args...), Proof: proof}
	if s != nil {
		v.Sandbox, v.Text = s.id, s.name()+": "+v.Text
	}
	m.found = append(m.found, v)
}

// left holds the end against the rule that nothing is left.
func (m *model) left() {
	if m.end >= 0 && len(m.events[m.end].Left) > 0 {
		m.breach(LeftAtEnd, nil, []int{m.end}, "%s", strings.Join(m.events[m.end].Left, "; "))
	}
}
