package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	request := &Request{
		Version: Version, Command: CommandAdd, ContainerID: "abc", NetNS: "/run/netns/x", IfName: "eth0",
		Args: "A=B", Path: "/opt/cni/bin", Stdin: bytes.Repeat([]byte{'{', 0xff}, MaxStdin/2),
	}
	var buf bytes.Buffer
	if err := WriteRequest(&buf, request); err != nil {
		t.Fatal(err)
	}
	gotRequest, err := ReadRequest(&buf)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(request, gotRequest, cmp.Comparer(bytes.Equal)); diff != "" {
		t.Error(diff)
	}
	for _, reply := range []*Reply{
		{Version: Version},
		{Version: Version, Result: bytes.Repeat([]byte("<>"), MaxResult/2)},
		{Version: Version, Error: &Error{Code: 11, Msg: "m\n\"ü", Details: "d"}},
	} {
		if err := WriteReply(&buf, reply); err != nil {
			t.Fatal(err)
		}
		got, err := ReadReply(&buf)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(reply, got, cmp.Comparer(bytes.Equal)); diff != "" {
			t.Error(diff)
		}
	}
	if buf.Len() != 0 {
		t.Errorf("%d bytes were not read", buf.Len())
	}
}

func TestWriteLimits(t *testing.T) {
	t.Parallel()
	if err := WriteRequest(io.Discard, &Request{Stdin: make([]byte, MaxStdin+1)}); err == nil {
		t.Error("a request with too large a configuration was sent")
	}
	if err := WriteRequest(io.Discard, &Request{Args: strings.Repeat("x", maxRequest)}); err == nil {
		t.Error("a request with too large an environment was sent")
	}
	if err := WriteReply(io.Discard, &Reply{Result: make([]byte, MaxResult+1)}); err == nil {
		t.Error("a reply with too large a result was sent")
	}
}

func framed(body string) string {
	return string(binary.BigEndian.AppendUint32(nil, uint32(len(body)))) + body
}

func TestReadGarbage(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, input, want string
		is                error
	}{
		{"nothing", "", "EOF", io.EOF},
		{"half a length", "\x00\x00", "EOF", io.ErrUnexpectedEOF},
		{"length alone", "\x00\x00\x00\x05", "EOF", io.ErrUnexpectedEOF},
		{"half a body", "\x00\x00\x00\x05{", "EOF", io.ErrUnexpectedEOF},
		{"HTTP", "GET / HTTP/1.1\r\n\r\n", "announces 1195725856 bytes", nil},
		{"all ones", "\xff\xff\xff\xff", "announces 4294967295 bytes", nil},
		{"empty body", framed(""), "decoding", nil},
		{"not JSON", framed("hello"), "decoding", nil},
		{"not an object", framed("[]"), "decoding", nil},
		{"no version", framed("{}"), "different releases", ErrVersion},
		{"other version", framed(`{"version":2}`), "different releases", ErrVersion},
	}
	for _, tt := range tests {
		for side, read := range map[string]func(io.Reader) error{
			"request": func(r io.Reader) error { _, err := ReadRequest(r); return err },
			"reply":   func(r io.Reader) error { _, err := ReadReply(r); return err },
		} {
			t.Run(tt.name+"/"+side, func(t *testing.T) {
				err := read(strings.NewReader(tt.input))
				if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), side) || (tt.is != nil && !errors.Is(err, tt.is)) {
					t.Errorf("got %v, want an error with %q and %q", err, tt.want, side)
				}
			})
		}
	}
	if _, err := ReadReply(strings.NewReader(framed(`{"version":9,"error":{"code":6,"msg":"too old"}}`))); err != nil {
		t.Errorf("an error of another version was not read: %v", err)
	}
	stdin, err := json.Marshal(Request{Version: Version, Stdin: make([]byte, MaxStdin+1)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ReadRequest(strings.NewReader(framed(string(stdin)))); err == nil || !strings.Contains(err.Error(), "is the limit") {
		t.Errorf("too large a configuration: %v", err)
	}
}

// TestAnnouncedIsNotAllocated announces the most and sends nothing.
func TestAnnouncedIsNotAllocated(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	head := binary.BigEndian.AppendUint32(nil, maxRequest)
	if _, err := ReadRequest(bytes.NewReader(head)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 256<<10 {
		t.Errorf("%d bytes were allocated for a request that never came", grown)
	}
}

func FuzzReadRequest(f *testing.F) {
	for _, seed := range []string{"", framed("{}"), framed(`{"version":1,"command":"ADD","stdin":"e30="}`), framed(`{"version":1,"command":"ADD","containerID":"../x"}`)} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		request, err := ReadRequest(bytes.NewReader(data))
		if err != nil {
			return
		}
		if err := request.CheckEnvironment(); err == nil && strings.ContainsAny(request.ContainerID+request.IfName, "/\x00") {
			t.Errorf("passed as an id: %q, %q", request.ContainerID, request.IfName)
		}
		_, err = DecodeConf(request.Command, request.Stdin)
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Errorf("DecodeConf returned a %T", err)
		}
	})
}

func TestDecodeConf(t *testing.T) {
	t.Parallel()
	conf := func(version string) string { return fmt.Sprintf(`{"cniVersion":%q,"name":"n"}`, version) }
	tests := []struct {
		name, command, stdin string
		code                 uint
		want                 string
	}{
		{"oldest", CommandAdd, conf("0.3.0"), 0, ""},
		{"newest", CommandAdd, conf("1.1.0"), 0, ""},
		{"CHECK", CommandCheck, conf("0.4.0"), 0, ""},
		{"GC", CommandGC, conf("1.1.0"), 0, ""},
		{"STATUS", CommandStatus, conf("1.1.0"), 0, ""},
		{"empty", CommandAdd, "", CodeDecode, "not a JSON object"},
		{"not JSON", CommandAdd, "{", CodeDecode, "not a JSON object"},
		{"two objects", CommandAdd, conf("1.0.0") + conf("1.0.0"), CodeDecode, "not a JSON object"},
		{"array", CommandAdd, "[]", CodeDecode, "not a JSON object"},
		{"null", CommandAdd, "null", CodeIncompatibleVersion, `cniVersion ""`},
		{"no version", CommandAdd, `{"name":"n"}`, CodeIncompatibleVersion, `cniVersion ""`},
		{"too old", CommandDel, conf("0.2.0"), CodeIncompatibleVersion, "0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"},
		{"too new", CommandDel, conf("2.0.0"), CodeIncompatibleVersion, `"2.0.0"`},
		{"CHECK too old", CommandCheck, conf("0.3.1"), CodeIncompatibleVersion, "CHECK"},
		{"GC too old", CommandGC, conf("1.0.0"), CodeIncompatibleVersion, "GC"},
		{"STATUS too old", CommandStatus, conf("1.0.0"), CodeIncompatibleVersion, "STATUS"},
		{"no name", CommandAdd, `{"cniVersion":"1.0.0"}`, CodeInvalidConfig, `name ""`},
		{"name as path", CommandAdd, `{"cniVersion":"1.0.0","name":"../n"}`, CodeInvalidConfig, `name "../n"`},
		{"socket of wrong type", CommandAdd, `{"cniVersion":"1.0.0","name":"n","socket":5}`, CodeInvalidConfig, `"socket" cannot be a number`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := DecodeConf(tt.command, []byte(tt.stdin))
			checkError(t, err, tt.code, tt.want)
		})
	}
	got, err := DecodeConf(CommandAdd, []byte(`{"cniVersion":"1.0.0","name":"n","socket":"/s","more":1}`))
	if diff := cmp.Diff(Conf{CNIVersion: "1.0.0", Name: "n", Socket: "/s"}, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if got, _ := DecodeConf(CommandGC, []byte(conf("1.0.0"))); got.CNIVersion != "1.0.0" {
		t.Errorf("with an error the version is %q", got.CNIVersion)
	}
}

func checkError(t *testing.T, err error, code uint, want string) {
	t.Helper()
	if code == 0 {
		if err != nil {
			t.Errorf("got %v", err)
		}
		return
	}
	var e *Error
	if !errors.As(err, &e) || e.Code != code || !strings.Contains(e.Error(), want) {
		t.Errorf("got %v, want code %d with %q", err, code, want)
	}
}

func TestCheckEnvironment(t *testing.T) {
	t.Parallel()
	full := Request{ContainerID: "a1_.-Z", NetNS: "/proc/1/ns/net", IfName: "eth0", Path: "/opt/cni/bin"}
	with := func(command string, change func(*Request)) *Request {
		r := full
		r.Command = command
		change(&r)
		return &r
	}
	tests := []struct {
		name    string
		request *Request
		want    []string // in the error; none means no error
	}{
		{"ADD", with(CommandAdd, func(*Request) {}), nil},
		{"ADD with the longest", with(CommandAdd, func(r *Request) {
			r.ContainerID, r.IfName = strings.Repeat("f", maxContainerID), strings.Repeat("i", maxIfName)
		}), nil},
		{"ADD without all", &Request{Command: CommandAdd}, []string{"CNI_CONTAINERID is missing", "CNI_NETNS is missing", "CNI_IFNAME is missing"}},
		{"DEL without netns", with(CommandDel, func(r *Request) { r.NetNS = "" }), nil},
		{"DEL without all", &Request{Command: CommandDel}, []string{"CNI_CONTAINERID is missing", "CNI_IFNAME is missing"}},
		{"CHECK without netns", with(CommandCheck, func(r *Request) { r.NetNS = "" }), []string{"CNI_NETNS is missing"}},
		{"STATUS without all", &Request{Command: CommandStatus}, nil},
		{"GC", &Request{Command: CommandGC, Path: "/p"}, nil},
		{"GC without path", &Request{Command: CommandGC}, []string{"CNI_PATH is missing"}},
		{"no command", &Request{}, []string{"CNI_COMMAND"}},
		{"unknown command", &Request{Command: "add"}, []string{`CNI_COMMAND "add"`}},
	}
	for _, id := range []string{"../x", "a/b", "-a", ".a", "a b", "ä", "a\n", strings.Repeat("f", maxContainerID+1)} {
		tests = append(tests, struct {
			name    string
			request *Request
			want    []string
		}{"id " + id, with(CommandDel, func(r *Request) { r.ContainerID = id }), []string{"CNI_CONTAINERID"}})
	}
	for _, name := range []string{"a/b", "a:b", "a b", "a\tb", ".", "..", "a\x00b", "a\u2003b", strings.Repeat("i", maxIfName+1)} {
		tests = append(tests, struct {
			name    string
			request *Request
			want    []string
		}{"ifname " + name, with(CommandDel, func(r *Request) { r.IfName = name }), []string{"CNI_IFNAME"}})
	}
	for _, netns := range []string{"relative", "/a\nb", "/" + strings.Repeat("x", maxPath)} {
		tests = append(tests, struct {
			name    string
			request *Request
			want    []string
		}{"netns " + netns, with(CommandDel, func(r *Request) { r.NetNS = netns }), []string{"CNI_NETNS"}})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.request.CheckEnvironment()
			if len(tt.want) == 0 && err != nil {
				t.Errorf("got %v", err)
			}
			for _, want := range tt.want {
				checkError(t, err, CodeInvalidEnvironment, want)
			}
		})
	}
}

// The releases beside this one speak the same bytes: what they send is read, and
// what this one sends they can read. The texts and the types here are theirs,
// and must not be changed with the code.
func TestReleasesBesideThisOne(t *testing.T) {
	t.Parallel()
	got, err := ReadRequest(strings.NewReader(framed(`{"version":1,"command":"ADD","containerID":"abc","netns":"/n","ifname":"eth0","args":"A=B","path":"/p","stdin":"e30=","later":{}}`)))
	if err != nil {
		t.Fatal(err)
	}
	request := &Request{Version: 1, Command: "ADD", ContainerID: "abc", NetNS: "/n", IfName: "eth0", Args: "A=B", Path: "/p", Stdin: []byte("{}")}
	if diff := cmp.Diff(request, got); diff != "" {
		t.Error(diff)
	}
	reply, err := ReadReply(strings.NewReader(framed(`{"version":1,"error":{"code":7,"msg":"m","details":"d","later":1}}`)))
	if diff := cmp.Diff(&Reply{Version: 1, Error: &Error{Code: 7, Msg: "m", Details: "d"}}, reply); diff != "" || err != nil {
		t.Error(diff, err)
	}

	var sent bytes.Buffer
	if err := WriteRequest(&sent, request); err != nil {
		t.Fatal(err)
	}
	const want = `{"version":1,"command":"ADD","containerID":"abc","netns":"/n","ifname":"eth0","args":"A=B","path":"/p","stdin":"e30="}`
	if diff := cmp.Diff(framed(want), sent.String()); diff != "" {
		t.Error(diff)
	}
	sent.Reset()
	if err := WriteReply(&sent, &Reply{Error: &Error{CNIVersion: "1.0.0", Code: 7, Msg: "m", Details: "d"}}); err != nil {
		t.Fatal(err)
	}
	var theirs struct {
		Version int
		Error   struct {
			Code         uint
			Msg, Details string
		}
	}
	if err := json.Unmarshal(sent.Bytes()[4:], &theirs); err != nil || theirs.Version != 1 || theirs.Error.Code != 7 || theirs.Error.Msg != "m" || theirs.Error.Details != "d" {
		t.Errorf("an earlier plugin reads %+v of %s: %v", theirs, sent.Bytes()[4:], err)
	}
}
