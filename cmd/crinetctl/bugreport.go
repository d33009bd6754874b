package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/crinet-project/crinet/doctor"
	"github.com/crinet-project/crinet/runtime/admin"
	"github.com/crinet-project/crinet/runtime/bugreport"
	"github.com/crinet-project/crinet/runtime/recorder"
)

const bugreportHelp = `Gather what somebody elsewhere must know about this node's pod network in one archive:
what crinetd tells, the last operations, the doctor's findings, configurations, links,
addresses, routes, firewall rules, logs; and report.html, a page that shows the whole.

It takes some seconds, with or without crinetd; what cannot be had is named. Passwords,
tokens and keys are taken out. Names of pods and addresses are not: look before you send
it to somebody.`

// newBugreport makes the command bugreport.
func newBugreport(o *options) *cobra.Command {
	var file string
	var crinetd []string
	c := &cobra.Command{
		Use:   "bugreport",
		Short: "Gather what is to be known about this node's pod network in one archive, with a page to look at",
		Long:  bugreportHelp,
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if flag := c.Flag("run-dir"); flag.Changed {
				crinetd = append(crinetd, "--run-dir="+flag.Value.String())
			}
			if flag := c.Flag("state-dir"); flag.Changed {
				crinetd = append(crinetd, "--state-dir="+flag.Value.String())
			}
			return runBugreport(c.Context(), o, file, crinetd)
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "the archive's `NAME`, - for standard output (default crinet-NODE-TIME.tar.gz here)")
	c.Flags().String("state-dir", "", "crinetd's `DIR` of the journal, if it cannot be found")
	return c
}

func runBugreport(ctx context.Context, o *options, file string, crinetd []string) (err error) {
	now := time.Now()
	host := hostName()
	folder := fmt.Sprintf("crinet-%s-%s", host, now.UTC().Format("20060102T150405Z"))
	if file == "" {
		file = folder + ".tar.gz"
	}
	sources, err := bugreportSources(host, now, crinetd)
	if err != nil {
		return usageError{err}
	}
	if file == "-" {
		_, err := bugreport.Write(ctx, o.stdout, folder, sources)
		return err
	}
	if o.colour {
		fmt.Fprintln(o.stdout, "Gathering; this takes some seconds ...")
	}
	summary, err := writeReport(ctx, file, folder, sources)
	if err != nil {
		return err
	}
	summary.File, summary.Took = file, time.Since(now).Seconds()
	return o.print(summary, func() error { return printSummary(o.stdout, &summary) })
}

// writeReport writes the archive to a new file, for its owner alone.
func writeReport(ctx context.Context, file, folder string, sources *bugreport.Sources) (summary bugreport.Summary, err error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return summary, err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(file)) // half an archive is of no use
		}
	}()
	return bugreport.Write(ctx, f, folder, sources)
}

func printSummary(w io.Writer, s *bugreport.Summary) error {
	_, err := fmt.Fprintf(w, "%s: %d files, %d KiB, in %.1f s. report.html in it shows the whole.\n", s.File, len(s.Parts), s.Bytes/1024, s.Took)
	if err == nil && len(s.Missing) > 0 {
		_, err = fmt.Fprintf(w, "%d parts could not be had; README.txt in it says which and why.\n", len(s.Missing))
	}
	return err
}

// notInNames is what a name of a node may not bring into a file's name.
var notInNames = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

func hostName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "node"
	}
	return notInNames.ReplaceAllString(name, "_")
}

// bugreportSources finds what is asked on this node. crinetd are flags of crinetd that
// count more than those that are found.
func bugreportSources(host string, now time.Time, crinetd []string) (*bugreport.Sources, error) {
	node, err := newDoctorNode("/", crinetd)
	if err != nil {
		return nil, err
	}
	found := node.Options
	client := admin.NewClient(filepath.Join(found.RunDir, "admin.sock"))
	confDirs := []string{found.CNIConfDir}
	for _, dir := range []string{found.RuntimeCNIConfDir, "/etc/cni/net.d"} {
		if dir != "" && !slices.Contains(confDirs, dir) {
			confDirs = append(confDirs, dir)
		}
	}
	return &bugreport.Sources{
		Host: host, Version: version, Now: now, Root: "/",
		ConfDirs: confDirs, Files: bugreport.Files(), Commands: bugreport.Commands(),
		Status: client.Status, Pods: client.Pods, Plugins: client.Plugins, Metrics: client.Metrics,
		Operations: func() ([]recorder.Operation, error) { return recorder.Read(found.StateDir, recorder.Query{}) },
		Doctor: func(ctx context.Context) (doctor.Report, error) {
			return doctor.NewReport(node, doctor.Run(ctx, node, doctor.Checks())), nil
		},
	}, nil
}
