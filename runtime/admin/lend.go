package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/config"
)

// LendPath has crinetd lend throwaway attachments. The request's connection is
// upgraded: both sides then send lines of JSON, an Order and its Answer in turn. The
// attachments are lent as long as the connection stands.
const LendPath = "/v1/lend"

// lendProtocol names what a connection is upgraded to.
const lendProtocol = "crinet-lend"

const (
	// maxLend bounds a request to lend: a candidate's files.
	maxLend = 8 << 20
	// maxLine bounds a line of the upgraded connection in bytes.
	maxLine = 4 << 20
	// answerTime bounds the writing of an answer.
	answerTime = 10 * time.Second
)

// Lend asks for a loan.
type Lend struct {
	// Who borrows, for whoever asks meanwhile.
	Who string `json:"who"`
	// Candidate is the network to lend attachments of; nil for the selected one.
	Candidate *config.Candidate `json:"candidate,omitempty"`
}

// Order is what a borrower asks for.
type Order struct {
	// Do is add, check or return.
	Do string `json:"do"`
	// HostPorts asks add for hostPorts.
	HostPorts bool `json:"hostPorts,omitempty"`
	// Index is of the attachment to check, in the order of the adds, from 0.
	Index int `json:"index,omitempty"`
}

// The orders of a borrower.
const (
	OrderAdd    = "add"
	OrderCheck  = "check"
	OrderReturn = "return"
)

// Answer is what crinetd answers to an order.
type Answer struct {
	// Error says why the order failed; empty if it succeeded.
	Error string `json:"error,omitempty"`
	// Lent is the attachment of an add. Its network namespace comes beside the line
	// as a file descriptor (SCM_RIGHTS): the path may be in crinetd's mounts only.
	Lent *Lent `json:"lent,omitempty"`
	// Left is what crinetd still has of the attachments after a return.
	Left []string `json:"left,omitempty"`
}

// Lent is a borrowed attachment.
type Lent struct {
	ContainerID string `json:"containerID"`
	NetNS       string `json:"netns"`
	IfName      string `json:"ifName"`
	Network     string `json:"network"`
	File        string `json:"file,omitempty"`
	// Warnings say what may make the network's pods fail.
	Warnings  []string `json:"warnings,omitempty"`
	Addresses []string `json:"addresses"`
	// HostPort leads to ContainerPort, tcp and udp, mapped by MappedBy: crinetd or
	// plugin. 0 if none is, which NoHostPort says the reason of. NoLoopback says why
	// it does not answer on 127.0.0.1; empty if it does.
	HostPort      uint16 `json:"hostPort,omitempty"`
	ContainerPort uint16 `json:"containerPort,omitempty"`
	MappedBy      string `json:"mappedBy,omitempty"`
	NoHostPort    string `json:"noHostPort,omitempty"`
	NoLoopback    string `json:"noLoopback,omitempty"`
	// ConfList is the network's configuration list. HasCheck says whether it has CHECK.
	ConfList json.RawMessage `json:"confList"`
	HasCheck bool            `json:"hasCheck"`
	// Builtin are the plugins that ran inside crinetd.
	Builtin []string `json:"builtin,omitempty"`
}

// Loan is what is lent to one borrower. It ends with its context.
type Loan interface {
	Add(ctx context.Context, hostPorts bool) (*Lent, error)
	Check(ctx context.Context, index int) error
	Return(ctx context.Context) (left []string, err error)
}

// lender serves LendPath.
type lender struct {
	source Source
	log    *slog.Logger
}

func (l lender) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != lendProtocol {
		http.Error(w, "the connection must be upgraded to "+lendProtocol, http.StatusUpgradeRequired)
		return
	}
	var what Lend
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxLend)).Decode(&what); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	// The end of crinetd ends the loan, in the engine.
	ctx, end := context.WithCancelCause(context.WithoutCancel(r.Context()))
	defer end(nil)
	loan, err := l.source.Lend(ctx, what)
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		l.log.Error("a connection cannot be upgraded to lend attachments", "err", err)
		return
	}
	defer func() { _ = conn.Close() }() // the borrower is done, or gone
	if err := upgraded(conn); err != nil {
		return
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return
	}
	l.serve(ctx, end, unixConn, loan)
}

// upgraded tells the borrower that orders are awaited.
func upgraded(conn net.Conn) error {
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	_, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", lendProtocol)
	return err
}

// serve obeys orders until the borrower is gone, which is noticed during an order as
// well.
func (l lender) serve(ctx context.Context, end context.CancelCauseFunc, conn *net.UnixConn, loan Loan) {
	orders := make(chan Order)
	go func() {
		defer close(orders)
		lines := bufio.NewScanner(conn)
		for lines.Scan() {
			var order Order
			if json.Unmarshal(lines.Bytes(), &order) != nil {
				break
			}
			select {
			case orders <- order:
			case <-ctx.Done():
				return
			}
		}
		end(errors.New("the borrower is gone"))
	}()
	for order := range orders {
		answer := l.obey(ctx, loan, order)
		if err := sendAnswer(conn, answer); err != nil {
			l.log.Debug("an answer to a borrower could not be written", "err", err)
			return
		}
	}
}

// obey does what an order says.
func (l lender) obey(ctx context.Context, loan Loan, order Order) (answer Answer) {
	var err error
	switch order.Do {
	case OrderAdd:
		answer.Lent, err = loan.Add(ctx, order.HostPorts)
	case OrderCheck:
		err = loan.Check(ctx, order.Index)
	case OrderReturn:
		answer.Left, err = loan.Return(ctx)
	default:
		err = fmt.Errorf("no order %q", order.Do)
	}
	if err != nil {
		answer.Error = err.Error()
	}
	return answer
}

// sendAnswer sends a line, with the namespace of what is lent.
func sendAnswer(conn *net.UnixConn, answer Answer) error {
	line, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	var rights []byte
	if answer.Lent != nil {
		space, err := os.Open(answer.Lent.NetNS)
		if err != nil {
			return err
		}
		defer func() { _ = space.Close() }() // it was only sent
		rights = unix.UnixRights(int(space.Fd()))
	}
	if err := conn.SetWriteDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	line = append(line, '\n')
	n, _, err := conn.WriteMsgUnix(line, rights, nil)
	if err == nil && n < len(line) {
		_, err = conn.Write(line[n:])
	}
	return err
}

// receiveAnswer reads a line and the namespace beside it, nil if there is none.
func receiveAnswer(conn *net.UnixConn) (answer Answer, space *os.File, err error) {
	var line []byte
	buffer, rights := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	defer func() {
		if err != nil && space != nil {
			_ = space.Close() // it is not handed on
			space = nil
		}
	}()
	for !bytes.HasSuffix(line, []byte("\n")) {
		n, oobn, _, _, err := conn.ReadMsgUnix(buffer, rights)
		if err != nil {
			return answer, space, err
		}
		line = append(line, buffer[:n]...)
		if file, err := received(rights[:oobn]); err != nil || file != nil {
			space = file
			if err != nil {
				return answer, space, err
			}
		}
		switch {
		case n == 0:
			return answer, space, errors.New("crinetd has closed the connection")
		case len(line) > maxLine:
			return answer, space, fmt.Errorf("an answer of more than %d bytes", maxLine)
		}
	}
	return answer, space, json.Unmarshal(line, &answer)
}

// received is the file descriptor of a control message; nil if there is none.
func received(oob []byte) (*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return nil, err
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "network namespace"), nil
}
