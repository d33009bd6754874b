// Package nettest sends traffic between network namespaces that stand for two pods and
// the node they are on, and tells which way works, which does not, and where a packet
// was lost. It knows nothing of who made the namespaces.
//
// What fails is sent once more while nftables traces it: a table of its own name,
// crinet_trace, is there for that moment only, and belongs to a socket of this
// process, so that the kernel removes it with the process. Without a verdict in the
// trace, the hooks that saw the packet and the kernel's settings tell the cause.
package nettest
