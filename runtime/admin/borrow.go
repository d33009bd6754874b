package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// Borrowed is a loan of crinetd's, as long as its connection stands. One call at a
// time.
type Borrowed struct {
	conn *net.UnixConn
	stop func() bool
}

// Borrow asks crinetd for a loan. The end of ctx closes its connection, so that
// crinetd takes back what is lent.
func (c *Client) Borrow(ctx context.Context, what Lend) (b *Borrowed, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, fmt.Errorf("crinetd does not answer at %s (does it run, are you root, is --run-dir its own?): %w", c.socket, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		if err != nil {
			stop()
			_ = conn.Close() // there is no loan
		}
	}()
	body, err := json.Marshal(what)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://crinetd"+LendPath, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", lendProtocol)
	if err := errors.Join(conn.SetDeadline(time.Now().Add(clientTimeout)), request.Write(conn)); err != nil {
		return nil, fmt.Errorf("crinetd at %s: %w", c.socket, err)
	}
	// crinetd says nothing more before the first order, so that nothing is left in the buffer.
	response, err := http.ReadResponse(bufio.NewReader(conn), request)
	if err != nil {
		return nil, fmt.Errorf("crinetd at %s: %w", c.socket, err)
	}
	defer func() { _ = response.Body.Close() }() // it was only read
	switch response.StatusCode {
	case http.StatusSwitchingProtocols:
	case http.StatusNotFound:
		return nil, fmt.Errorf("crinetd at %s is older than this crinetctl and lends no attachments", c.socket)
	default:
		said, _ := io.ReadAll(io.LimitReader(response.Body, maxRequest)) // the status says enough
		return nil, &RefusedError{Status: response.StatusCode, Said: string(bytes.TrimSpace(said))}
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("%s is no unix socket", c.socket)
	}
	return &Borrowed{conn: unixConn, stop: stop}, conn.SetDeadline(time.Time{})
}

// RefusedError is crinetd's refusal of a request.
type RefusedError struct {
	Status int // of HTTP
	Said   string
}

func (e *RefusedError) Error() string { return e.Said }

// Close ends the loan. crinetd removes what has not been returned.
func (b *Borrowed) Close() error {
	b.stop()
	return b.conn.Close()
}

// Add has an attachment made, and returns it with its network namespace, which the
// caller closes.
func (b *Borrowed) Add(hostPorts bool) (*Lent, *os.File, error) {
	answer, space, err := b.order(Order{Do: OrderAdd, HostPorts: hostPorts})
	if err == nil && (answer.Lent == nil || space == nil) {
		err = errors.New("crinetd lends an attachment without saying which")
	}
	if err != nil {
		if space != nil {
			_ = space.Close() // it is not handed on
		}
		return nil, nil, err
	}
	return answer.Lent, space, nil
}

// Check has the attachment checked that was added as the index-th, from 0.
func (b *Borrowed) Check(index int) error {
	_, _, err := b.order(Order{Do: OrderCheck, Index: index})
	return err
}

// Return has all attachments removed. left is what crinetd still has of them.
func (b *Borrowed) Return() (left []string, err error) {
	answer, _, err := b.order(Order{Do: OrderReturn})
	return answer.Left, err
}

func (b *Borrowed) order(order Order) (Answer, *os.File, error) {
	line, err := json.Marshal(order)
	if err != nil {
		return Answer{}, nil, err
	}
	if _, err := b.conn.Write(append(line, '\n')); err != nil {
		return Answer{}, nil, fmt.Errorf("crinetd is gone: %w", err)
	}
	answer, space, err := receiveAnswer(b.conn)
	if err != nil {
		return answer, space, fmt.Errorf("crinetd is gone: %w", err)
	}
	if answer.Error != "" {
		return answer, space, errors.New(answer.Error)
	}
	return answer, space, nil
}
