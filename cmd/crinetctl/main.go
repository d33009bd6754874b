// Command crinetctl tells what crinetd does on this node, and why. Each command has a
// file of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
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
	var exit exitError
	if errors.As(err, &exit) {
		os.Exit(exit.code)
	}
	os.Exit(1)
}

// usageError is an error in how crinetctl was called.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// run reads the arguments and runs a command.
func run(ctx context.Context, args []string, stdout io.Writer) error {
	root := newRoot(stdout)
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}
