// Package builtin has the reference plugins bridge, ptp and host-local, and the
// delegation of flannel, as functions of crinetd. What stands on the node after ADD
// is what the plugin's binary leaves: the same result, links, addresses, routes,
// sysctls and files. That takes a few netlink messages in the place of two to twelve
// processes.
//
// There is one thing that [Plugins] leaves to its caller: masquerade (ipMasq).
//
// DEL answers when the sandbox has no way left to send or receive and its address is
// free. It sets the host's end of the veth pair down, which closes the way in both
// directions in microseconds, and puts it into an interface group of crinet's own
// ([Doomed]). The kernel takes 15 to 30 ms to destroy a link, nearly all of it waiting
// for grace periods, and as long for forty of them: [Plugins.Run] removes the whole
// group at once. The group is the record of what must still be removed: it is set with
// the same message that closes the way, lives as long as the link, and so survives a
// crinetd that is killed.
//
// [Known] says whether a configuration can run here: every key of it must be one that
// the built-in knows. Everything else is executed.
//
// Sources: containernetworking/plugins v1.9.1 (main/bridge, main/ptp, ipam/host-local)
// and v0.9.1 (meta/flannel); CNI spec 1.1.0; rtnetlink(7), veth(4).
package builtin
