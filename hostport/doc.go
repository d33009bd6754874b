// Package hostport maps the hostPorts of pods and masquerades their addresses in one
// nftables table, `inet crinet`, and keeps that table right.
//
// # The table
//
// With one pod, default/web behind the bridge cni0, that is mapped and masqueraded,
// `nft list table inet crinet` prints this; a test compares it.
//
//	table inet crinet {
//		map ports4 {
//			type inet_proto . inet_service : ipv4_addr . inet_service
//			elements = { tcp . 80 comment "default/web" : 10.1.0.2 . 8080 }
//		}
//
//		map addr_ports4 {
//			type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
//			elements = { 127.0.0.1 . udp . 53 comment "default/web" : 10.1.0.2 . 5353 }
//		}
//
//		set hairpin4 {
//			type ipv4_addr . ipv4_addr
//			elements = { 10.1.0.2 . 10.1.0.2 comment "default/web" }
//		}
//
//		set protected4 {
//			type ipv4_addr
//			elements = { 10.96.0.1 }
//		}
//
//		map masquerade4 {
//			type ipv4_addr : verdict
//			elements = { 10.1.0.2 comment "default/web" : goto outside_10.1.0.0/24 }
//		}
//
//		map ports6 {
//			type inet_proto . inet_service : ipv6_addr . inet_service
//			elements = { tcp . 80 comment "default/web" : fd00:1::2 . 8080 }
//		}
//
//		map addr_ports6 {
//			type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service
//			elements = { 2001:db8:1::1 . tcp . 443 comment "default/web" : fd00:1::2 . 8443 }
//		}
//
//		set hairpin6 {
//			type ipv6_addr . ipv6_addr
//			elements = { fd00:1::2 . fd00:1::2 comment "default/web" }
//		}
//
//		set protected6 {
//			type ipv6_addr
//			elements = { fd00:96::1 }
//		}
//
//		map masquerade6 {
//			type ipv6_addr : verdict
//			elements = { fd00:1::2 comment "default/web" : goto outside_fd00_1__/64 }
//		}
//
//		set route_localnet {
//			type ifname
//			elements = { "cni0" }
//		}
//
//		set same_link {
//			type ifname . ifname
//			elements = { "cni0" . "cni0" }
//		}
//
//		chain guard {
//			type filter hook prerouting priority raw; policy accept;
//			iifname @route_localnet ip saddr 127.0.0.0/8 drop comment "CVE-2020-8558: 127.0.0.0/8 is the node's own"
//			iifname @route_localnet ip daddr 127.0.0.0/8 drop comment "CVE-2020-8558: 127.0.0.0/8 is the node's own"
//		}
//
//		chain prerouting {
//			type nat hook prerouting priority dstnat + 10; policy accept;
//			ip daddr 127.0.0.0/8 return comment "for the node's own processes only"
//			ip6 daddr ::1 return comment "for the node's own processes only"
//			fib daddr type local jump hostports
//		}
//
//		chain output {
//			type nat hook output priority -90; policy accept;
//			ip6 saddr ::1 ip6 daddr ::1 return comment "the kernel routes ::1 to itself only"
//			fib daddr type local jump hostports
//		}
//
//		chain postrouting {
//			type nat hook postrouting priority srcnat; policy accept;
//			ct status dnat ip saddr . ip daddr @hairpin4 masquerade comment "a pod that reaches itself through its hostPort"
//			ct status dnat ip6 saddr . ip6 daddr @hairpin6 masquerade comment "a pod that reaches itself through its hostPort"
//			ct status dnat iifname . oifname @same_link masquerade comment "pods that would answer each other past the node"
//			ct status dnat oifname != "lo" ip saddr 127.0.0.0/8 masquerade comment "127.0.0.0/8 cannot leave the node"
//			ip saddr vmap @masquerade4
//			ip6 saddr vmap @masquerade6
//		}
//
//		chain hostports {
//			ip daddr @protected4 return comment "addresses of Services"
//			ip6 daddr @protected6 return comment "addresses of Services"
//			dnat ip to ip daddr . meta l4proto . th dport map @addr_ports4
//			meta nfproto ipv4 dnat ip to meta l4proto . th dport map @ports4
//			dnat ip6 to ip6 daddr . meta l4proto . th dport map @addr_ports6
//			meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @ports6
//		}
//
//		chain outside_10.1.0.0/24 {
//			ip daddr 10.1.0.0/24 return
//			ip daddr 224.0.0.0/4 return
//			masquerade
//		}
//
//		chain outside_fd00_1__/64 {
//			ip6 daddr fd00:1::/64 return
//			ip6 daddr ff00::/8 return
//			masquerade
//		}
//	}
//
// What changes are elements, and the chains outside_SUBNET: one for each subnet that
// masqueraded pods are in. A connection thus costs a few look-ups however many pods
// and mappings there are. All that a pod needs comes and goes in one transaction
// whose size depends on that pod alone.
//
//   - hostports: only destinations that are local to the node are translated, and
//     only after the Service rules of others (priority dstnat + 10). A mapping for
//     one address wins over one for all addresses.
//   - protected4, protected6: addresses of interfaces that hold Services,
//     [Config.ProtectedInterfaces], are never translated. kube-proxy in IPVS mode
//     keeps ClusterIPs, external IPs and load balancer addresses on kube-ipvs0; these
//     are local addresses, which no rule of its own translates before us.
//   - postrouting: the client's address is kept, except where the answer would not
//     come back the same way: a pod that reaches itself (hairpin4, hairpin6); pods
//     on one link, which would answer each other directly (same_link:
//     a bridge without bridge-nf-call-iptables, or the gateway interface of a
//     bridge with a VLAN); connections from 127.0.0.0/8.
//   - masquerade4, masquerade6: addresses of pods whose connections leave their subnet
//     with an address of the node, as the reference plugins' ipMasq has it; multicast
//     does not. A connection of anybody else costs the one look-up that does not find
//     it. Connections that stand when a pod goes are left alone, as those plugins
//     leave them.
//   - prerouting: a hostPort on a loopback address is for processes of the node. Who
//     sends there from outside must not have the packet translated, or it would pass
//     the checks that the kernel makes afterwards.
//   - guard: connections from 127.0.0.1 to a pod need route_localnet on the interface
//     that leads to the pod, and so this chain drops what comes in there from or for
//     127.0.0.0/8 (CVE-2020-8558). Other interfaces are not touched: where
//     route_localnet is off the kernel drops such packets itself, and in a VRF the
//     node's own packets arrive on the VRF's device.
//   - output: a process that sends from ::1 to ::1 reaches the node itself, since the
//     kernel does not route ::1. From any other address of the node to ::1, hostPorts
//     answer.
//
// # Desired state
//
// What a pod needs is a pure function of the pod and of the way to it (needOf). The
// desired state is the union of that over all pods. A change of a pod changes the
// union and sends the difference; [Manager.Run] compares all of the kernel with the
// union after somebody else has changed the table, after a failure, and once in
// [Config.CheckInterval]. Anything that failed is thus tried again.
//
// route_localnet is switched on where a pod needs it and it was off. The interface is
// recorded before, in [Config.Records] and in the table, and switched off when the
// last pod that needs it is gone, by whichever run sees that.
//
// # Lifetimes
//
// A [Manager] lives as long as the daemon. [Manager.Sync] makes the kernel equal to
// what the caller knows, [Manager.Run] keeps it so until its context ends. Neither
// end of a Manager touches the table: mappings work on while nobody runs. Under
// [Config.OnDemand] there is no table while no pod needs one. A [Reservation] lives
// from admission until its pod is mapped or it is released.
//
// # Limits
//
// [MaxMappings] mappings a pod. A hostPort answers on 127.0.0.1 only where the pod is
// behind a bridge, a veth or another virtual interface of the node, without a gateway
// in between. Pods behind macvlan or ipvlan cannot be reached from their own node:
// their hostPorts are mapped, and a warning says so. Pods of one VLAN of a bridge
// reach each other by the node's address only without bridge-nf-call-iptables: with
// it the bridge translates the frame itself, and cannot send it into a VLAN. Filter rules of others, such as
// a forward policy of drop, stay in force. Without bridge-nf-call-iptables, pods of one
// bridge reach each other by the node's address from Linux 5.7 on.
//
// NodePorts win over hostPorts of the same number. In kube-proxy's modes iptables and
// nftables that is by the order of rules. IPVS translates after our rules: there,
// that is where a protected interface exists, the ipsets are read in which kube-proxy
// keeps NodePorts. A pod that wants one is refused, or with [Warn] the mapping is left
// out. A mapping that is older than the NodePort is left out as well, two seconds after
// kube-proxy has changed addresses on kube-ipvs0, or else at the next check.
//
// Linux 5.2 or newer is needed, with nft_fib_inet, nft_ct, nft_nat and nft_masq.
// Without nf_conntrack_netlink older UDP and SCTP flows are not ended, without
// inet_diag or udp_diag listening processes are not seen; [Manager.Report] says so.
package hostport
