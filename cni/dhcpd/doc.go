// Package dhcpd keeps the daemon of the IPAM plugin dhcp running. That plugin
// passes ADD, CHECK and DEL on to `dhcp daemon`, which holds the leases and
// renews them.
//
// A daemon is needed while the selected network has IPAM of type dhcp, and
// beyond that while a pod holds a lease, since its DEL goes through the daemon.
//
// Whoever listens on the daemon's socket is used as it is: on a node with systemd
// the units cni-dhcp.socket and cni-dhcp.service, which belong to the init
// system. Where nobody listens, the [Manager] starts a daemon and watches over
// it. Leases are in a daemon's memory, so that the daemon outlives crinetd: it
// has a session of its own, and the next crinetd knows it by the pid file in the
// run dir. A systemd unit of crinetd that has to start daemons needs
// KillMode=process.
//
// A daemon that dies is started again, ever later if it goes on dying. It then
// has no leases. CHECK takes up the lease of each pod that runs; a chain without
// CHECK cannot do that, and its pods are named in the log.
package dhcpd
