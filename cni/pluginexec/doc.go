// Package pluginexec runs one CNI plugin binary once, as the CNI
// specification's "CNI protocol" section says: configuration on stdin,
// parameters in the environment, the result on stdout.
//
// A run outlives its context by a fraction of a second at most: the plugin is
// the leader of a process group of its own, and the whole group is killed.
// Descendants that left the group but hold the pipes open are not waited for.
// The limits in [Config] bound the memory of a run, whatever the plugin prints.
// The environment is what the caller gives, a PATH and GOMAXPROCS, which keeps the
// start of Go programs short; the plugin gets nothing else of the daemon's.
//
// A descendant that stays behind after the plugin has ended by itself is left
// alone. The parent-death signal is not used: the kernel ties it to the thread
// that forked, and Go moves goroutines between threads.
//
// An [Exec] is immutable and safe for concurrent use; it needs no closing.
package pluginexec
