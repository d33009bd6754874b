package proxy

import (
	"testing"

	"google.golang.org/grpc"
)

// BenchmarkUnary compares a call to upstream with the same through the proxy.
func BenchmarkUnary(b *testing.B) {
	sizes := []struct {
		name string
		size int
	}{{"100B", 100}, {"100KB", 100 << 10}, {"400KB", 400 << 10}, {"4MB", 4 << 20}}
	for _, s := range sizes {
		answer := make([]byte, s.size)
		send := func(stream grpc.ServerStream) error {
			if _, err := receiveAll(stream); err != nil {
				return err
			}
			return stream.SendMsg(message(answer))
		}
		p := startPair(b, Config{Hooks: map[string]Hook{"/s/Hooked": identity}}, map[string]handler{version: send, "/s/Hooked": send})
		for name, c := range map[string]struct {
			conn   *grpc.ClientConn
			method string
		}{"direct": {p.direct, version}, "proxied": {p.proxied, version}, "hooked": {p.proxied, "/s/Hooked"}} {
			b.Run(s.name+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				request := make([]byte, 100)
				for b.Loop() {
					var out frame
					if err := c.conn.Invoke(b.Context(), c.method, message(request), &out); err != nil {
						b.Fatal(err)
					}
					out.data.Free()
				}
			})
		}
	}
}
