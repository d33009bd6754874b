// Command crinet is the CNI plugin that the container runtime executes. It sends
// the runtime's call to crinetd over a unix socket and prints crinetd's answer. It
// has no state. Because every pod waits for it to start, it uses the standard
// library alone, without package net.
//
// Its network configuration names the daemon's socket:
//
//	{"cniVersion": "1.0.0", "name": "crinet", "type": "crinet", "socket": "/run/crinet/cni.sock"}
package main

import "os"

func main() {
	os.Exit(run(os.Getenv, os.Stdin, os.Stdout))
}
