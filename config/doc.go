// Package config holds what crinetd is told: its flags, and the CNI network
// configurations in the conf dir.
//
// [Parse] turns the command line into [Options]. [ReadDir] reads the conf dir,
// and [Scan], a pure function, makes an immutable [Snapshot] of what was read,
// of the plugins that a probe found and of the snapshot before: every usable
// [Network] in file-name order, and a [Problem] for everything else. A file
// that was good and is broken now keeps its last good version until it is good
// again or gone, also over a restart. [Snapshot.Select] picks the network that
// --network-plugin names, and [Selection] follows it.
//
// A [Watcher] lives as long as the daemon. Each second it takes a fingerprint of
// the directories, by stat(2) alone, and compares it with the last one; a
// difference means: read the conf dir, ask the plugins that it names, scan.
// inotify makes this faster (a change in place of a file is live within 250 ms,
// anything else within 2 s), and nothing else depends on it.
//
// Limits: 256 configuration files of 1 MiB each in the conf dir and as many in
// each network's folder, 32 MiB in all, 64 plugins a network.
package config
