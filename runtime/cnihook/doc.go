// Package cnihook serves cni.sock: it takes the calls that the container
// runtime makes to the CNI plugin crinet and hands them to a [Handler].
//
// A [Server] checks all of a call before the handler sees it: versions, ids,
// paths and arguments as the CNI specification has them. Afterwards it gives
// the handler's result the version that the runtime asked for, and every error
// the form of a CNI error that names the pod.
//
// Each call runs on its own goroutine with a context that ends when the
// plugin's process does, that is when the runtime gave up waiting. A panic of
// the handler ends its call alone.
//
// Limits: as many connections at once as configured, further ones wait to be
// accepted; a client that does not send its request in time is cut off. A
// Server has no state of its own between calls. It can serve several listeners,
// and again after Serve returned.
package cnihook
