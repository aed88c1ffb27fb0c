package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

type invokeFlags struct {
	data, dataFile, path, method, grpc string
	headers                            []string
	include, timings                   bool
	timeout                            time.Duration
}

func newInvoke(g *globals) *cobra.Command {
	var f invokeFlags
	cmd := &cobra.Command{
		Use:   "invoke NAME",
		Short: "Send a request to a service and print the response",
		Long: `Send a request to a service through the gateway and print the body of the
response. The exit code is 1 if the status is 400 or above.`,
		Example: `  skep invoke hello
  skep invoke hello --path /echo --data '{"a": 1}' --header 'Content-Type: application/json'
  skep invoke greeter --grpc helloworld.Greeter/SayHello --data '{"name": "you"}'`,
		Args: cobra.ExactArgs(1),
		RunE: withClient(g, func(cmd *cobra.Command, c *client, args []string) error {
			s, err := c.service(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if s.Status.URL == nil {
				return coded(exitNotReady, fmt.Errorf("service %q takes no requests: %s", s.Name, causeOf(cmd.Context(), c, s)))
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
			defer cancel()
			body, err := f.body(cmd.InOrStdin())
			if err != nil {
				return coded(exitUsage, err)
			}
			if f.grpc != "" {
				return f.invokeGRPC(ctx, c.endpoints.Gateway, s.Status.URL.Host, body, cmd.OutOrStdout())
			}
			return f.invoke(ctx, c.endpoints.Gateway, s.Status.URL.Host, body, cmd.OutOrStdout())
		}),
		ValidArgsFunction: completeOne(g),
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.data, "data", "d", "", "body of the request")
	fl.StringVar(&f.dataFile, "data-file", "", "file with the body of the request, - for standard input")
	fl.StringArrayVarP(&f.headers, "header", "H", nil, "header 'Name: value', may be repeated")
	fl.StringVar(&f.path, "path", "/", "path and query")
	fl.StringVarP(&f.method, "method", "X", "", "method (default GET, POST with a body)")
	fl.StringVar(&f.grpc, "grpc", "", "call this gRPC method, package.Service/Method, by server reflection; the body is JSON")
	fl.BoolVarP(&f.include, "include", "i", false, "print the status and the headers, too")
	fl.BoolVar(&f.timings, "timings", false, "print how long each phase took, on standard error")
	fl.DurationVar(&f.timeout, "timeout", 5*time.Minute, "longest time to wait")
	cmd.MarkFlagsMutuallyExclusive("data", "data-file")
	return cmd
}

func (f *invokeFlags) body(stdin io.Reader) ([]byte, error) {
	if f.dataFile == "" {
		return []byte(f.data), nil
	}
	b, err := readFile(f.dataFile, stdin)
	if err != nil {
		return nil, fmt.Errorf("--data-file: %w", err)
	}
	return b, nil
}

func (f *invokeFlags) invoke(ctx context.Context, gateway, host string, body []byte, out io.Writer) error {
	method := f.method
	if method == "" {
		method = http.MethodGet
		if len(body) > 0 {
			method = http.MethodPost
		}
	}
	path := f.path
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+host+path, bytes.NewReader(body))
	if err != nil {
		return coded(exitUsage, fmt.Errorf("--path: %w", err))
	}
	for _, h := range f.headers {
		k, v, ok := strings.Cut(h, ":")
		if !ok {
			return coded(exitUsage, fmt.Errorf("--header: %q is not 'Name: value'", h))
		}
		req.Header.Add(strings.TrimSpace(k), strings.TrimSpace(v))
	}
	// The gateway is dialled by its address: the name need not resolve.
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", gateway)
	}}
	defer tr.CloseIdleConnections()
	began := time.Now()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("invoke: %w", err)
	}
	defer resp.Body.Close()
	if f.include {
		fmt.Fprintf(out, "%s %s\n", resp.Proto, resp.Status)
		_ = resp.Header.Write(out)
		fmt.Fprintln(out)
	}
	last := &lastByte{w: out}
	if _, err := io.Copy(last, resp.Body); err != nil {
		return fmt.Errorf("read the response: %w", err)
	}
	if isTerminal(stderr) && last.any && last.b != '\n' {
		fmt.Fprintln(out)
	}
	if f.timings {
		printTimings(stderr, resp.Header, time.Since(began))
	}
	if resp.StatusCode >= 400 {
		return fmt.Errorf("the response is %s", resp.Status)
	}
	return nil
}

type lastByte struct {
	w   io.Writer
	b   byte
	any bool
}

func (l *lastByte) Write(p []byte) (int, error) {
	if len(p) > 0 {
		l.b, l.any = p[len(p)-1], true
	}
	return l.w.Write(p)
}

// printTimings shows the Server-Timing header as a table.
func printTimings(w io.Writer, h http.Header, total time.Duration) {
	t := &table{head: []string{"PHASE", "TIME"}}
	for _, entry := range strings.Split(strings.Join(h.Values("Server-Timing"), ","), ",") {
		name, params, _ := strings.Cut(strings.TrimSpace(entry), ";")
		if d, ok := strings.CutPrefix(params, "dur="); ok && name != "" {
			t.add(name, d+" ms")
		}
	}
	t.add("total, seen here", millis(total))
	fmt.Fprintf(w, "start: %s\n", h.Get("X-Skep-Start"))
	_ = t.print(w)
}
