// Package cni drives CNI network configuration lists: it is the network plugin
// behind --network-plugin=cni and --network-plugin=NAME.
//
// An [Attachment] holds everything that one attachment of a sandbox to a
// network was made with. SetUpPod runs ADD over the chain, TearDownPod runs DEL
// over the same chain in reverse; both read the attachment and nothing else, so
// that a DEL years later, after the conf dir has changed or gone, is the DEL of
// the ADD that was run. The caller keeps the attachment (in its journal) and
// serialises the calls for one attachment; calls for different attachments run
// side by side, and this package holds no lock.
//
// Sources: CNI spec 1.1.0, sections 2 (execution protocol) and 3 (execution of
// network configurations); CNI conventions (capability args).
package cni
