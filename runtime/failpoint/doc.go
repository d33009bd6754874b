// Package failpoint lets a test kill crinetd at a named boundary of a sandbox's
// lifecycle: before or after a journal write, the exec of a plugin, a change of
// the kernel's hostPort table, a call to the runtime, an answer. In builds with
// the tag failpoint its functions decorate the parts of crinetd; in all other
// builds they return their argument.
//
// A test arms a point by writing the point's name into [File]. The first goroutine
// that reaches the point removes the file and kills the process with SIGKILL, so
// that nothing is cleaned up and the next process passes the point.
//
// A name says what is done, with what, and when: "journal attached after", "exec
// DEL bridge before".
package failpoint

// File is where a test writes the name of the point at which crinetd dies.
const File = "/run/crinet.failpoint"

// MutantVariable names the environment variable by which a test has crinetd, in builds
// with the tag failpoint, do wrong on purpose: a test of the tests. Its value is a
// [Mutant]; empty is none.
const MutantVariable = "CRINET_MUTANT"

// Mutant is a fault that the decorators put into crinetd.
type Mutant string

// The faults. They stand in the decorators, so that what is decorated has none of it.
const (
	// LostWrite means: the journal acknowledges the record of an ADD that has ended and drops it.
	LostWrite Mutant = "lost write"
	// ForgottenHostPorts means: the journal keeps records without their hostPorts.
	ForgottenHostPorts Mutant = "forgotten hostPorts"
	// TodaysConfiguration means: the journal hands out records with the configuration that is
	// in the conf dir now.
	TodaysConfiguration Mutant = "today's configuration"
	// StaleState means: who reads the whole journal, as the sweeper does, gets attachments
	// that stand as such whose ADD was cut off.
	StaleState Mutant = "stale state"
	// RecordFirst means: a record goes, with the cache's, when it is read for DEL, not after DEL.
	RecordFirst Mutant = "record first"
	// DroppedDel means: DEL of all plugins is reported as done.
	DroppedDel Mutant = "dropped DEL"
	// AddAfterDel means: a plugin that ran DEL runs ADD again.
	AddAfterDel Mutant = "ADD after DEL"
	// EarlierAnswer means: ADD of a built-in plugin is answered with the result of the first one.
	EarlierAnswer Mutant = "earlier answer"
	// FreedAddresses means: host-local's files go before each ADD.
	FreedAddresses Mutant = "freed addresses"
	// ElementLeft means: hostPorts are not unmapped.
	ElementLeft Mutant = "element left"
	// LateUnmap means: hostPorts are unmapped after the address is free.
	LateUnmap Mutant = "late unmap"
)

// Mutants are all of them.
func Mutants() []Mutant {
	return []Mutant{
		LostWrite, ForgottenHostPorts, TodaysConfiguration, StaleState, RecordFirst, DroppedDel, AddAfterDel, EarlierAnswer,
		FreedAddresses, ElementLeft, LateUnmap,
	}
}

// MutantConf and MutantNetwork are the configuration list that [TodaysConfiguration]
// reads, and the network of [FreedAddresses].
const (
	MutantConf    = "/etc/cni/net.d/10-recorded.conflist"
	MutantNetwork = "recorded"
)
