// Package cni drives CNI network configuration lists: it is the network plugin
// behind --network-plugin=cni and --network-plugin=NAME.
//
// An [Attachment] holds everything that one attachment of a sandbox to a
// network was made with. SetUpPod runs ADD over the chain, TearDownPod runs DEL
// over the same chain in reverse. Both read the attachment and nothing else, so
// that DEL matches the ADD that was run, whatever has become of the conf dir.
// The caller keeps the attachment (in its journal) and makes the calls for one
// attachment one after another. Calls for different attachments run side by
// side; only the lanes of ADD, DEL and CHECK bound how many.
//
// An error that a plugin printed is a [wire.Error]; a run that failed without
// one is a [pluginexec.Error], which names the plugin and its stderr.
//
// Sources: CNI spec 1.1.0, sections 2 (execution protocol) and 3 (execution of
// network configurations); CNI conventions (capability args).
package cni
