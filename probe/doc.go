// Package probe finds the CNI plugins in the bin dirs and asks those that a
// configuration names for the versions of the CNI specification that they
// support (section "VERSION"). Other executables are listed by name and never
// run: a bin dir may hold anything.
//
// A [Prober] lives as long as the daemon. It asks a file once, and again after
// the file has changed. There are three kinds of answers:
//
//   - good: the versions. "unknown CNI_COMMAND: VERSION" is one too: it means
//     0.1.0, as in libcni's GetVersionInfo.
//   - final: the program itself answered, but not as a plugin does. A wrapper
//     that does not pass VERSION on is refused for this reason, as dockershim
//     and CRI-O refuse it: libcni's ValidateNetworkList needs the versions.
//   - transient: the program could not be started, did not answer in time or was
//     killed by a signal. It is asked again with backoff. Until then the last
//     good answer of the same path counts, also if the file has changed since.
//
// What [Prober.Probe] returns is immutable.
//
// Limits: 512 files are listed per directory; an answer may have 64 KiB; a file
// may take Config.Timeout to answer, and no file that answers waits for one
// that hangs.
package probe
