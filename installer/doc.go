// Package installer puts crinet on a node and takes it off again.
//
// It finds the container runtime and the kubelet by their files ([find]), computes
// which files must be what ([plan]), and makes them so. Everything that was there
// before is kept in a manifest, so that any failure, and uninstall, give it back to
// the byte. What was installed is computed from the files as they were before: a
// second install changes nothing, and that of a later release changes what differs.
//
// With a root other than / it works on the tree of an image or of a test. Services are
// started where the tree is that of a running system.
package installer
