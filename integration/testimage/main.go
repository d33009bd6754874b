// Command nodetest is the program in the images that the tests run as pods:
// pause, an HTTP server, UDP and TCP servers and clients. It is static and
// needs nothing else in its image.
//
//	nodetest pause                        wait for SIGTERM or SIGINT
//	nodetest serve -http :80 -udp :81     HTTP and UDP server until it is ended
//	nodetest get URL                      print the body of an HTTP answer
//	nodetest tcp ADDRESS TEXT             send TEXT, print the answer
//	nodetest udp ADDRESS TEXT             send TEXT, print the answer
//	nodetest sleep DURATION               wait
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// clientTimeout bounds every client call.
const clientTimeout = 5 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "nodetest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("no command: one of pause, serve, get, tcp, udp, sleep")
	}
	command, args := args[0], args[1:]
	switch {
	case command == "pause":
		<-ctx.Done()
		return nil
	case command == "serve":
		return serve(ctx, args, stdout)
	case command == "get" && len(args) == 1:
		return get(ctx, args[0], stdout)
	case (command == "tcp" || command == "udp") && len(args) == 2:
		return talk(ctx, command, args[0], args[1], stdout)
	case command == "sleep" && len(args) == 1:
		return sleep(ctx, args[0])
	}
	return fmt.Errorf("unknown command or wrong number of arguments: %s %q", command, args)
}

// serve answers HTTP with the host's name and the client's address, and UDP
// datagrams with the host's name, the client's address and the datagram.
func serve(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	httpAddr := flags.String("http", ":80", "address of the HTTP server, empty for none")
	udpAddr := flags.String("udp", "", "address of the UDP server, empty for none")
	if err := flags.Parse(args); err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	if *httpAddr != "" {
		listener, err := net.Listen("tcp", *httpAddr)
		if err != nil {
			return err
		}
		server := &http.Server{Handler: answer(host, stdout), ReadHeaderTimeout: clientTimeout}
		defer server.Close()
		go func() { failed <- server.Serve(listener) }()
	}
	if *udpAddr != "" {
		conn, err := net.ListenPacket("udp", *udpAddr)
		if err != nil {
			return err
		}
		defer conn.Close()
		go func() { failed <- echo(conn, host) }()
	}
	fmt.Fprintln(stdout, "ready")
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

func answer(host string, log io.Writer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(log, r.Method, r.URL.Path, r.RemoteAddr)
		fmt.Fprintln(w, host, r.RemoteAddr)
	})
}

func echo(conn net.PacketConn, host string) error {
	buf := make([]byte, 64<<10)
	for {
		n, peer, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		// A client that went away is no reason to end.
		_, _ = fmt.Fprintf(packetWriter{conn, peer}, "%s %s %s", host, peer, buf[:n])
	}
}

type packetWriter struct {
	conn net.PacketConn
	peer net.Addr
}

func (w packetWriter) Write(b []byte) (int, error) { return w.conn.WriteTo(b, w.peer) }

func get(ctx context.Context, url string, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(stdout, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}

func talk(ctx context.Context, network, address, text string, stdout io.Writer) error {
	dialer := net.Dialer{Timeout: clientTimeout}
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(clientTimeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	n, err := conn.Read(buf)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(stdout, string(buf[:n]))
	return err
}

func sleep(ctx context.Context, duration string) error {
	d, err := time.ParseDuration(duration)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	return nil
}
