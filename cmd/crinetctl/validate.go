package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/crinet-project/crinet/config"
)

// validation is the result for one file.
type validation struct {
	File  string `json:"file"`
	Valid bool   `json:"valid"`
	// The fields from here to NeedsPodCIDR describe a valid file.
	Network      string   `json:"network,omitempty"`
	CNIVersions  []string `json:"cniVersions,omitempty"`
	Plugins      []string `json:"plugins,omitempty"`
	Capabilities []string `json:"capabilities,omitempty"`
	NeedsPodCIDR bool     `json:"needsPodCIDR,omitempty"`
	// BrokenFile, Line, Col and Reason say what is wrong, and where: File itself
	// or a file in the network's folder.
	BrokenFile string `json:"brokenFile,omitempty"`
	Line       int    `json:"line,omitempty"`
	Col        int    `json:"col,omitempty"`
	Reason     string `json:"reason,omitempty"`
}

// newValidate makes the command validate, which needs no daemon.
func newValidate(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "validate FILE...",
		Short: "Say whether CNI network configurations are valid; needs no crinetd; exit code 1 if one is not",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("validate: which FILE?")}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return validate(o, args) },
	}
}

// validate checks files. It returns an error if one is not valid.
func validate(o *options, files []string) error {
	var all []validation
	bad := 0
	for _, file := range files {
		v := validation{File: file}
		valid, problem := config.ValidateFile(file)
		if problem != nil {
			bad++
			v.BrokenFile, v.Line, v.Col, v.Reason = problem.File, problem.Line, problem.Col, problem.Reason
		} else {
			v.Valid, v.Network, v.CNIVersions, v.Plugins = true, valid.Network, valid.CNIVersions, valid.Plugins
			v.Capabilities, v.NeedsPodCIDR = valid.Capabilities, valid.NeedsPodCIDR
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

func printValidations(stdout io.Writer, all []validation) error {
	var good, bad []string
	for _, v := range all {
		if !v.Valid {
			bad = append(bad, place(v.BrokenFile, v.Line, v.Col)+": "+v.Reason)
			continue
		}
		note := ""
		if v.NeedsPodCIDR {
			note = "needs the node's pod CIDR"
		}
		good = append(good, strings.Join([]string{v.File, v.Network, strings.Join(v.CNIVersions, ","),
			strings.Join(v.Plugins, ","), orNone(strings.Join(v.Capabilities, ",")), note}, "\t"))
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
