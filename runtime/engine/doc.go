// Package engine attaches pod sandboxes to their network and detaches them. It
// knows nothing of gRPC or of sockets: package cri drives it from the kubelet's
// side, package cnihook from the runtime's.
//
// A pod's way up, in the order in which it happens:
//
//	Begin    the kubelet asks for a sandbox: admission        (admit.go)
//	Attach   the runtime made the sandbox and its namespace   (attach.go)
//	Started  the runtime started the sandbox's process        (flight.go)
//
// and its way down: Detach is the runtime's DEL, DetachSandbox makes sure of it
// when the runtime has answered the kubelet (detach.go).
//
// Whatever goes wrong in between, one sweeper (sweep.go) names the attachments
// that belong to nobody, and one queue (queue.go) undoes them until it works.
//
// All changes for one attachment are serial, on a lock of that attachment;
// attachments do not wait for each other. An attachment is journalled before it
// is made, and its record goes when it is undone.
package engine
