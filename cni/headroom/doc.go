// Package headroom counts the addresses of host-local's ranges: how many are used,
// free, leaked, or reserved, so that an operator hears of a range that runs out before
// the first pod fails.
//
// It reads host-local's own files: one for each address, named after it, with the id
// of the container and its interface. A [Counter] counts in the background, when a
// folder of such files has changed and otherwise in intervals, and never for longer
// than a fiftieth of the time; whoever asks it is answered from memory. An address is
// leaked when its file is older than a pod's start can take and neither the journal
// nor the runtime knows the container: nobody will ever free it.
//
// Sources: containernetworking/plugins v1.9.1 (ipam/host-local), whose packages parse
// the ranges.
package headroom
