// Package pluginexec runs one CNI plugin binary once, as the CNI
// specification's "CNI protocol" section has it: configuration on stdin,
// parameters in the environment, the result on stdout.
//
// A run never outlives its context by more than a fraction of a second: the
// plugin gets a process group of its own, which is killed as a whole, and
// descendants that left the group but hold the pipes open are not waited for.
// Memory is bounded by the limits in [Config], whatever the plugin prints. The
// environment is what the caller gives and a PATH, nothing else of the
// daemon's.
//
// A descendant that stays behind after the plugin itself has ended by itself
// is left alone. The parent-death signal is not used: the kernel ties it to
// the thread that forked, and Go moves goroutines between threads.
//
// An [Exec] is immutable and safe for concurrent use; it needs no closing.
package pluginexec
