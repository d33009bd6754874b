// Package kernel reads and changes, over netlink, the parts of the Linux kernel
// that mapping hostPorts takes: one nftables table, links, routes and addresses,
// listening sockets, and connection tracking. It knows nothing of pods; what the
// table holds and why is package hostport's.
//
// A [Kernel] works in one network namespace. Netlink requests are answered before
// they return, within microseconds to milliseconds, so that its methods take no
// context; a deadline of a minute ends what would hang.
//
// Lists that the kernel marks as interrupted (NLM_F_DUMP_INTR) by a change made
// meanwhile are read again; [ErrInterrupted] is returned if that happens five
// times in a row.
package kernel
