// Command build makes what is shipped: packages for Debian and RPM systems, an image,
// an SBOM and checksums. The same commit gives the same bytes. The Makefile calls it.
//
//	go run ./packaging/build [-version V] [-arch LIST] [-out DIR] packages|image|release
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
}

// release is what is being made.
type release struct {
	root    string // the checkout
	out     string
	version string
	time    time.Time // of the commit; everything bears it
	arches  []string
	stages  map[string]string // architecture -> folder with what is shipped
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("build", flag.ContinueOnError)
	version := flags.String("version", "", "version; from git if empty")
	out := flags.String("out", "dist", "folder for what is made")
	arches := flags.String("arch", "amd64,arm64", "architectures")
	if err := flags.Parse(args); err != nil {
		return err
	}
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	r := &release{root: root, version: *version, arches: strings.Split(*arches, ","), stages: make(map[string]string)}
	if r.out, err = filepath.Abs(*out); err != nil {
		return err
	}
	steps := map[string][]func(context.Context) error{
		"packages": {r.packages},
		"image":    {r.image},
		"release":  {r.packages, r.image, r.sbom, r.checksums},
	}[flags.Arg(0)]
	if steps == nil || flags.NArg() != 1 {
		return fmt.Errorf("%q: want packages, image or release", flags.Args())
	}
	stage, err := os.MkdirTemp("", "crinet-build-")
	if err != nil {
		return err
	}
	err = r.findVersion(ctx)
	for _, arch := range r.arches {
		if err == nil {
			err = r.stage(ctx, arch, filepath.Join(stage, arch))
		}
	}
	for _, step := range steps {
		if err == nil {
			err = step(ctx)
		}
	}
	return errors.Join(err, os.RemoveAll(stage))
}
