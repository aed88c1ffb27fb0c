package agent

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	"github.com/skep-dev/skep/internal/agent/agentpb"
)

// frame is a ttrpc request as it is on the wire.
func frame(t testing.TB, stream uint32, method string, m proto.Message) []byte {
	t.Helper()
	payload, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	body, err := proto.Marshal(&ttrpc.Request{Service: "skep.agent.v1.Agent", Method: method, Payload: payload})
	if err != nil {
		t.Fatal(err)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(append(b, 1, 0), body...)
}

// FuzzAgentProtocol gives the agent's end arbitrary bytes after the token. It
// must survive, and whatever reaches the guest must be within bounds.
func FuzzAgentProtocol(f *testing.F) {
	ok := &agentpb.Process{Args: []string{"/bin/true"}, Env: []string{"A=b"}, Cwd: "/", User: "0:0"}
	f.Add(frame(f, 1, "Ping", &agentpb.PingRequest{}))
	f.Add(frame(f, 1, "Configure", &agentpb.ConfigureRequest{Hostname: "h", Dns: []string{"1.1.1.1"}, DiskBytes: 1}))
	f.Add(append(frame(f, 1, "Start", &agentpb.StartRequest{Process: ok}), frame(f, 3, "Wait", &agentpb.WaitRequest{})...))
	f.Add(frame(f, 1, "Exec", &agentpb.ExecRequest{Process: ok, Stdin: true}))
	f.Add(frame(f, 1, "Read", &agentpb.ReadRequest{Stream: agentpb.Stream_STREAM_STDOUT, Offset: 1 << 62}))
	f.Add(frame(f, 1, "Write", &agentpb.WriteRequest{Data: []byte("x"), Close: true}))
	f.Add(frame(f, 1, "Signal", &agentpb.SignalRequest{Signal: 9}))
	f.Add(frame(f, 1, "WaitPort", &agentpb.WaitPortRequest{Port: 80}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0})

	g := newRecorder()
	dial := serve(f, g, "127.0.0.1")
	token := NewToken()
	f.Fuzz(func(t *testing.T, b []byte) {
		conn, err := dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		if err := present(conn, token, opCalls); err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(b)
		_ = conn.(*net.TCPConn).CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		_, _ = io.Copy(io.Discard, conn)
		for {
			select {
			case p := <-g.started:
				if err := checkProcess(p); err != nil {
					t.Errorf("the guest was told to start %v: %v", p, err)
				}
				continue
			case in := <-g.input:
				if len(in) > MaxChunk {
					t.Errorf("the guest was given %d bytes at once", len(in))
				}
				continue
			default:
			}
			return
		}
	})
}
