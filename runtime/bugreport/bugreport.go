// Package bugreport gathers what somebody elsewhere must know to find out what is wrong
// with a node's pod network, in one archive: crinetd's own word, the last operations, the
// doctor's findings, configurations, the kernel's tables, logs, and a page to look at.
//
// Everything is asked for at once, and nobody is waited for longer than a few seconds:
// what could not be had is named in the archive. Secrets are taken out of all of it
// (recorder.RedactText); names of pods and addresses are left in.
package bugreport

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crinet-project/crinet/doctor"
	"github.com/crinet-project/crinet/runtime/admin"
	"github.com/crinet-project/crinet/runtime/recorder"
)

// askTime bounds how long one part may take.
const askTime = 3 * time.Second

// maxPart bounds a part in bytes.
const maxPart = 8 << 20

// Sources are what is asked. All of them may fail.
type Sources struct {
	Host    string    // the node's name
	Version string    // crinetctl's
	Now     time.Time // when the report is made

	// Root is before the paths of files: "/", but in tests.
	Root string
	// ConfDirs are directories of CNI configurations; Files are other files.
	ConfDirs, Files []string
	// Commands are programs that print what no file tells, each with its arguments.
	Commands [][]string

	Status     func(context.Context) (admin.Status, error)
	Pods       func(context.Context) ([]admin.Pod, error)
	Plugins    func(context.Context) (admin.Plugins, error)
	Metrics    func(context.Context) (string, error)
	Operations func() ([]recorder.Operation, error)
	Doctor     func(context.Context) (doctor.Report, error)
}

// part is one file of the archive. It is made by read.
type part struct {
	name string
	read func(context.Context) ([]byte, error)

	data []byte
	err  error
	took time.Duration
}

// Missing is a part of a report that could not be had.
type Missing struct {
	Part string `json:"part"`
	Why  string `json:"why"`
}

// Summary says what an archive holds.
type Summary struct {
	File    string    `json:"file"`
	Parts   []string  `json:"parts"`
	Missing []Missing `json:"missing"`
	Bytes   int64     `json:"bytes"`
	Took    float64   `json:"took"` // seconds
}

// Write gathers a report and writes it to w as a compressed tar archive, in a folder of
// the given name. An error is one of w or of ctx; what could not be had is in the summary
// and in the archive.
func Write(ctx context.Context, w io.Writer, folder string, s *Sources) (Summary, error) {
	page := &Page{Host: s.Host, Version: s.Version, Now: s.Now}
	parts := append(s.told(page), s.files()...)
	parts = append(parts, s.commands()...)
	var wait sync.WaitGroup
	for _, p := range parts {
		wait.Go(func() { p.run(ctx) })
	}
	wait.Wait()
	if err := ctx.Err(); err != nil {
		return Summary{}, err
	}
	var summary Summary
	for _, p := range parts {
		if p.err != nil {
			summary.Missing = append(summary.Missing, Missing{p.name, recorder.RedactText(p.err.Error())})
		}
	}
	page.Missing = summary.Missing
	html, err := page.HTML()
	if err != nil {
		return Summary{}, fmt.Errorf("make the page: %w", err)
	}
	parts = append(parts, &part{name: "report.html", data: html}, &part{name: "README.txt", data: readme(s, summary.Missing)})
	counted := &counter{w: w}
	summary.Parts, err = pack(counted, folder, s.Now, parts)
	summary.Bytes = counted.n
	return summary, err
}

// run makes the part within its time. One that hangs is left behind.
func (p *part) run(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	type outcome struct {
		data []byte
		err  error
	}
	began, done := time.Now(), make(chan outcome, 1)
	go func() {
		data, err := p.read(ctx)
		done <- outcome{data, err}
	}()
	select {
	case out := <-done:
		p.data, p.err = out.data, out.err
	case <-ctx.Done():
		p.err = fmt.Errorf("no answer within %v", askTime)
	}
	if len(p.data) > maxPart {
		p.data = append(p.data[:maxPart:maxPart], fmt.Sprintf("\n... cut after %d bytes\n", maxPart)...)
	}
	p.took = time.Since(began)
}

// told are the parts that crinetd, its files and the doctor tell. They are kept for the
// page as well; each field of the page has one part that writes it.
func (s *Sources) told(page *Page) []*part {
	return []*part{
		asJSON("status.json", s.Status, func(v admin.Status) { page.setStatus(v) }),
		asJSON("pods.json", s.Pods, func(v []admin.Pod) { page.setPods(v) }),
		asJSON("plugins.json", s.Plugins, func(admin.Plugins) {}),
		asJSON("doctor.json", s.Doctor, func(v doctor.Report) { page.setDoctor(v) }),
		asJSON("operations.json", func(context.Context) ([]recorder.Operation, error) { return s.Operations() },
			func(v []recorder.Operation) { page.setOperations(v) }),
		{name: "metrics.txt", read: func(ctx context.Context) ([]byte, error) {
			text, err := s.Metrics(ctx)
			return []byte(text), err
		}},
	}
}

// asJSON is a part that somebody tells as a value, which keep gets as well.
func asJSON[V any](name string, ask func(context.Context) (V, error), keep func(V)) *part {
	return &part{name: name, read: func(ctx context.Context) ([]byte, error) {
		value, err := ask(ctx)
		if err != nil {
			return nil, err
		}
		data, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		keep(value)
		return clean(data), nil
	}}
}

// clean returns JSON or other text without the secrets in it. JSON stays JSON.
func clean(text []byte) []byte {
	if !json.Valid(text) {
		return recorder.RedactLines(text)
	}
	var b bytes.Buffer
	if json.Indent(&b, recorder.Redact(text), "", "  ") != nil {
		return recorder.RedactLines(text)
	}
	return append(b.Bytes(), '\n')
}

// pack writes the parts that were had, in the order of their names, and returns those.
func pack(w io.Writer, folder string, now time.Time, parts []*part) (names []string, err error) {
	zip := gzip.NewWriter(w)
	archive := tar.NewWriter(zip)
	defer func() { err = errors.Join(err, archive.Close(), zip.Close()) }()
	slices.SortFunc(parts, func(a, b *part) int { return strings.Compare(a.name, b.name) })
	for _, p := range parts {
		if p.err != nil {
			continue
		}
		header := &tar.Header{Name: folder + "/" + p.name, Mode: 0o600, Size: int64(len(p.data)), ModTime: now}
		if err := archive.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := archive.Write(p.data); err != nil {
			return nil, err
		}
		names = append(names, p.name)
	}
	return names, nil
}

// readme says what is in the archive.
func readme(s *Sources, missing []Missing) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `crinet's report of node %s, made at %s by crinetctl %s.

report.html      the whole in one page; open it in any browser
doctor.json      what crinetctl doctor found
operations.json  the last operations on pods' networks: configurations, results, times
status.json, pods.json, plugins.json, metrics.txt
                 what crinetd tells
files/           configurations, and what the kernel tells in files
commands/        what programs print about links, addresses, routes, rules, logs

Passwords, tokens and keys are taken out. Names of pods and addresses are not: look
before you send this to somebody.
`, s.Host, s.Now.Format(time.RFC3339), s.Version)
	if len(missing) > 0 {
		b.WriteString("\nNot in here, and why:\n")
	}
	for _, m := range missing {
		fmt.Fprintf(&b, "  %s: %s\n", m.Part, m.Why)
	}
	return []byte(b.String())
}

// counter counts what is written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(data []byte) (int, error) {
	n, err := c.w.Write(data)
	c.n += int64(n)
	return n, err
}
