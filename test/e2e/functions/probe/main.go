// Command probe is a function that shows how it is treated: it streams, waits,
// counts, breaks and looks around as it is asked to.
package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

var (
	inFlight, most, cancelled atomic.Int64
	// born is when the process was started: clones of a snapshot share it.
	born  = fmt.Sprintf("%d-%d", os.Getpid(), time.Now().UnixNano())
	count atomic.Int64
	hooks struct {
		sync.Mutex
		called []string
	}
)

// instance is another one for each clone.
func instance() string {
	name, err := os.Hostname()
	if err != nil {
		return err.Error()
	}
	return name
}

// hook is called around snapshots.
func hook(w http.ResponseWriter, r *http.Request) {
	hooks.Lock()
	defer hooks.Unlock()
	hooks.called = append(hooks.called, r.Method+" "+r.URL.Path)
	switch r.URL.Path {
	case "/hook/bad":
		w.WriteHeader(http.StatusInternalServerError)
	case "/hook/slow":
		time.Sleep(2 * time.Second)
	}
}

// ballast is memory that only touch needs: it is filled when MODE says so.
var ballast []byte

func fill() {
	ballast = make([]byte, 16<<20)
	for i := range ballast {
		ballast[i] = byte(i)
	}
}

// touch reads some of each page.
func touch(w http.ResponseWriter, _ *http.Request) {
	sum := 0
	for i := 0; i < len(ballast); i += 4096 {
		sum += int(ballast[i+i/4096%4096])
	}
	fmt.Fprintln(w, sum)
}

// signals are hooks, too.
func signals() {
	got := make(chan os.Signal, 8)
	signal.Notify(got, syscall.SIGUSR1, syscall.SIGUSR2)
	for s := range got {
		hooks.Lock()
		hooks.called = append(hooks.called, s.String())
		hooks.Unlock()
	}
}

// state tells what is in memory, and counts up.
func state(w http.ResponseWriter, _ *http.Request) {
	hooks.Lock()
	defer hooks.Unlock()
	_ = json.NewEncoder(w).Encode(map[string]any{"born": born, "count": count.Add(1), "hooks": hooks.called, "host": instance()})
}

func main() {
	switch os.Getenv("MODE") {
	case "exit": // ends at once
		fmt.Fprintln(os.Stderr, "boom: the configuration is missing")
		os.Exit(3)
	case "deaf": // never opens its port
		fmt.Println("I do not listen")
		time.Sleep(time.Hour)
	case "ballast":
		fill()
	case "hog": // needs more memory than it gets
		hog()
	}
	go signals()
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "probe %s\n", os.Getenv("VERSION")) })
	mux.HandleFunc("/sleep", sleep)
	mux.HandleFunc("/status", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(number(r, "code", 200)) })
	mux.HandleFunc("/sse", events)
	mux.HandleFunc("/ws", socket)
	mux.HandleFunc("/sum", sum)
	mux.HandleFunc("/dial", dial)
	mux.HandleFunc("/addresses", addresses)
	mux.HandleFunc("/stats", stats)
	mux.HandleFunc("/exit", func(_ http.ResponseWriter, r *http.Request) { os.Exit(number(r, "code", 7)) })
	mux.HandleFunc("/oom", func(http.ResponseWriter, *http.Request) { hog() })
	mux.HandleFunc("/whoami", whoami)
	mux.HandleFunc("/state", state)
	mux.HandleFunc("/hook/", hook)
	mux.HandleFunc("/touch", touch)
	mux.HandleFunc("POST /skep.test.Echo/Echo", grpcEcho)
	mux.HandleFunc("POST /skep.test.Echo/Fail", grpcFail)

	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Addr: "0.0.0.0:" + os.Getenv("PORT"), Handler: counted(mux), Protocols: &protocols, ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(s.ListenAndServe())
}

// counted counts the requests that run now, but those that ask for the count.
func counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/stats" {
			n := inFlight.Add(1)
			defer inFlight.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
		}
		w.Header().Set("X-Instance", instance())
		h.ServeHTTP(w, r)
	})
}

func number(r *http.Request, name string, otherwise int) int {
	n, err := strconv.Atoi(r.FormValue(name))
	if err != nil {
		return otherwise
	}
	return n
}

func stats(w http.ResponseWriter, _ *http.Request) {
	_ = json.NewEncoder(w).Encode(map[string]any{
		"instance": instance(), "inFlight": inFlight.Load(), "most": most.Load(), "cancelled": cancelled.Load(),
	})
}

func sleep(w http.ResponseWriter, r *http.Request) {
	select {
	case <-time.After(time.Duration(number(r, "ms", 100)) * time.Millisecond):
		fmt.Fprintln(w, "slept")
	case <-r.Context().Done():
		cancelled.Add(1)
	}
}

// events sends n server-sent events, each when the client has had time to see
// the one before.
func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	rc := http.NewResponseController(w)
	for i := range number(r, "n", 3) {
		fmt.Fprintf(w, "data: %d\n\n", i)
		if err := rc.Flush(); err != nil {
			return
		}
		select {
		case <-time.After(time.Duration(number(r, "ms", 10)) * time.Millisecond):
		case <-r.Context().Done():
			cancelled.Add(1)
			return
		}
	}
}

func socket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		log.Print(err)
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(2 << 20)
	for {
		kind, b, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if err := c.Write(r.Context(), kind, b); err != nil {
			return
		}
	}
}

func sum(w http.ResponseWriter, r *http.Request) {
	h := sha256.New()
	n, err := io.Copy(h, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "%d %s\n", n, hex.EncodeToString(h.Sum(nil)))
}

// dial tells whether an address can be reached.
func dial(w http.ResponseWriter, r *http.Request) {
	c, err := net.DialTimeout("tcp", r.FormValue("addr"), 700*time.Millisecond)
	if err != nil {
		fmt.Fprintf(w, "failed: %v\n", err)
		return
	}
	c.Close()
	fmt.Fprintln(w, "reached")
}

func addresses(w http.ResponseWriter, _ *http.Request) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	for _, a := range all {
		fmt.Fprintln(w, a)
	}
}

func whoami(w http.ResponseWriter, _ *http.Request) {
	wd, _ := os.Getwd()
	fmt.Fprintf(w, "%d:%d %s %v\n", os.Getuid(), os.Getgid(), wd, os.Args[1:])
}

// hog takes memory until there is none.
func hog() {
	fmt.Println("taking memory")
	var all [][]byte
	for {
		b := make([]byte, 4<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = byte(i>>12) | 1
		}
		all = append(all, b)
	}
}

// grpcEcho sends back each message of the stream as it comes, then the status
// as trailers: gRPC without its library.
func grpcEcho(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status, Grpc-Message, X-Messages")
	rc := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	_ = rc.Flush()
	n := 0
	for ; ; n++ {
		var head [5]byte
		if _, err := io.ReadFull(r.Body, head[:]); err != nil {
			break
		}
		m := make([]byte, min(binary.BigEndian.Uint32(head[1:]), 8<<20))
		if _, err := io.ReadFull(r.Body, m); err != nil {
			break
		}
		_, _ = w.Write(append(head[:], m...))
		_ = rc.Flush()
	}
	w.Header().Set("Grpc-Status", "0")
	w.Header().Set("X-Messages", strconv.Itoa(n))
}

func grpcFail(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
	w.WriteHeader(http.StatusOK)
	w.Header().Set("Grpc-Status", "9")
	w.Header().Set("Grpc-Message", "not now")
}
