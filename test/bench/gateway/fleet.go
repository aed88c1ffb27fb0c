package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/skep-dev/skep/internal/testenv"
)

// names are the measured, in the order of the table.
var names = []string{"direct", "nginx", "caddy", "skep"}

const host = "hello.default.bench.example.com"

// fleet is the upstream and the proxies, each a process group of its own.
type fleet struct {
	addr  map[string]string // by name
	group map[string]int    // process group, by name
	procs []*exec.Cmd
	logs  map[*exec.Cmd]string
}

// startFleet returns a fleet to stop even with an error.
func startFleet(ctx context.Context, dir string, o options) (*fleet, error) {
	f := &fleet{addr: map[string]string{}, group: map[string]int{}, logs: map[*exec.Cmd]string{}}
	for _, n := range names {
		port, err := testenv.FreePort()
		if err != nil {
			return f, err
		}
		f.addr[n] = fmt.Sprintf("127.0.0.1:%d", port)
	}
	up := f.addr["direct"]
	files := map[string]string{
		"upstream.conf": nginxConf(dir, "upstream", `
    server { listen `+up+` reuseport; location / { default_type text/plain; return 200 "Hello, world!\n"; } }`),
		"nginx.conf": nginxConf(dir, "nginx", `
    upstream up { server `+up+`; keepalive 256; keepalive_requests 1000000000; }
    server {
      listen `+f.addr["nginx"]+` reuseport;
      location / {
        proxy_pass http://up;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        proxy_set_header X-Request-Id $request_id;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Host $host;
        proxy_set_header X-Forwarded-Proto $scheme;
      }
    }`),
		"Caddyfile": `{
	admin off
	auto_https off
}
http://:` + strings.TrimPrefix(f.addr["caddy"], "127.0.0.1:") + ` {
	bind 127.0.0.1
	reverse_proxy ` + up + ` {
		transport http {
			keepalive 60s
			keepalive_idle_conns 1024
			keepalive_idle_conns_per_host 256
		}
	}
}
`,
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return f, fmt.Errorf("writing the configuration: %w", err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return f, fmt.Errorf("finding this program: %w", err)
	}
	gw := []string{self, "-role", "gateway", "-listen", f.addr["skep"], "-to", up}
	if o.profile != "" {
		gw = append(gw, "-cpuprofile", o.profile)
	}
	for i, args := range [][]string{ // in the order of names
		{"nginx", "-p", dir, "-c", filepath.Join(dir, "upstream.conf"), "-e", filepath.Join(dir, "upstream.err")},
		{"nginx", "-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", filepath.Join(dir, "nginx.err")},
		{"caddy", "run", "--adapter", "caddyfile", "--config", filepath.Join(dir, "Caddyfile")},
		gw,
	} {
		if err := f.start(dir, args); err != nil {
			return f, err
		}
		f.group[names[i]] = f.procs[i].Process.Pid
	}
	for _, n := range names {
		if err := waitReady(ctx, f.addr[n]); err != nil {
			return f, fmt.Errorf("%s does not answer: %w\n%s", n, err, f.output())
		}
	}
	return f, nil
}

func nginxConf(dir, name, servers string) string {
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;\n"
	}
	var temp strings.Builder
	for _, k := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temp, "    %s_temp_path %s;\n", k, filepath.Join(dir, name+"-"+k))
	}
	return user + `worker_processes auto;
daemon off;
pid ` + filepath.Join(dir, name+".pid") + `;
events { worker_connections 4096; }
http {
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
` + temp.String() + servers + `
}
`
}

func (f *fleet) start(dir string, args []string) error {
	log, err := os.CreateTemp(dir, filepath.Base(args[0])+"-*.log")
	if err != nil {
		return fmt.Errorf("making a log file: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx // stop ends it, in its own way
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	// Workers die with their master, and all with this program.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", args[0], err)
	}
	f.procs = append(f.procs, cmd)
	f.logs[cmd] = log.Name()
	return nil
}

// stop ends all processes and waits for them.
func (f *fleet) stop() error {
	var errs []error
	for _, cmd := range f.procs {
		done := make(chan struct{})
		go func() { defer close(done); _ = cmd.Wait() }() // a signal's exit code is expected
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-done
			errs = append(errs, fmt.Errorf("%s had to be killed", cmd.Path))
		}
	}
	return errors.Join(errs...)
}

func (f *fleet) output() string {
	var b strings.Builder
	for cmd, path := range f.logs {
		text, _ := os.ReadFile(path)
		if len(text) > 2000 {
			text = text[len(text)-2000:]
		}
		fmt.Fprintf(&b, "--- %s\n%s\n", filepath.Base(cmd.Path), text)
	}
	return b.String()
}

// waitReady waits for the response that will be measured.
func waitReady(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		err := probe(ctx, addr)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

func probe(ctx context.Context, addr string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
	if err != nil {
		return fmt.Errorf("making a request: %w", err)
	}
	r.Host = host
	r.Close = true
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}
