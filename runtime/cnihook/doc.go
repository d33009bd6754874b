// Package cnihook serves cni.sock: it takes the calls that the container
// runtime makes to the CNI plugin crinet and hands them to a [Handler].
//
// A [Server] checks versions, ids, paths and arguments of a call, as the CNI
// specification defines them, before the handler sees it. Afterwards it converts
// the handler's result to the version that the runtime asked for, and every error
// to a CNI error that names the pod.
//
// Each call runs on its own goroutine. Its context ends when the plugin's process
// ends, which means that the runtime has given up waiting. A panic of the handler
// ends that call only.
//
// The number of connections at once is limited; further ones wait to be accepted.
// The server closes the connection of a client that does not send its request in
// time. A Server keeps no state between calls. It can serve several listeners, and
// serve again after Serve has returned.
package cnihook
