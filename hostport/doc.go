// Package hostport maps the hostPorts of pods in one nftables table,
// `inet crinet`, and keeps that table right.
//
// # What stands in the kernel
//
// The chains are static; what changes are the elements of a few maps, keyed by
// protocol and port, or by address, protocol and port, once for IPv4 and once
// for IPv6. A packet costs two look-ups however many mappings there are, and
// all ports of a pod come and go in one transaction of a size that depends on
// that pod alone. Every element names its pod in a comment.
//
// Only destinations that are local to the node are translated, and only after
// the Service rules of others (priority dstnat + 10). The client's address is
// kept but where the answer would not come back the same way: masqueraded are a pod
// that reaches itself, pods of one bridge whose frames don't pass netfilter
// (bridge-nf-call-iptables is 0), and connections from 127.0.0.0/8. For the latter
// route_localnet is switched on, where mappings need it and nowhere else, on the
// interface that leads to the pod; a rule before everything else drops
// 127.0.0.0/8 that comes from outside (CVE-2020-8558).
//
// # Lifetimes
//
// A [Manager] lives as long as the daemon. [Manager.Sync] makes the kernel equal
// to what the caller knows, [Manager.Run] keeps it so until its context ends.
// Neither end of a Manager touches the table: mappings work on while nobody
// runs. [Manager.Remove] takes everything away. A [Reservation] lives from
// admission until its pod is mapped or it is released.
//
// The Manager's memory is what is right; the kernel is read only at Sync, after
// somebody else has changed the table, after a transaction has failed, and once
// in [Config.CheckInterval].
//
// # Limits
//
// [MaxMappings] mappings a pod. ::1 can't be mapped: the kernel routes it
// nowhere but to itself. A hostPort answers on 127.0.0.1 only where the pod is
// behind a bridge, a veth or another virtual interface of the node, without a
// gateway in between. Filter rules of others, such as a dropping forward policy,
// are theirs.
// Without bridge-nf-call-iptables, pods of one bridge reach each other by the
// node's address from Linux 5.7 on.
package hostport
