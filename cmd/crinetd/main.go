// Command crinetd manages the pod networks of a Kubernetes node, between the
// kubelet and the container runtime.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/crinet-project/crinet/config"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "crinetd:", err)
	var usage *config.UsageError
	if errors.As(err, &usage) {
		os.Exit(2)
	}
	os.Exit(1)
}

// run reads the arguments and serves until ctx ends.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	options, err := config.Parse(args, stdout)
	switch {
	case errors.Is(err, config.ErrHelp):
		return nil
	case err != nil:
		return err
	case options.Version:
		_, err := fmt.Fprintln(stdout, "crinetd", version)
		return err
	}
	log := logger(stderr, options)
	parts, err := open(ctx, options, log)
	if err != nil {
		return err
	}
	return errors.Join(parts.serve(ctx), parts.close())
}

// logger returns a logger for --log-format and -v: warnings at 0, events from 1 on,
// every call from 4 on.
func logger(w io.Writer, o *config.Options) *slog.Logger {
	level := slog.LevelInfo
	switch {
	case o.Verbosity == 0:
		level = slog.LevelWarn
	case o.Verbosity >= 4:
		level = slog.LevelDebug
	}
	options := &slog.HandlerOptions{Level: level}
	if o.LogFormat == config.LogJSON {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
