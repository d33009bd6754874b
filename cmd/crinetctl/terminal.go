package main

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// isTerminal says whether what is printed is read by a person who wants colours
// (no-color.org).
func isTerminal(stdout io.Writer) bool {
	file, ok := stdout.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// Colours of ECMA-48.
const (
	red   = "31"
	green = "32"
)

// paint colours text on a terminal. In a table only the last cell of a line may be
// painted: the others are aligned by their bytes.
func (o *options) paint(colour, text string) string {
	if !o.colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}
