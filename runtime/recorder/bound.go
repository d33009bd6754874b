package recorder

import (
	"encoding/json"
	"fmt"
	"strings"
)

// maxLine bounds a line in bytes, maxRuns the runs in an operation.
const (
	maxLine = 64 << 10
	maxRuns = 32
)

// limits bound the parts of an operation in bytes.
type limits struct{ json, text int }

// Parts are cut by the first of these, and by a later one if the line is too long
// all the same.
func allLimits() []limits { return []limits{{8 << 10, 4 << 10}, {1 << 10, 1 << 10}, {64, 256}} }

// cutText cuts a text with a mark.
func cutText(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return fmt.Sprintf("%s … (%d bytes more)", strings.ToValidUTF8(text[:most], ""), len(text)-most)
}

// cutJSON cuts JSON with a mark; it is a JSON string then.
func cutJSON(data json.RawMessage, most int) json.RawMessage {
	if len(data) <= most {
		return data
	}
	return quote(cutText(string(data), most))
}

// cut cuts the parts of an operation.
func (o *Operation) cut(by limits) {
	o.Err = cutText(o.Err, by.text)
	o.Result = cutJSON(o.Result, by.json)
	for i := range o.Runs {
		run := &o.Runs[i]
		run.Config, run.Stdout = cutJSON(run.Config, by.json), cutJSON(run.Stdout, by.json)
		run.Stderr, run.Err = cutText(run.Stderr, by.text), cutText(run.Err, by.text)
		for j := range run.Env {
			run.Env[j] = cutText(run.Env[j], by.text)
		}
	}
}

// encode returns an operation's line. It cuts the operation.
func (o *Operation) encode() []byte {
	var line []byte
	for _, by := range allLimits() {
		o.cut(by)
		if line = marshal(o); len(line) < maxLine {
			return append(line, '\n')
		}
	}
	// What is left is too much of other things, such as thousands of hostPorts.
	o.MoreRuns += len(o.Runs)
	o.Runs, o.HostPorts, o.Addresses = nil, nil, nil
	return append(marshal(o), '\n')
}
