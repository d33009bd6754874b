package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/crinet-project/crinet/runtime/admin"
)

// options are the flags of all commands, and where they print.
type options struct {
	runDir string
	output string
	stdout io.Writer
	colour bool // stdout is a terminal
}

const rootHelp = `crinetctl tells what crinetd does on this node, and why.

Exit codes: 0 when all is well, 1 when something failed, 2 for an error in the
command line.`

// newRoot makes the command crinetctl with all of its commands. Nothing is shared
// between two of them.
func newRoot(stdout io.Writer) *cobra.Command {
	o := &options{stdout: stdout, colour: isTerminal(stdout)}
	root := &cobra.Command{
		Use:           "crinetctl",
		Short:         "Tell what crinetd does on this node, and why",
		Long:          rootHelp,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("no command %q; see crinetctl --help", args[0])}
			}
			return nil
		},
		PersistentPreRunE: func(*cobra.Command, []string) error { return o.check() },
		RunE: func(*cobra.Command, []string) error {
			return usageError{errors.New("which command? See crinetctl --help")}
		},
	}
	root.SetOut(stdout)
	root.SetErr(io.Discard) // errors are returned, not printed
	root.SetVersionTemplate("crinetctl {{.Version}}\n")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	flags := root.PersistentFlags()
	flags.StringVar(&o.runDir, "run-dir", "/run/crinet", "crinetd's --run-dir, the `DIR` where admin.sock is")
	flags.StringVarP(&o.output, "output", "o", "table", "the `FORM` of what is printed: table or json")
	root.AddCommand(newStatus(o), newWhy(o), newPods(o), newDoctor(o), newTest(o), newBugreport(o), newProbe(o), newValidate(o), newForget(o),
		newInstall(o), newUninstall(o), newMan(o))
	return root
}

// check checks the flags of all commands.
func (o *options) check() error {
	if o.output != "table" && o.output != "json" {
		return usageError{fmt.Errorf("--output=%s: want table or json", o.output)}
	}
	return nil
}

// noArgs refuses arguments to a command that takes none.
func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no arguments, got %q", c.Name(), args)}
	}
	return nil
}

// client returns a client of crinetd's admin.sock.
func (o *options) client() *admin.Client {
	return admin.NewClient(filepath.Join(o.runDir, "admin.sock"))
}

// print prints a value as JSON, or else as table does.
func (o *options) print(value any, table func() error) error {
	if o.output != "json" {
		return table()
	}
	e := json.NewEncoder(o.stdout)
	e.SetIndent("", "  ")
	return e.Encode(value)
}
