package cni

import (
	"context"
	"slices"
	"strings"
	"time"
)

// Run is one run of a plugin for an attachment.
type Run struct {
	Type    string // the plugin's
	Path    string // of its binary; empty for one that is built in
	Command string // ADD, DEL, CHECK or STATUS
	Builtin bool   // it ran inside crinetd; otherwise its binary was executed
	Env     []string
	Stdin   []byte // its configuration
	Start   time.Time

	// What follows is known at the end of the run.

	Stdout   []byte // its result, or its error
	Stderr   []byte // bounded by the Runner
	Err      error
	Duration time.Duration
}

// Observe is told that a run of a plugin begins. The run has the context that it
// returns, and in its environment the variables; ended is called when the run has
// ended. It must not keep the run's bytes, nor change them.
type Observe func(context.Context, Run) (ctx context.Context, env []string, ended func(Run))

// Observers makes one Observe of several. Each gets the context of the one before.
func Observers(all ...Observe) Observe {
	return func(ctx context.Context, run Run) (context.Context, []string, func(Run)) {
		var env []string
		ends := make([]func(Run), len(all))
		for i, observe := range all {
			var more []string
			ctx, more, ends[i] = observe(ctx, run)
			env = append(env, more...)
		}
		return ctx, env, func(run Run) {
			for _, ended := range slices.Backward(ends) {
				ended(run)
			}
		}
	}
}

// begin tells of a run that is for an attachment or STATUS. ended must be called
// with its outcome.
func (e *execAdapter) begin(ctx context.Context, run Run) (_ context.Context, env []string, ended func(stdout, stderr []byte, err error)) {
	if e.observe == nil || e.attachment == nil {
		return ctx, nil, func([]byte, []byte, error) {}
	}
	run.Start = time.Now()
	ctx, env, told := e.observe(ctx, run)
	return ctx, env, func(stdout, stderr []byte, err error) {
		run.Stdout, run.Stderr, run.Err, run.Duration = stdout, stderr, err, time.Since(run.Start)
		told(run)
	}
}

// cniVariables returns the CNI variables of an environment.
func cniVariables(environ []string) []string {
	env := make([]string, 0, 6)
	for _, kv := range environ {
		if strings.HasPrefix(kv, "CNI_") {
			env = append(env, kv)
		}
	}
	return env
}

// valueOf returns the value of an environment variable, the last one as exec has it.
func valueOf(environ []string, name string) string {
	for _, kv := range slices.Backward(environ) {
		if value, found := strings.CutPrefix(kv, name+"="); found {
			return value
		}
	}
	return ""
}
