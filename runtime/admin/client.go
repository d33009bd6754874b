package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// clientTimeout bounds a whole exchange, maxAnswer an answer's size.
const (
	clientTimeout = 10 * time.Second
	maxAnswer     = 64 << 20
)

// Client asks a crinetd.
type Client struct {
	socket string
	http   http.Client
}

// Errors of a Client.
var (
	// ErrNoAnswer says that no crinetd answers.
	ErrNoAnswer = errors.New("crinetd does not answer")
	// ErrNotFound says that there is nothing of what was asked about.
	ErrNotFound = errors.New("not found")
)

// NewClient returns a client of the crinetd that serves socket.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: http.Client{
		Timeout:   clientTimeout,
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true},
	}}
}

// Status asks for the node's status.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	err = c.get(ctx, StatusPath, &s)
	return s, err
}

// Pods asks for the pods.
func (c *Client) Pods(ctx context.Context) (pods []Pod, err error) {
	err = c.get(ctx, PodsPath, &pods)
	return pods, err
}

// Plugins asks for the plugins.
func (c *Client) Plugins(ctx context.Context) (p Plugins, err error) {
	err = c.get(ctx, PluginsPath, &p)
	return p, err
}

// Forget makes crinetd forget a sandbox's network. It returns what was forgotten.
func (c *Client) Forget(ctx context.Context, what Forget) (pods []Pod, err error) {
	body, err := json.Marshal(what)
	if err != nil {
		return nil, err
	}
	err = c.do(ctx, http.MethodPost, ForgetPath, bytes.NewReader(body), &pods)
	return pods, err
}

// Try has crinetd try the selected network. It waits as long as the network's
// plugins may take, or until ctx ends, which ends the trial.
func (c *Client) Try(ctx context.Context) (trial Trial, err error) {
	patient := &Client{socket: c.socket, http: http.Client{Transport: c.http.Transport}}
	err = patient.do(ctx, http.MethodPost, TrialPath, nil, &trial)
	return trial, err
}

// Metrics asks for the metrics, in Prometheus' text format.
func (c *Client) Metrics(ctx context.Context) (string, error) {
	body, err := c.exchange(ctx, http.MethodGet, MetricsPath, nil)
	return string(body), err
}

func (c *Client) get(ctx context.Context, path string, into any) error {
	return c.do(ctx, http.MethodGet, path, nil, into)
}

func (c *Client) do(ctx context.Context, method, path string, what io.Reader, into any) error {
	body, err := c.exchange(ctx, method, path, what)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("crinetd at %s: answer: %w", c.socket, err)
	}
	return nil
}

// exchange sends a request and returns the answer's body.
func (c *Client) exchange(ctx context.Context, method, path string, what io.Reader) (body []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://crinetd"+path, what)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%w at %s (does it run, are you root, is --run-dir its own?): %w", ErrNoAnswer, c.socket, err)
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	body, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("crinetd at %s: %w", c.socket, err)
	}
	if response.StatusCode == http.StatusNotFound {
		return nil, fmt.Errorf("crinetd at %s: %w: %s", c.socket, ErrNotFound, bytes.TrimSpace(body))
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("crinetd at %s: %s: %s", c.socket, response.Status, body)
	}
	return body, nil
}
