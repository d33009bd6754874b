// Package inspect compares the network of a sandbox, as ADD left it, with the kernel
// as it is now: the namespace, its interfaces, addresses and routes, the host's end,
// the bridge, the sysctls, the table of hostPorts. It reads over netlink and /proc/sys
// in the namespace of its caller, executes nothing, changes nothing, and takes a few
// milliseconds. Only [Mend] changes something: it sets again what is missing.
//
// What it expects comes from the CNI result; what results do not say, such as that a
// bridge has the gateway's address, from the configuration, for plugins that it knows.
// It rather finds nothing than something that may be as it should be: of an interface
// that is gone the addresses are not missed as well, and of plugins that it does not
// know only what their result says.
package inspect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/crinet-project/crinet/cni"
)

// Parts of a sandbox's network.
const (
	PartNetNS     = "network namespace"
	PartInterface = "interface"
	PartAddress   = "address"
	PartRoute     = "route"
	PartHostEnd   = "host's end"
	PartBridge    = "bridge"
	PartWay       = "way to the pod"
	PartSysctl    = "sysctl"
	PartTable     = "table"
	// PartUnknown is what could not be looked at.
	PartUnknown = "not looked at"
)

// Parts are all parts that can be amiss.
func Parts() []string {
	return []string{PartNetNS, PartInterface, PartAddress, PartRoute, PartHostEnd, PartBridge, PartWay, PartSysctl, PartTable}
}

// Finding is one thing that was compared.
type Finding struct {
	Part string `json:"part"`
	// Want is what should be; Have is what is, empty if that is the same.
	Want string `json:"want"`
	Have string `json:"have,omitempty"`
	OK   bool   `json:"ok"`
	// Mend is what to do, empty if all is well. It may have several lines: a command, and
	// an alternative that begins with "or".
	Mend string `json:"mend,omitempty"`
	// Fix is what [Mend] can do about it; empty if it can do nothing.
	Fix Fix `json:"-"`
}

// String says what is amiss.
func (f Finding) String() string {
	if f.OK {
		return f.Part + " " + f.Want
	}
	return fmt.Sprintf("%s: want %s, have %s", f.Part, f.Want, f.Have)
}

// Subject is the network of a sandbox.
type Subject struct {
	// Attachment has ADD's result. Its configuration may be missing: then less is
	// expected.
	Attachment cni.Attachment
	// Hairpin says that the host's end is to be in hairpin mode if it is on a bridge.
	Hairpin bool
	// Table says what the sandbox lacks in the table inet crinet; nil if it needs
	// nothing there.
	Table func(context.Context) (missing []string, err error)
}

// remake is the mend of what nobody can put back.
const remake = "delete the pod: its controller makes a new one, with a new network"

// orRemake is the alternative to a command in the sandbox.
const orRemake = "\nor " + remake

// patience bounds a request to the kernel.
const patience = 2 * time.Second

// Inspect compares the network of a sandbox with the kernel. It ends when ctx does,
// and then says what was not looked at.
func Inspect(ctx context.Context, s Subject) []Finding {
	n, err := OpenNode()
	if err != nil {
		return []Finding{unknown(err)}
	}
	defer n.Close()
	return n.Inspect(ctx, s)
}

// inspect makes the findings. close must be called when nobody needs the handles any more.
func (i *inspection) inspect(ctx context.Context) {
	if err := i.run(ctx); err != nil {
		i.add(unknown(err))
	}
}

func (i *inspection) close() {
	if i.pod != nil {
		i.pod.Close()
	}
}

func unknown(err error) Finding {
	return Finding{Part: PartUnknown, Want: "an answer of the kernel", Have: err.Error(), Mend: "ask again; if it stays so, see the kernel's log (dmesg)"}
}

// OK says whether all that was compared is as it should be.
func OK(findings []Finding) bool {
	for _, f := range findings {
		if !f.OK {
			return false
		}
	}
	return true
}

// inspection is one Inspect.
type inspection struct {
	subject  Subject
	netns    string
	node     *Node
	want     expected
	host     *netlink.Handle // in the caller's namespace
	pod      *netlink.Handle // in the sandbox's
	findings []Finding

	links map[string]netlink.Link // name -> interface of the sandbox that is up
	ends  []end
	fixes []fix
}

// end is a veth pair: the sandbox's end and the host's.
type end struct{ inner, outer netlink.Link }

func (i *inspection) add(f Finding) { i.findings = append(i.findings, f) }

// check adds a finding that is good if have is empty.
func (i *inspection) check(part, want, have, mend string) bool {
	f := Finding{Part: part, Want: want, Have: have, OK: have == "", Mend: mend}
	if f.OK {
		f.Mend = ""
	}
	i.add(f)
	return f.OK
}

func (i *inspection) run(ctx context.Context) (err error) {
	if i.want, err = expect(&i.subject.Attachment); err != nil {
		return err
	}
	steps := []func(context.Context) error{i.inHost, i.inTable, i.sysctls}
	if i.checkNetNS() {
		if i.pod, err = handleIn(i.netns); err != nil {
			return err
		}
		if err := i.pod.SetSocketTimeout(patience); err != nil {
			return err
		}
		steps = append([]func(context.Context) error{i.interfaces, i.addresses, i.routes, i.hostEnds}, steps...)
	}
	for _, step := range steps {
		if err := errors.Join(ctx.Err(), step(ctx)); err != nil {
			return err
		}
	}
	return nil
}
