// Package packaging holds the units of the init system, so that crinetctl can install
// them.
package packaging

import "embed"

// Units are systemd's units, in the folder systemd.
//
//go:embed systemd/crinetd.service systemd/crinetd.socket
var Units embed.FS
