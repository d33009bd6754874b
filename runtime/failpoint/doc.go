// Package failpoint lets a test kill crinetd at a named boundary of a sandbox's
// lifecycle: before or after a journal write, the exec of a plugin, a change of
// the kernel's hostPort table, an answer. It exists in builds with the tag
// failpoint; in all others [Hit] is empty and is inlined away.
//
// A point is armed by writing its name into the file that [File] names. The
// first goroutine that comes to the point removes the file and kills the
// process with SIGKILL, so that nothing is cleaned up, and the next process
// gets past the point.
//
// A name is made of what is done, with what, and when: "journal attached after",
// "exec DEL bridge before". [Before] and [After] are the last word.
package failpoint

// File is where a test writes the name of the point at which to die.
const File = "/run/crinet.failpoint"

// When a point is hit.
const (
	Before = "before"
	After  = "after"
)
