// Package runtime is the network plugin manager: it drives the network part of
// every pod sandbox's life.
//
// A [Manager] is called from two sides. From the kubelet's side the CRI hooks
// (one verb a file: hook_*.go) see a sandbox asked for, stopped, removed. From
// the runtime's side the CNI hook server calls Add, Del, Check, Status and GC
// while the runtime is at work on that same sandbox. The four steps of a
// sandbox's lifecycle ([Step]) begin and end in these calls, in CNI's order:
// the sandbox is created, its network namespace stands, the plugin is called,
// the process starts.
//
// All changes for one sandbox are serial, on a lock of that sandbox; sandboxes
// do not wait for each other, and no other lock is held while a plugin runs.
// What was done for a sandbox stands in the journal before it is done; what
// cannot be undone at once is tried again until it is ([Manager.Run]).
package runtime
