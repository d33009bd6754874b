// Command crinetctl tells what crinetd does on this node, and why.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/crinet-project/crinet/runtime/admin"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "crinetctl:", err)
	var usage usageError
	if errors.As(err, &usage) {
		os.Exit(2)
	}
	os.Exit(1)
}

// usageError is an error in how crinetctl was called.
type usageError struct{ error }

// command is one of crinetctl's commands.
type command struct {
	name, help string
	run        func(ctx context.Context, o options, args []string, stdout io.Writer) error
}

// options are the flags of all commands.
type options struct {
	runDir string
	output string
	reason string
	binDir string
}

func commands() []command {
	return []command{
		{"status", "the selected network and why, whether it is ready and why not, networks, files, last reloads", status},
		{"probe", "the plugins in the bin dirs: CNI versions, what they shadow, why some cannot be used", showProbe},
		{"validate", "FILE...: whether CNI network configurations can be used; needs no crinetd; exit code 1 if one cannot", validate},
		{"forget", "SANDBOX --reason=TEXT: give up a pod's network whose removal can never work; what it holds stays on the node", forget},
		{"pods", "the pods that crinetd has networked: network, addresses, hostPorts, the four steps' times", pods},
	}
}

// run reads the arguments and runs a command.
func run(ctx context.Context, args []string, stdout io.Writer) error {
	var o options
	flags := pflag.NewFlagSet("crinetctl", pflag.ContinueOnError)
	flags.StringVar(&o.runDir, "run-dir", "/run/crinet", "crinetd's --run-dir, where admin.sock is")
	flags.StringVarP(&o.output, "output", "o", "table", "table or json")
	flags.StringVar(&o.reason, "reason", "", "with forget: why, for crinetd's log")
	flags.StringVar(&o.binDir, "cni-bin-dir", "", "with validate: look too whether the plugins are there, in these directories, separated by commas")
	showVersion := flags.Bool("version", false, "print the version and exit")
	flags.Usage = func() {}
	err := flags.Parse(args)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return help(stdout, flags)
	case err != nil:
		return usageError{fmt.Errorf("%w; see crinetctl --help", err)}
	case *showVersion:
		_, err := fmt.Fprintln(stdout, "crinetctl", version)
		return err
	case o.output != "table" && o.output != "json":
		return usageError{fmt.Errorf("--output=%s: want table or json", o.output)}
	case flags.NArg() == 0:
		return usageError{errors.New("which command? See crinetctl --help")}
	}
	for _, c := range commands() {
		if c.name == flags.Arg(0) {
			return c.run(ctx, o, flags.Args()[1:], stdout)
		}
	}
	return usageError{fmt.Errorf("no command %q; see crinetctl --help", flags.Arg(0))}
}

func help(stdout io.Writer, flags *pflag.FlagSet) error {
	var b strings.Builder
	b.WriteString("crinetctl tells what crinetd does on this node, and why.\n\nUsage: crinetctl [flags] COMMAND\n\nCommands:\n")
	for _, c := range commands() {
		fmt.Fprintf(&b, "  %-9s %s\n", c.name, c.help)
	}
	b.WriteString("\nFlags:\n" + flags.FlagUsages())
	_, err := io.WriteString(stdout, b.String())
	return err
}

// noArgs refuses arguments to a command that takes none.
func noArgs(name string, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no arguments, got %q", name, args)}
	}
	return nil
}

// client returns a client of crinetd's admin.sock.
func (o options) client() *admin.Client {
	return admin.NewClient(filepath.Join(o.runDir, "admin.sock"))
}

func status(ctx context.Context, o options, args []string, stdout io.Writer) error {
	if err := noArgs("status", args); err != nil {
		return err
	}
	s, err := o.client().Status(ctx)
	if err != nil {
		return err
	}
	if o.output == "json" {
		return printJSON(stdout, s)
	}
	return printStatus(stdout, s)
}

func showProbe(ctx context.Context, o options, args []string, stdout io.Writer) error {
	if err := noArgs("probe", args); err != nil {
		return err
	}
	p, err := o.client().Plugins(ctx)
	if err != nil {
		return err
	}
	if o.output == "json" {
		return printJSON(stdout, p)
	}
	return printPlugins(stdout, p)
}

func pods(ctx context.Context, o options, args []string, stdout io.Writer) error {
	if err := noArgs("pods", args); err != nil {
		return err
	}
	list, err := o.client().Pods(ctx)
	if err != nil {
		return err
	}
	if o.output == "json" {
		return printJSON(stdout, list)
	}
	return printPods(stdout, list, time.Now())
}

func forget(ctx context.Context, o options, args []string, stdout io.Writer) error {
	switch {
	case len(args) != 1:
		return usageError{errors.New("forget takes the id of one sandbox; crinetctl pods shows them")}
	case o.reason == "":
		return usageError{errors.New("forget needs --reason=TEXT: why the removal cannot work, for crinetd's log")}
	}
	forgotten, err := o.client().Forget(ctx, admin.Forget{Sandbox: args[0], Reason: o.reason})
	if err != nil {
		return err
	}
	if o.output == "json" {
		return printJSON(stdout, forgotten)
	}
	return printForgotten(stdout, forgotten)
}

func printJSON(stdout io.Writer, value any) error {
	e := json.NewEncoder(stdout)
	e.SetIndent("", "  ")
	return e.Encode(value)
}
