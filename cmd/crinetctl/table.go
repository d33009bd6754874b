package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// table writes aligned columns. Cells that are empty at the end of a line leave
// no white space there.
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

// row adds a line. What goes wrong with the writer is Flush's to return.
func (t *table) row(cells ...string) {
	fmt.Fprintln(t.tabs, strings.Join(cells, "\t"))
}

// gap ends a table and begins another.
func (t *table) gap() { fmt.Fprintln(t.tabs) }

// Flush writes what was added.
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
