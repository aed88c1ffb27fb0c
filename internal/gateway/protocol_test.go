package gateway

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

type testService struct {
	testpb.UnimplementedTestServiceServer
}

func (testService) UnaryCall(ctx context.Context, in *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	if in.GetResponseStatus().GetCode() != 0 {
		return nil, status.Error(codes.Code(in.GetResponseStatus().GetCode()), in.GetResponseStatus().GetMessage())
	}
	_ = grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "unary"))
	return &testpb.SimpleResponse{Payload: in.GetPayload()}, nil
}

// FullDuplexCall answers each message as it comes.
func (testService) FullDuplexCall(s testpb.TestService_FullDuplexCallServer) error {
	s.SetTrailer(metadata.Pairs("x-trailer", "stream"))
	for {
		in, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.Send(&testpb.StreamingOutputCallResponse{Payload: in.GetPayload()}); err != nil {
			return err
		}
	}
}

func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	testpb.RegisterTestServiceServer(srv, testService{})
	healthpb.RegisterHealthServer(srv, health.NewServer())
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	g := startGateway(t, Config{}, Revision{Protocol: H2C, ContainerConcurrency: 10})
	g.add(t, "a", l.Addr().String())
	conn, err := grpc.NewClient("passthrough:///"+g.addr, grpc.WithAuthority(testHost), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	if resp, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}); err != nil || resp.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", resp, err)
	}
	client := testpb.NewTestServiceClient(conn)
	var trailer metadata.MD
	big := make([]byte, 1<<20)
	resp, err := client.UnaryCall(ctx, &testpb.SimpleRequest{Payload: &testpb.Payload{Body: big}}, grpc.Trailer(&trailer))
	if err != nil || len(resp.GetPayload().GetBody()) != len(big) || trailer.Get("x-trailer")[0] != "unary" {
		t.Errorf("unary: %d bytes, trailer %v, %v", len(resp.GetPayload().GetBody()), trailer, err)
	}
	_, err = client.UnaryCall(ctx, &testpb.SimpleRequest{ResponseStatus: &testpb.EchoStatus{Code: int32(codes.DataLoss), Message: "gone"}})
	if status.Code(err) != codes.DataLoss || !strings.Contains(err.Error(), "gone") {
		t.Errorf("status in the trailers: %v", err)
	}
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, msg := range []string{"one", "two", "three"} { // in lock step
		if err := stream.Send(&testpb.StreamingOutputCallRequest{Payload: &testpb.Payload{Body: []byte(msg)}}); err != nil {
			t.Fatal(err)
		}
		in, err := stream.Recv()
		if err != nil || string(in.GetPayload().GetBody()) != msg {
			t.Fatalf("echo of %s: %v, %v", msg, in, err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("end of the stream: %v", err)
	}
	if got := stream.Trailer().Get("x-trailer"); len(got) != 1 || got[0] != "stream" {
		t.Errorf("trailer of the stream: %v", got)
	}
	_, err = client.EmptyCall(ctx, &testpb.Empty{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("trailers only: %v", err)
	}
}

func TestWebSocket(t *testing.T) {
	addr := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"echo"}})
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		defer c.CloseNow()
		for {
			typ, msg, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if err := c.Write(r.Context(), typ, msg); err != nil {
				return
			}
		}
	})
	for _, proto := range []Protocol{HTTP1, H2C} {
		t.Run(string(proto), func(t *testing.T) {
			g := startGateway(t, Config{}, Revision{Protocol: proto})
			g.add(t, "a", addr)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c, resp, err := websocket.Dial(ctx, g.url+"/chat", &websocket.DialOptions{Host: testHost, Subprotocols: []string{"echo"}})
			if err != nil {
				t.Fatal(err)
			}
			defer c.CloseNow()
			if resp.Header.Get("X-Skep-Start") != "warm" || c.Subprotocol() != "echo" {
				t.Errorf("header %v, subprotocol %q", resp.Header, c.Subprotocol())
			}
			for _, msg := range []string{"a", strings.Repeat("b", 20000)} {
				if err := c.Write(ctx, websocket.MessageText, []byte(msg)); err != nil {
					t.Fatal(err)
				}
				if _, got, err := c.Read(ctx); err != nil || string(got) != msg {
					t.Fatalf("%d bytes came back of %d: %v", len(got), len(msg), err)
				}
			}
			if s, _ := g.Stats(testKey); s.InFlight != 1 {
				t.Errorf("an open WebSocket is not counted: %+v", s)
			}
			if err := c.Close(websocket.StatusNormalClosure, "bye"); err != nil {
				t.Errorf("close: %v", err)
			}
			eventually(t, "it is done", func() bool { s, _ := g.Stats(testKey); return s.InFlight == 0 })
		})
	}
}

func TestDrainCutsWebSocketsInTheEnd(t *testing.T) {
	addr := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		_, _, _ = c.Read(r.Context())
	})
	g := startGateway(t, Config{}, Revision{})
	g.add(t, "a", addr)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, _, err := websocket.Dial(ctx, g.url, &websocket.DialOptions{Host: testHost})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	over, stop := context.WithCancel(ctx)
	stop()
	if err := g.Drain(over); !errors.Is(err, context.Canceled) {
		t.Errorf("drain: %v", err)
	}
	if _, _, err := c.Read(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the WebSocket is still open: %v", err)
	}
}

// TestServerSentEvents checks that each event arrives before the next one is made.
func TestServerSentEvents(t *testing.T) {
	for _, proto := range []Protocol{HTTP1, H2C} {
		t.Run(string(proto), func(t *testing.T) {
			next := make(chan struct{})
			addr := upstream(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				rc := http.NewResponseController(w)
				_ = rc.Flush() // the header alone
				for range 3 {
					select {
					case <-next:
					case <-r.Context().Done():
						return
					}
					_, _ = io.WriteString(w, "data: x\n\n")
					_ = rc.Flush()
				}
			})
			g := startGateway(t, Config{}, Revision{Protocol: proto})
			g.add(t, "a", addr)
			resp, err := newClient(t).Do(g.request(t, "GET", "/", nil))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			br := bufio.NewReader(resp.Body)
			for range 3 {
				next <- struct{}{}
				line, err := br.ReadString('\n')
				if err != nil || line != "data: x\n" {
					t.Fatalf("event: %q, %v", line, err)
				}
				_, _ = br.ReadString('\n')
			}
			if _, err := br.ReadByte(); err != io.EOF {
				t.Errorf("end: %v", err)
			}
		})
	}
}

// TestBothWaysAtOnce streams in lock step over HTTP/1.1: nothing is held back either way.
func TestBothWaysAtOnce(t *testing.T) {
	addr := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		w.WriteHeader(200)
		_ = rc.Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			_ = rc.Flush()
			if err != nil {
				return
			}
		}
	})
	for _, proto := range []Protocol{HTTP1, H2C} {
		t.Run(string(proto), func(t *testing.T) {
			g := startGateway(t, Config{}, Revision{Protocol: proto})
			g.add(t, "a", addr)
			pr, pw := io.Pipe()
			resp, err := newClient(t).Do(g.request(t, "POST", "/", pr))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			buf := make([]byte, 5)
			for range 5 {
				if _, err := io.WriteString(pw, "hello"); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(resp.Body, buf); err != nil || string(buf) != "hello" {
					t.Fatalf("echo %q, %v", buf, err)
				}
			}
			_ = pw.Close()
			if n, err := io.Copy(io.Discard, resp.Body); n != 0 || err != nil {
				t.Errorf("end: %d, %v", n, err)
			}
		})
	}
}

func TestTrailersOverHTTP1(t *testing.T) {
	addr := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.Copy(w, r.Body)
		w.Header().Set("X-Sum", r.Trailer.Get("X-In"))
	})
	g := startGateway(t, Config{}, Revision{})
	g.add(t, "a", addr)
	r := g.request(t, "POST", "/", io.MultiReader(strings.NewReader("hello")))
	r.Trailer = http.Header{"X-In": {"42"}}
	resp, body := do(t, newClient(t), r)
	if body != "hello" || resp.Trailer.Get("X-Sum") != "42" {
		t.Errorf("body %q, trailer %v", body, resp.Trailer)
	}
}

func TestExpectContinue(t *testing.T) {
	addr := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.Copy(w, r.Body)
	})
	g := startGateway(t, Config{}, Revision{})
	g.add(t, "a", addr)
	c := newClient(t)
	c.Transport.(*http.Transport).ExpectContinueTimeout = time.Hour // only the instance's word lets the body go
	for _, tc := range []struct {
		path string
		want int
		asks bool
	}{{"/", 200, true}, {"/refuse", 401, false}, {"/", 200, true}} {
		asked := false
		r := g.request(t, "POST", tc.path, strings.NewReader("hello"))
		r.Header.Set("Expect", "100-continue")
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got100Continue: func() { asked = true }}))
		resp, body := do(t, c, r)
		wantStatus(t, resp, body, tc.want)
		if asked != tc.asks || tc.asks && body != "hello" {
			t.Errorf("%s: asked for the body: %v, body %q", tc.path, asked, body)
		}
	}
}

func TestEarlyHints(t *testing.T) {
	addr := upstream(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		_, _ = io.WriteString(w, "ok")
	})
	for _, proto := range []Protocol{HTTP1, H2C} {
		t.Run(string(proto), func(t *testing.T) {
			g := startGateway(t, Config{}, Revision{Protocol: proto})
			g.add(t, "a", addr)
			var hints []string
			r := g.request(t, "GET", "/", nil)
			r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				hints = append(hints, h.Get("Link"))
				return nil
			}}))
			resp, body := do(t, newClient(t), r)
			if len(hints) != 1 || hints[0] != "</a.css>; rel=preload" || body != "ok" || resp.Header.Get("Link") != "" {
				t.Errorf("hints %v, body %q, header %v", hints, body, resp.Header)
			}
		})
	}
}

func TestTimeouts(t *testing.T) {
	addr := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/begun" {
			_, _ = io.WriteString(w, "begun")
			_ = http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
	})
	for _, proto := range []Protocol{HTTP1, H2C} {
		t.Run(string(proto), func(t *testing.T) {
			for name, rev := range map[string]Revision{
				"whole": {Timeout: 50 * time.Millisecond},
				"start": {ResponseStartTimeout: 50 * time.Millisecond},
			} {
				rev.Protocol = proto
				g := startGateway(t, Config{}, rev)
				g.add(t, "a", addr)
				resp, body := do(t, newClient(t), g.request(t, "GET", "/", nil))
				if resp.StatusCode != http.StatusGatewayTimeout {
					t.Errorf("%s: status %d, %s", name, resp.StatusCode, body)
				}
				if name == "whole" { // cut, visibly
					resp, err := newClient(t).Do(g.request(t, "GET", "/begun", nil))
					if err != nil {
						t.Fatal(err)
					}
					if b, err := io.ReadAll(resp.Body); err == nil {
						t.Errorf("a response that was cut looks whole: %q", b)
					}
					_ = resp.Body.Close()
				}
			}
		})
	}
}
