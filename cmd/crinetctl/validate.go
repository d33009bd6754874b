package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crinet-project/crinet/config"
	"github.com/crinet-project/crinet/probe"
)

// probeTime bounds the wait for plugins to tell their versions.
const probeTime = 10 * time.Second

// validation is the result for one file.
type validation struct {
	File  string `json:"file"`
	Valid bool   `json:"valid"`
	// The fields from here to Warnings describe a valid file.
	Network      string   `json:"network,omitempty"`
	CNIVersions  []string `json:"cniVersions,omitempty"`
	Plugins      []string `json:"plugins,omitempty"`
	Capabilities []string `json:"capabilities,omitempty"`
	NeedsPodCIDR bool     `json:"needsPodCIDR,omitempty"`
	Warnings     []string `json:"warnings,omitempty"`
	// BrokenFile, Line, Col and Reason say what is wrong, and where: File itself
	// or a file in the network's folder.
	BrokenFile string `json:"brokenFile,omitempty"`
	Line       int    `json:"line,omitempty"`
	Col        int    `json:"col,omitempty"`
	Reason     string `json:"reason,omitempty"`
}

// newValidate makes the command validate, which needs no daemon.
func newValidate(o *options) *cobra.Command {
	binDir := ""
	c := &cobra.Command{
		Use:   "validate FILE...",
		Short: "Say whether CNI network configurations can be used; needs no crinetd; exit code 1 if one cannot",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("validate: which FILE?")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return validate(c.Context(), o, binDir, args) },
	}
	c.Flags().StringVar(&binDir, "cni-bin-dir", "", "look too whether the plugins are there, in these directories, separated by commas")
	return c
}

// validate checks files. It returns an error if one is not valid.
func validate(ctx context.Context, o *options, binDir string, files []string) error {
	look, stop := plugins(ctx, binDir)
	defer stop()
	var all []validation
	bad := 0
	for _, file := range files {
		v := validation{File: file}
		valid, problem := config.ValidateFile(file, look)
		if problem != nil {
			bad++
			v.BrokenFile, v.Line, v.Col, v.Reason = problem.File, problem.Line, problem.Col, problem.Reason
		} else {
			v.Valid, v.Network, v.CNIVersions, v.Plugins = true, valid.Network, valid.CNIVersions, valid.Plugins
			v.Capabilities, v.NeedsPodCIDR = valid.Capabilities, valid.NeedsPodCIDR
			v.Warnings = valid.Warnings
		}
		all = append(all, v)
	}
	if err := o.print(all, func() error { return printValidations(o.stdout, all) }); err != nil {
		return err
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d files cannot be used", bad, len(all))
	}
	return nil
}

// plugins returns what looks at plugins in directories that are separated by commas,
// nil if there are none. stop ends what it runs.
func plugins(ctx context.Context, binDirs string) (look func(types []string) (*probe.Plugins, error), stop func()) {
	if binDirs == "" {
		return nil, func() {}
	}
	prober := probe.New(strings.Split(binDirs, ","), probe.Config{})
	return func(types []string) (*probe.Plugins, error) { return prober.Probe(ctx, types, probeTime) }, prober.Stop
}

func printValidations(stdout io.Writer, all []validation) error {
	var good, bad []string
	for _, v := range all {
		if !v.Valid {
			bad = append(bad, place(v.BrokenFile, v.Line, v.Col)+": "+v.Reason)
			continue
		}
		notes := v.Warnings
		if v.NeedsPodCIDR {
			notes = append([]string{"needs the node's pod CIDR"}, notes...)
		}
		good = append(good, strings.Join([]string{v.File, v.Network, strings.Join(v.CNIVersions, ","),
			strings.Join(v.Plugins, ","), orNone(strings.Join(v.Capabilities, ",")), strings.Join(notes, "; ")}, "\t"))
	}
	w := newTable(stdout)
	if len(good) > 0 {
		w.row("FILE", "NETWORK", "CNI VERSIONS", "PLUGINS", "CAPABILITIES", "NOTE")
		for _, line := range good {
			w.row(line)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, line := range bad {
		if _, err := fmt.Fprintln(stdout, line); err != nil {
			return err
		}
	}
	return nil
}

// place formats a position as compilers do.
func place(file string, line, col int) string {
	if line == 0 {
		return file
	}
	return fmt.Sprintf("%s:%d:%d", file, line, col)
}
