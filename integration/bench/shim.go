package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/crinet-project/crinet/cni/wire"
)

// shimRounds are rounds of the plugin for one of pods.
const shimRounds = 5

// shimLimit is for the plugin's way from exec to connect, in milliseconds.
const shimLimit = 3

// shim measures how long the plugin crinet takes from exec until it has
// connected to crinetd's socket, which a listener of our own stands in for.
func (s *sides) shim(ctx context.Context, o options, t *table) (err error) {
	dir, err := os.MkdirTemp("", "x")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	socket := filepath.Join(dir, "cni.sock")
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer listener.Close()
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"crinet","type":"crinet","socket":%q}`, socket)
	var connect, whole []float64
	for round := range warmups + shimRounds*o.rounds {
		connected, ended, err := execShim(ctx, s.node.Kit().Crinet("crinet"), conf, listener)
		if err != nil {
			return err
		}
		if round >= warmups {
			connect = append(connect, millis(connected))
			whole = append(whole, millis(ended))
		}
	}
	t.addValue("plugin crinet, exec to connect", median(connect), shimLimit, "ms")
	t.grid.add("plugin crinet, exec to exit", "", fmt.Sprintf("%.1f ms", median(whole)), "", "", "")
	return nil
}

// execShim runs the plugin once and says when it had connected and ended. Both
// times have the cost of fork and exec in them.
func execShim(ctx context.Context, path, conf string, listener net.Listener) (connected, ended time.Duration, err error) {
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=bench", "CNI_NETNS=/proc/self/ns/net", "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin"}
	var stdout bytes.Buffer
	cmd.Stdin, cmd.Stdout = bytes.NewBufferString(conf), &stdout
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	conn, err := listener.Accept()
	if err != nil {
		return 0, 0, errors.Join(err, cmd.Wait())
	}
	connected = time.Since(start)
	_, err = wire.ReadRequest(conn)
	if err == nil {
		err = wire.WriteReply(conn, &wire.Reply{Result: []byte("{}")})
	}
	if err := errors.Join(err, cmd.Wait(), conn.Close()); err != nil {
		return 0, 0, fmt.Errorf("run the plugin crinet: %w\n%s", err, stdout.String())
	}
	return connected, time.Since(start), nil
}
