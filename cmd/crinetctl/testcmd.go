package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crinet-project/crinet/config"
	"github.com/crinet-project/crinet/nettest"
	"github.com/crinet-project/crinet/runtime/admin"
)

const testHelp = `Test the pod network of this node: crinetd adds two throwaway network namespaces to
the selected network, and crinetctl sends traffic between them, the node and the
outside. Then crinetd removes them, also when crinetctl is killed. Pods are not
touched. It needs a running crinetd, and neither the API server nor the internet.

With FILE, a .conf or .conflist that need not be in the conf dir, that network is
tested before it goes live, under its own name: what its plugins change on the node
besides the namespaces, such as a bridge, is as it will be.`

// tested is what crinetctl test -o json prints.
type tested struct {
	Network   string `json:"network"`
	File      string `json:"file"`
	Candidate bool   `json:"candidate"`
	Passed    bool   `json:"passed"`
	// Seconds is how long all took.
	Seconds  float64          `json:"seconds"`
	Warnings []string         `json:"warnings,omitempty"`
	Steps    []nettest.Result `json:"steps"`
}

// newTest makes the command test.
func newTest(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "test [FILE]",
		Short: "Send traffic through throwaway attachments of the selected network, or of FILE, and say where it is lost",
		Long:  testHelp,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("test takes one FILE, got %q", args)}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			t := &nodeTest{options: o, started: time.Now()}
			if len(args) == 1 {
				if err := t.read(args[0]); err != nil {
					return err
				}
			}
			return t.run(c.Context())
		},
	}
}

// nodeTest is one run of crinetctl test.
type nodeTest struct {
	*options
	started   time.Time
	candidate *config.Candidate
	tested    tested

	loan   *admin.Borrowed
	node   *nettest.Space
	lent   []*admin.Lent
	pods   []nettest.Pod
	traces *nettest.Traces
}

// read reads and checks a candidate.
func (t *nodeTest) read(file string) error {
	path, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	valid, problem := config.ValidateFile(path, nil)
	if problem != nil {
		return errors.New(problem.String())
	}
	if t.candidate, problem = config.ReadCandidate(path); problem != nil {
		return errors.New(problem.String())
	}
	t.tested.Candidate, t.tested.Network, t.tested.File = true, valid.Network, path
	return nil
}

// run borrows attachments, tests and tells. The error says how many steps failed.
func (t *nodeTest) run(ctx context.Context) (err error) {
	if t.node, err = nettest.Here(); err != nil {
		return err
	}
	defer func() { _ = t.node.Close() }() // nothing is done in it any more
	if t.traces, err = nettest.NewTraces(t.node); err != nil {
		return err
	}
	t.loan, err = t.client().Borrow(ctx, admin.Lend{Who: fmt.Sprintf("crinetctl test, process %d", os.Getpid()), Candidate: t.candidate})
	if err != nil {
		return t.refused(err)
	}
	if t.candidate == nil {
		status, err := t.client().Status(ctx)
		if err != nil {
			return errors.Join(err, t.loan.Close())
		}
		t.tested.Network, t.tested.File = status.Network, status.NetworkFile
	}
	defer func() { _ = t.loan.Close() }() // crinetd takes back what is not returned
	defer func() {
		for _, pod := range t.pods {
			_ = pod.Space.Close() // nothing is done in it any more
		}
	}()
	if err := t.steps(ctx); err != nil {
		if ctx.Err() != nil {
			return errors.New("interrupted: crinetd removes the throwaway attachments")
		}
		return err
	}
	return t.finish()
}

// refused says what is needed for the test.
func (t *nodeTest) refused(err error) error {
	if refused := new(admin.RefusedError); errors.As(err, &refused) {
		return fmt.Errorf("no test: %s", nettest.Plain(refused.Said))
	}
	return fmt.Errorf("the test needs a running crinetd, which makes and removes its attachments: %w", err)
}

// steps runs all steps. The error says that the test broke off.
func (t *nodeTest) steps(ctx context.Context) error {
	added := t.step(ctx, "ADD", t.add)
	if added {
		t.step(ctx, "CHECK", t.check)
		if err := t.traffic(ctx); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !added {
		t.done(nettest.Result{Step: "traffic", Status: nettest.Skipped, Note: "ADD failed: there is nothing to send from"})
	}
	var left []string
	t.step(ctx, "DEL", func() nettest.Result {
		var err error
		left, err = t.loan.Return()
		return result(err, "DEL of the throwaway attachments", "", "crinetd tries again until it works; crinetctl pods shows it, and what DEL says")
	})
	t.step(ctx, "nothing left", func() nettest.Result { return t.left(ctx, left) })
	return ctx.Err()
}

// step runs a step that is not of nettest, and says whether it passed.
func (t *nodeTest) step(ctx context.Context, name string, run func() nettest.Result) bool {
	t.begin(name)
	start := time.Now()
	r := run()
	if ctx.Err() != nil {
		return false // it was cut off, which says nothing of the network
	}
	r.Step, r.Seconds = name, time.Since(start).Seconds()
	t.done(r)
	return r.Status == nettest.Passed
}

// result is that of a step which failed with an error, or has not.
func result(err error, sent, note, do string) nettest.Result {
	if err == nil {
		return nettest.Result{Status: nettest.Passed, Note: note}
	}
	return nettest.Result{Status: nettest.Failed, Fault: &nettest.Fault{Sent: sent, Came: nettest.Plain(err.Error()), Do: []string{do}}}
}

// add borrows two attachments.
func (t *nodeTest) add() nettest.Result {
	var addresses []string
	for i := range 2 {
		lent, file, err := t.loan.Add(i == 0)
		if err != nil {
			return result(err, fmt.Sprintf("ADD of throwaway attachment %d", i+1), "",
				"the words are the plugin's: look at what it names; crinetctl probe shows the plugins, crinetctl validate FILE checks a configuration")
		}
		pod := nettest.Pod{Space: nettest.NewSpace(file), IfName: lent.IfName}
		for _, text := range lent.Addresses {
			if prefix, err := netip.ParsePrefix(text); err == nil { // crinetd printed it
				pod.Addresses = append(pod.Addresses, prefix)
			}
		}
		t.lent, t.pods = append(t.lent, lent), append(t.pods, pod)
		t.traces.Note(pod, lent.ContainerID, lent.NetNS, lent.Network, lent.ConfList)
		addresses = append(addresses, strings.Join(lent.Addresses, ","))
	}
	t.tested.Network, t.tested.File, t.tested.Warnings = t.lent[0].Network, t.lent[0].File, t.lent[0].Warnings
	note := fmt.Sprintf("network %s (%s): %s", t.lent[0].Network, nettest.Plain(t.lent[0].File), strings.Join(addresses, " and "))
	if built := t.lent[0].Builtin; len(built) > 0 {
		note += "; built in: " + strings.Join(built, ", ")
	}
	return nettest.Result{Status: nettest.Passed, Note: nettest.Plain(note)}
}

// check has the attachments checked.
func (t *nodeTest) check() nettest.Result {
	if !t.lent[0].HasCheck {
		return nettest.Result{Status: nettest.Skipped, Note: "the network's CNI version has no CHECK, or disableCheck is set"}
	}
	for i := range t.lent {
		if err := t.loan.Check(i); err != nil {
			return result(err, fmt.Sprintf("CHECK of throwaway attachment %d", i+1), "",
				"the attachment is not as ADD made it: look for who changes interfaces, addresses or routes of pods, or correct the plugin")
		}
	}
	return nettest.Result{Status: nettest.Passed}
}

// traffic sends traffic between the attachments.
func (t *nodeTest) traffic(ctx context.Context) error {
	first := t.lent[0]
	_, err := nettest.Run(ctx, nettest.Config{
		Node: t.node, Pods: [2]nettest.Pod{t.pods[0], t.pods[1]}, ServerPort: serverPort(first),
		HostPort: first.HostPort, NoHostPort: first.NoHostPort, MappedBy: first.MappedBy, NoLoopback: first.NoLoopback,
		Begin: t.begin, Done: t.done,
	})
	return err
}

// serverPort is where the first attachment's hostPort leads.
func serverPort(first *admin.Lent) uint16 {
	if first.ContainerPort != 0 {
		return first.ContainerPort
	}
	return 8080
}

// left looks for what is left of the attachments.
func (t *nodeTest) left(ctx context.Context, crinetd []string) nettest.Result {
	left := append(crinetd, t.traces.Left(ctx)...)
	if len(left) > 0 {
		return nettest.Result{Status: nettest.Failed, Fault: &nettest.Fault{
			Came: nettest.Plain("still there: " + strings.Join(left, ", ")),
			Do:   []string{"crinetd goes on removing what its journal has (crinetctl pods); what stays is the plugin's, whose DEL does not remove it"},
		}}
	}
	note := "no namespace, interface, address, rule, cached result or journal record"
	if stay := t.traces.Stay(); len(stay) > 0 {
		note += "; bridge " + strings.Join(stay, ", ") + " stays, as after any pod"
	}
	return nettest.Result{Status: nettest.Passed, Note: note}
}

// begin shows on a terminal which step runs.
func (t *nodeTest) begin(step string) {
	if t.colour && t.output != "json" {
		fmt.Fprintf(t.stdout, "%-24s...", step)
	}
}

// done keeps a step's result, and tells it at once.
func (t *nodeTest) done(r nettest.Result) {
	t.tested.Steps = append(t.tested.Steps, r)
	if t.output == "json" {
		return
	}
	if t.colour {
		fmt.Fprint(t.stdout, "\r\x1b[K")
	}
	colours := map[nettest.Status]string{nettest.Passed: green, nettest.Failed: red}
	word := fmt.Sprintf("%-8s", r.Status)
	if colour := colours[r.Status]; colour != "" {
		word = t.paint(colour, word)
	}
	took := (time.Duration(r.Seconds * float64(time.Second))).Round(time.Millisecond)
	fmt.Fprintln(t.stdout, strings.TrimRight(fmt.Sprintf("%-24s%s%8s  %s", r.Step, word, took, r.Note), " "))
	if r.Fault == nil {
		return
	}
	for line := range strings.Lines(t.notTwice(r).String()) {
		fmt.Fprint(t.stdout, "    ", line)
	}
	fmt.Fprintln(t.stdout)
}

// notTwice is a step's fault, without what an earlier step has told in the same words.
func (t *nodeTest) notTwice(r nettest.Result) *nettest.Fault {
	fault := *r.Fault
	for _, before := range t.tested.Steps[:len(t.tested.Steps)-1] {
		if f := before.Fault; f != nil && fault.Lost != "" && f.Lost == fault.Lost && slices.Equal(f.Do, fault.Do) {
			fault.Lost, fault.Do, fault.Also = "as in "+before.Step, nil, nil
			break
		}
	}
	return &fault
}

// finish tells the whole.
func (t *nodeTest) finish() error {
	count := make(map[nettest.Status]int)
	for _, r := range t.tested.Steps {
		count[r.Status]++
	}
	took := time.Since(t.started)
	t.tested.Passed, t.tested.Seconds = count[nettest.Failed] == 0, took.Seconds()
	err := t.print(t.tested, func() error {
		for _, w := range t.tested.Warnings {
			if _, err := fmt.Fprintln(t.stdout, "Warning:", nettest.Plain(w)); err != nil {
				return err
			}
		}
		_, err := fmt.Fprintf(t.stdout, "%d passed, %d skipped, %d failed in %s\n",
			count[nettest.Passed], count[nettest.Skipped], count[nettest.Failed], took.Round(10*time.Millisecond))
		return err
	})
	if err == nil && count[nettest.Failed] > 0 {
		err = fmt.Errorf("%d of %d steps failed", count[nettest.Failed], len(t.tested.Steps))
	}
	return err
}
