// Package config holds what crinetd is told: its flags, and the CNI network
// configurations in the conf dir.
//
// [Parse] turns the command line into [Options]. [ReadDir] reads the conf dir,
// and [Scan], a pure function, makes an immutable [Snapshot] of what was read,
// of the plugins that a probe found and of the snapshot before: every usable
// [Network] in file-name order, and a [Problem] for everything else. A file
// that was good and now is not keeps its last good version until it is good
// again or gone. [Snapshot.Select] picks the network that --network-plugin
// names. A [Watcher] does all this again whenever the conf dir or a bin dir
// changes, and lives as long as the daemon.
//
// Limits: 256 configuration files of 1 MiB each in the conf dir and as many in
// each network's folder, 32 MiB in all, 64 plugins a network.
package config
