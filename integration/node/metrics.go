package node

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
)

// AdminSocket is crinetd's socket for operators.
const AdminSocket = "/run/crinet/admin.sock"

// Metrics reads all of crinetd's metrics, as Prometheus gets them.
func (n *Node) Metrics(ctx context.Context) (string, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", n.Path(AdminSocket))
		},
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://crinetd/metrics", nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return "", fmt.Errorf("read crinetd's metrics: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", fmt.Errorf("read crinetd's metrics: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("read crinetd's metrics: %s: %s", resp.Status, text)
	}
	return string(text), nil
}

// Metric reads a metric from crinetd; the name of one with labels has them.
func (n *Node) Metric(ctx context.Context, name string) (float64, error) {
	text, err := n.Metrics(ctx)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if value, found := strings.CutPrefix(strings.TrimSuffix(line, "\n"), name+" "); found {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("crinetd has no metric %s", name)
}
