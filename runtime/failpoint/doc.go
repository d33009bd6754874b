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
