// Package probe finds the CNI plugins in the bin dirs and asks each for the
// versions of the CNI specification that it speaks (the VERSION verb).
//
// A [Prober] lives as long as the daemon and remembers what each file
// answered, by the file's identity: a file is executed again only after it
// changed, one that hangs or is no plugin too. What [Prober.Probe] returns is
// immutable.
//
// Limits: 512 files are probed per directory; an answer may have 64 KiB; a
// file may take Config.Timeout to answer, and no file that answers waits for
// one that hangs.
package probe
