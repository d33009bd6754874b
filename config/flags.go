package config

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/pflag"
)

// ErrHelp is returned by Parse after it wrote the help that was asked for.
var ErrHelp = pflag.ErrHelp

// UsageError says why crinetd cannot start with a command line. The program exits
// with code 2.
type UsageError struct {
	Flag   string // with its dashes; empty for an argument that is no flag
	Value  string // as it was given
	Reason string // what is wrong and what is allowed
}

// Error names the flag, the value and what is allowed.
func (e *UsageError) Error() string {
	switch {
	case e.Flag == "":
		return fmt.Sprintf("argument %q: %s", e.Value, e.Reason)
	case e.Value == "":
		return fmt.Sprintf("%s: %s", e.Flag, e.Reason)
	}
	return fmt.Sprintf("%s=%s: %s", e.Flag, e.Value, e.Reason)
}

// raw holds the flags as they were given.
type raw struct {
	Options
	binDirs, podCIDR, handlers, protected, builtin, passing, critical string
	help                                                              bool
}

// Parse reads crinetd's arguments, without the program's name. For --help it
// writes the help to out and returns ErrHelp; for --version it returns Options
// with only Version set. Every other error is a [*UsageError].
func Parse(args []string, out io.Writer) (*Options, error) {
	r := &raw{}
	groups := r.groups()
	fs := pflag.NewFlagSet("crinetd", pflag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are returned, not printed
	fs.SortFlags = false
	for _, g := range groups {
		fs.AddFlagSet(g.Flags)
	}
	err := fs.Parse(args)
	switch {
	case err != nil:
		return nil, usageError(err)
	case r.help:
		if err := writeHelp(out, groups); err != nil {
			return nil, fmt.Errorf("writing the help: %w", err)
		}
		return nil, ErrHelp
	case fs.NArg() > 0:
		return nil, &UsageError{Value: fs.Arg(0), Reason: "crinetd takes flags only; see --help"}
	case r.Version:
		return &Options{Version: true}, nil
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	return &r.Options, nil
}

// usageError makes a UsageError of an error of pflag.
func usageError(err error) error {
	var (
		value   *pflag.InvalidValueError
		missing *pflag.ValueRequiredError
		unknown *pflag.NotExistError
		syntax  *pflag.InvalidSyntaxError
	)
	switch {
	case errors.As(err, &value):
		f := value.GetFlag()
		want := map[string]string{
			"int": "want a whole number", "duration": "want a time such as 60s or 2m", "bool": "want true or false",
		}[f.Value.Type()]
		return &UsageError{Flag: dashes(f.Name), Value: value.GetValue(), Reason: want}
	case errors.As(err, &missing):
		return &UsageError{Flag: dashes(missing.GetSpecifiedName()), Reason: "needs a value"}
	case errors.As(err, &unknown):
		return &UsageError{Flag: dashes(unknown.GetSpecifiedName()), Reason: "no such flag; see --help"}
	case errors.As(err, &syntax):
		return &UsageError{Flag: syntax.GetSpecifiedFlag(), Reason: "no such flag; see --help"}
	}
	return &UsageError{Flag: "flags", Reason: err.Error()}
}

// dashes returns a flag with its dashes.
func dashes(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}
