package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/crinet-project/crinet/integration/testplugin/script"
)

// findStandIn reads what the plugin does in another one's place: its binary was
// installed under that one's name.
func findStandIn(binary string) (script.StandIn, error) {
	var s script.StandIn
	text, err := os.ReadFile(filepath.Join(script.StandInDir, filepath.Base(binary)+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		return s, fmt.Errorf("read what to stand in for: %w", err)
	}
	return s, nil
}

// delegate calls another plugin, as flannel's calls bridge: with the same
// parameters, and a configuration of its own.
func delegate(s script.StandIn, getenv func(string) string, input []byte, stdout io.Writer) error {
	var given map[string]json.RawMessage
	if err := json.Unmarshal(input, &given); err != nil {
		return fmt.Errorf("decode the configuration: %w", err)
	}
	conf := map[string]json.RawMessage{}
	if err := json.Unmarshal(s.Delegate, &conf); err != nil {
		return fmt.Errorf("decode the delegate: %w", err)
	}
	for _, key := range []string{"name", "cniVersion", "prevResult"} {
		if value, ok := given[key]; ok {
			conf[key] = value
		}
	}
	var plugin string
	if err := json.Unmarshal(conf["type"], &plugin); err != nil {
		return fmt.Errorf("decode the delegate's type: %w", err)
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		return err
	}
	for _, dir := range filepath.SplitList(getenv("CNI_PATH")) {
		path := filepath.Join(dir, plugin)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		cmd := exec.Command(path)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), stdout, os.Stderr
		return cmd.Run()
	}
	return fmt.Errorf("no plugin %s in %s", plugin, getenv("CNI_PATH"))
}
