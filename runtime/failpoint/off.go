//go:build !failpoint

package failpoint

import (
	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/runtime/engine"
	"github.com/crinet-project/crinet/runtime/proxy"
)

// Journal returns j.
func Journal(j engine.Journal) engine.Journal { return j }

// Runner returns r.
func Runner(r cni.Runner) cni.Runner { return r }

// Builtin returns b.
func Builtin(b cni.BuiltinRunner) cni.BuiltinRunner { return b }

// HostPorts returns h.
func HostPorts(h engine.HostPorts) engine.HostPorts { return h }

// Hairpin returns h.
func Hairpin(h engine.Hairpin) engine.Hairpin { return h }

// Hooks returns hooks.
func Hooks(hooks map[string]proxy.Hook) map[string]proxy.Hook { return hooks }

// Send returns nil: answers are written as they are.
func Send() func(command string, write func() error) error { return nil }
