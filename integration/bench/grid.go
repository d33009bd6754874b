package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// grid is a table in the form of Markdown, which is readable as it is.
type grid struct {
	head []string
	rows [][]string
}

// add adds one row. What is empty is shown as a dash.
func (g *grid) add(cells ...string) { g.rows = append(g.rows, cells) }

func (g *grid) print(out io.Writer) error {
	if len(g.rows) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 1, ' ', 0)
	fmt.Fprintln(w)
	printRow(w, g.head)
	printRow(w, strings.Split(strings.Repeat("---,", len(g.head)-1)+"---", ","))
	for _, row := range g.rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			if cells[i] = cell; cell == "" {
				cells[i] = "–"
			}
		}
		printRow(w, cells)
	}
	return w.Flush()
}

func printRow(w io.Writer, cells []string) { fmt.Fprintf(w, "| %s\t|\n", strings.Join(cells, "\t| ")) }

// verdict says whether a target was reached.
func verdict(missed bool) string {
	if missed {
		return "MISSED"
	}
	return "ok"
}
