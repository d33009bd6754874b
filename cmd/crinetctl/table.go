package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// table writes aligned columns, without white space at the ends of lines.
type table struct {
	out  io.Writer
	text bytes.Buffer
	tabs *tabwriter.Writer
}

func newTable(out io.Writer) *table {
	t := &table{out: out}
	t.tabs = tabwriter.NewWriter(&t.text, 0, 8, 2, ' ', 0)
	return t
}

// row adds a line. Flush returns the errors of the writer.
func (t *table) row(cells ...string) {
	fmt.Fprintln(t.tabs, strings.Join(cells, "\t"))
}

// gap ends a table and begins another.
func (t *table) gap() { fmt.Fprintln(t.tabs) }

// Flush writes the rows that were added.
func (t *table) Flush() error {
	if err := t.tabs.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(t.text.String()) {
		if _, err := fmt.Fprintln(t.out, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
