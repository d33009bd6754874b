// Package dhcpd keeps the daemon of the IPAM plugin dhcp running: that plugin
// only passes ADD and DEL on to `dhcp daemon`, which holds the leases and renews
// them.
//
// A [Manager] lives as long as crinetd; the daemons do not. Leases are in a
// daemon's memory, so that it is started in a session of its own, outlives
// crinetd, and is taken over by the next one, which knows it by the pid file in
// the run dir. A service manager must let it live as well: a systemd unit of
// crinetd needs KillMode=process. One that was not started by crinetd is used
// as it is and never ended.
//
// A daemon is needed while the selected network has IPAM of type dhcp, and
// beyond that while a pod holds a lease: its DEL goes through the daemon. One
// that dies is started again at once, and then ever later, and has no lease
// then: Config.Started is there to have them taken up again (CHECK does it).
package dhcpd
