package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/crinet-project/crinet/config"
)

// newMan makes the hidden command man, by which the build makes the manual pages.
func newMan(*options) *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the manual pages of crinetctl and crinetd into a directory",
		Hidden: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("man takes one directory")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return writeManual(c.Root(), args[0]) },
	}
}

// writeManual writes crinetd.8, crinetctl.8 and a page for each command. The pages
// carry no date: the same source gives the same bytes.
func writeManual(root *cobra.Command, dir string) error {
	pages := map[string]string{"crinetd.8": daemonPage()}
	for _, c := range append([]*cobra.Command{root}, root.Commands()...) {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		pages[strings.ReplaceAll(c.CommandPath(), " ", "-")+".8"] = commandPage(c)
	}
	for name, text := range pages {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// page is a manual page in the language of man(7).
type page struct{ strings.Builder }

func newPage(name, short string) *page {
	p := new(page)
	fmt.Fprintf(p, ".TH %s 8 \"\" %q %q\n", strings.ToUpper(roff(name)), "crinet", "crinet")
	p.section("NAME")
	fmt.Fprintf(p, "%s \\- %s\n", roff(name), roff(short))
	return p
}

func (p *page) section(name string) { fmt.Fprintf(p, ".SH %s\n", name) }

// text writes paragraphs, which empty lines part.
func (p *page) text(text string) {
	for paragraph := range strings.SplitSeq(text, "\n\n") {
		fmt.Fprintf(p, ".PP\n%s\n", roff(strings.Join(strings.Fields(paragraph), " ")))
	}
}

func (p *page) flags(flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		value, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if len(f.Name) == 1 {
			name = "-" + f.Name
		}
		fmt.Fprintf(p, ".TP\n\\fB%s\\fR", roff(name))
		if f.Value.Type() != "bool" {
			fmt.Fprintf(p, " \\fI%s\\fR", roff(value))
			if f.DefValue != "" {
				fmt.Fprintf(p, " (default %s)", roff(f.DefValue))
			}
		}
		fmt.Fprintf(p, "\n%s\n", roff(strings.TrimPrefix(usage, value+" ")))
	})
}

// roff escapes text: what begins a request, and what would be no hyphen-minus.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	return text
}

// commandPage is the page of a command of crinetctl.
func commandPage(c *cobra.Command) string {
	p := newPage(strings.ReplaceAll(c.CommandPath(), " ", "-"), c.Short)
	p.section("SYNOPSIS")
	line := c.UseLine()
	if c.HasAvailableSubCommands() {
		line = c.Name() + " [flags] COMMAND"
	}
	fmt.Fprintf(p, "\\fB%s\\fR\n", roff(line))
	p.section("DESCRIPTION")
	if c.Long != "" {
		p.text(c.Long)
	} else {
		p.text(c.Short + ".")
	}
	if c.HasAvailableSubCommands() {
		p.section("COMMANDS")
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(p, ".TP\n\\fB%s\\fR\n%s\n", roff(sub.Name()), roff(sub.Short))
			}
		}
	}
	p.section("OPTIONS")
	p.flags(c.NonInheritedFlags())
	p.flags(c.InheritedFlags())
	return p.String()
}

// daemonPage is the page of crinetd.
func daemonPage() string {
	p := newPage("crinetd", "manage the pod networks of a Kubernetes node")
	p.section("SYNOPSIS")
	fmt.Fprintf(p, "\\fBcrinetd\\fR [flags]\n")
	p.section("DESCRIPTION")
	p.text(config.Description)
	for _, g := range config.FlagGroups() {
		p.section(strings.ToUpper(g.Title))
		p.flags(g.Flags)
	}
	p.section("FILES")
	p.text("/etc/default/crinetd: flags of the service, as CRINETD_FLAGS=--flag=value ...\n\n/run/crinet: the sockets\n\n/var/lib/crinet: the journal")
	return p.String()
}
