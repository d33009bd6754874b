//go:build failpoint

package failpoint

import (
	"context"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/builtin"
	"github.com/crinet-project/crinet/hostport"
	"github.com/crinet-project/crinet/runtime/engine"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/proxy"
)

// around calls do between two points.
func around(what, with string, do func() error) error {
	hit(what + " " + with + " before")
	defer hit(what + " " + with + " after")
	return do()
}

// hit kills the process if the point of that name is armed.
func hit(point string) {
	name, err := os.ReadFile(File)
	if err != nil || string(name) != point {
		return
	}
	if os.Remove(File) != nil {
		return // another goroutine is dying here
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // cannot fail
	select {}
}

// Journal puts a journal's writes between points. They are named by the state of
// the record; "steps" is the write that keeps the times of all steps, "failed" the one of
// a DEL that failed, "delete" a removal.
func Journal(j engine.Journal) engine.Journal { return points{newWrongJournal(j)} }

type points struct{ engine.Journal }

func (p points) Put(r *journal.Record) error {
	what := string(r.State)
	if r.State == journal.Detaching && r.LastError != "" {
		what = "failed"
	}
	if n := len(r.Steps); r.State == journal.Attached && n > 0 && r.Steps[n-1].Step == string(engine.StepStart) {
		what = "steps"
	}
	return around("journal", what, func() error { return p.Journal.Put(r) })
}

func (p points) PutDurable(r *journal.Record) error {
	return around("journal", string(r.State), func() error { return p.Journal.PutDurable(r) })
}

func (p points) Delete(key journal.Key) error {
	return around("journal", "delete", func() error { return p.Journal.Delete(key) })
}

// Runner puts the exec of plugins between points, named by verb and plugin.
func Runner(r cni.Runner) cni.Runner { return runner{wrongRunner{r, mutant()}} }

type runner struct{ next cni.Runner }

func (r runner) Run(ctx context.Context, path string, stdin []byte, env []string) (stdout, stderr []byte, err error) {
	verb := ""
	for _, kv := range env {
		if value, found := strings.CutPrefix(kv, "CNI_COMMAND="); found {
			verb = value
		}
	}
	err = around("exec", verb+" "+filepath.Base(path), func() error {
		stdout, stderr, err = r.next.Run(ctx, path, stdin, env)
		return err
	})
	return stdout, stderr, err
}

// Builtin puts the runs of built-in plugins between the same points as their exec.
func Builtin(b cni.BuiltinRunner) cni.BuiltinRunner {
	return builtins{wrongBuiltin{next: b, mutant: mutant(), mu: new(sync.Mutex), first: new([]byte)}}
}

type builtins struct{ next cni.BuiltinRunner }

func (b builtins) Execute(ctx context.Context, call *builtin.Call) (stdout []byte, err error) {
	err = around("exec", call.Command+" "+call.Type, func() error {
		stdout, err = b.next.Execute(ctx, call)
		return err
	})
	return stdout, err
}

// HostPorts puts changes of the hostPort table between points.
func HostPorts(h engine.HostPorts) engine.HostPorts {
	if h == nil {
		return nil
	}
	return hostPorts{wrongHostPorts{h, mutant()}}
}

type hostPorts struct{ engine.HostPorts }

func (h hostPorts) Map(ctx context.Context, pod hostport.Pod) error {
	return around("hostPorts", "map", func() error { return h.HostPorts.Map(ctx, pod) })
}

func (h hostPorts) Unmap(ctx context.Context, sandboxID string) error {
	return around("hostPorts", "unmap", func() error { return h.HostPorts.Unmap(ctx, sandboxID) })
}

// Hairpin puts the setting of hairpin mode between points.
func Hairpin(h engine.Hairpin) engine.Hairpin {
	if h == nil {
		return nil
	}
	return func(ctx context.Context, a *cni.Attachment) error {
		return around("hairpin", "set", func() error { return h(ctx, a) })
	}
}

// Hooks puts the hooks' calls to the runtime between points, named by method.
func Hooks(hooks map[string]proxy.Hook) map[string]proxy.Hook {
	decorated := make(map[string]proxy.Hook, len(hooks))
	for method, hook := range hooks {
		decorated[method] = func(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
			return hook(ctx, request, func(ctx context.Context, request []byte) (response []byte, err error) {
				err = around("forward", path.Base(method), func() error {
					response, err = next(ctx, request)
					return err
				})
				return response, err
			})
		}
	}
	return decorated
}

// Send puts the writing of answers on cni.sock between points, named by verb.
func Send() func(command string, write func() error) error {
	return func(command string, write func() error) error { return around("answer", command, write) }
}
