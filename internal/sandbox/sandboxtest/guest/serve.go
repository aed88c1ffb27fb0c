package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// gracefulCode is what serve exits with after SIGTERM.
const gracefulCode = 42

func serve(addresses []string) error {
	if len(addresses) == 0 {
		addresses = []string{":8080"}
	}
	fmt.Println("guest: to stdout")
	fmt.Fprintln(os.Stderr, "guest: to stderr")
	var listeners []net.Listener
	for _, a := range addresses {
		ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", a)
		if err != nil {
			return err
		}
		listeners = append(listeners, ln)
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	mux := http.NewServeMux()
	for path, h := range map[string]func(*http.Request) (any, error){
		"/env":   func(*http.Request) (any, error) { return os.Environ(), nil },
		"/args":  func(*http.Request) (any, error) { return os.Args, nil },
		"/id":    func(*http.Request) (any, error) { return identity(), nil },
		"/hog":   func(r *http.Request) (any, error) { hog(number(r, "mb")); return "survived", nil },
		"/burn":  burn,
		"/fork":  fork,
		"/fill":  fill,
		"/dial":  dial,
		"/count": count, "/remember": remember, "/recall": recall, "/now": now, "/random": random,
		"/draw": draw, "/drawn": drawn,
		"/write":    func(r *http.Request) (any, error) { return "ok", write(r) },
		"/read":     func(r *http.Request) (any, error) { return read(r) },
		"/length":   length,
		"/metadata": metadata,
		"/print":    func(r *http.Request) (any, error) { fmt.Println(r.FormValue("text")); return "ok", nil },
		"/exit":     func(r *http.Request) (any, error) { os.Exit(number(r, "code")); return nil, nil },
		"/processes": func(*http.Request) (any, error) {
			dirs, err := filepath.Glob("/proc/[0-9]*")
			return len(dirs), err
		},
		"/resolve": func(r *http.Request) (any, error) {
			return net.DefaultResolver.LookupHost(r.Context(), r.FormValue("name"))
		},
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			v, err := h(r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(v)
		})
	}
	mux.HandleFunc("/stream", stream)
	mux.HandleFunc("/echo", echo)
	mux.HandleFunc("/download", download)
	mux.HandleFunc("/upload", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintln(w, n, err)
	})
	srv := &http.Server{Handler: mux}
	go func() {
		<-term
		fmt.Println("guest: terminated")
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx)
		os.Exit(gracefulCode)
	}()
	failed := make(chan error, len(listeners))
	for _, ln := range listeners {
		go func() { failed <- srv.Serve(ln) }()
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	forever() // the goroutine above exits
	return nil
}

func number(r *http.Request, key string) int {
	n, _ := strconv.Atoi(r.FormValue(key))
	return n
}

// stream sends n events, each flushed, each only after the last was read if
// the client sends a byte for each.
func stream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex()
	one := make([]byte, 1)
	for i := range number(r, "n") {
		fmt.Fprintf(w, "data: %d\n\n", i)
		if rc.Flush() != nil {
			return
		}
		if _, err := io.ReadFull(r.Body, one); err != nil {
			return
		}
	}
}

// echo sends the body back while it arrives.
func echo(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex()
	_ = rc.Flush()
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buf)
		if _, werr := w.Write(buf[:n]); werr != nil || rc.Flush() != nil || err != nil {
			return
		}
	}
}

// download sends mb megabytes of a pattern.
func download(w http.ResponseWriter, r *http.Request) {
	chunk := []byte(strings.Repeat("0123456789abcdef", 1<<16))
	for range number(r, "mb") {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}

// dial says if a TCP connection can be made.
func dial(r *http.Request) (any, error) {
	d := net.Dialer{Timeout: 1500 * time.Millisecond}
	c, err := d.DialContext(r.Context(), "tcp", r.FormValue("addr"))
	if err != nil {
		return err.Error(), nil
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	b, err := io.ReadAll(io.LimitReader(c, 1024))
	if err != nil {
		return "connected, then " + err.Error(), nil
	}
	return "connected: " + string(b), nil
}

// burn keeps threads busy for a wall time.
func burn(r *http.Request) (any, error) {
	end := time.Now().Add(time.Duration(number(r, "ms")) * time.Millisecond)
	var wg sync.WaitGroup
	for range max(number(r, "threads"), 1) {
		wg.Go(func() {
			for x := 0; time.Now().Before(end); x++ {
			}
		})
	}
	wg.Wait()
	return "burnt", nil
}
