package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/pager"
)

// bench holds the image that all measurements use, and its working set.
type bench struct {
	dir, program string
	size         int64
	imagePath    string
	image        *os.File
	source       pager.Source
	set          *pager.WorkingSet // of the image from start to end
	scattered    *pager.WorkingSet // the same pages in short runs, mixed
	sum          uint64            // of the first words of all pages
	socket       int
}

// prepare writes an image without a zero page, and a working set of all of it.
func (b *bench) prepare(ctx context.Context) error {
	b.imagePath = filepath.Join(b.dir, "image")
	var err error
	if b.image, err = os.Create(b.imagePath); err != nil {
		return err
	}
	w := bufio.NewWriterSize(b.image, 1<<20)
	rec := pager.Recording{PageSize: pager.PageSize}
	page := make([]byte, pager.PageSize)
	for i := range uint64(b.size / pager.PageSize) {
		for o := 0; o < len(page); o += 8 {
			binary.NativeEndian.PutUint64(page[o:], (i+1)*0x9E3779B97F4A7C15+uint64(o))
		}
		b.sum += binary.NativeEndian.Uint64(page)
		rec.Pages = append(rec.Pages, i)
		if _, err := w.Write(page); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if b.source, err = pager.NewSparseFile(b.image); err != nil {
		return err
	}
	mixed := pager.Recording{PageSize: pager.PageSize}
	for _, i := range rand.Perm(len(rec.Pages) / shortRun) {
		mixed.Pages = append(mixed.Pages, rec.Pages[i*shortRun:(i+1)*shortRun]...)
	}
	if b.set, err = b.workingSet(ctx, setFile, rec); err != nil {
		return err
	}
	b.scattered, err = b.workingSet(ctx, "scattered", mixed)
	return err
}

// setFile is the working set's.
const setFile = "set"

// shortRun is the pages of a run in the scattered working set.
const shortRun = 8

func (b *bench) workingSet(ctx context.Context, name string, rec pager.Recording) (*pager.WorkingSet, error) {
	path := filepath.Join(b.dir, name)
	if err := pager.WriteWorkingSet(ctx, path, rec, b.source); err != nil {
		return nil, err
	}
	set, err := pager.OpenWorkingSet(path, false)
	if err != nil {
		return nil, err
	}
	return set, set.Verify(ctx) // and brings it into the page cache
}

func (b *bench) close() {
	_ = b.image.Close()
	_ = b.set.Close()
	_ = b.scattered.Close()
}

func (b *bench) nextSocket() string {
	b.socket++
	return filepath.Join(b.dir, fmt.Sprintf("%d.sock", b.socket))
}

// process is a running pagerbench.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (b *bench) start(ctx context.Context, args ...string) (*process, error) {
	cmd := exec.CommandContext(ctx, b.program, args...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &process{cmd, in, bufio.NewReader(out)}, cmd.Start()
}

// stop ends the process by the end of its input.
func (p *process) stop() error { return errors.Join(p.in.Close(), p.cmd.Wait()) }

// ask sends a command and reads the numbers of the answer.
func (p *process) ask(command string, numbers ...any) error {
	if _, err := io.WriteString(p.in, command); err != nil {
		return err
	}
	_, err := fmt.Fscanln(p.out, numbers...)
	return err
}

// againstC runs a C handler with a target.
func (b *bench) againstC(ctx context.Context, mode string, measure func(handler, target *process) error) (err error) {
	socket := b.nextSocket()
	handler, err := b.start(ctx, mode, socket, b.imagePath)
	if err != nil {
		return err
	}
	if line, err := handler.out.ReadString('\n'); line != "listening\n" {
		return errors.Join(fmt.Errorf("the C handler said %q: %w", line, err), handler.stop())
	}
	target, err := b.start(ctx, "target", socket, fmt.Sprint(b.size))
	if err != nil {
		return errors.Join(err, handler.stop())
	}
	err = measure(handler, target)
	return errors.Join(err, target.stop(), handler.stop())
}

// againstGo serves a target by the pager. Its Serve begins with the handshake.
func (b *bench) againstGo(ctx context.Context, set *pager.WorkingSet, measure func(s *pager.Server, target *process) error) error {
	socket := b.nextSocket()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	_ = l.SetDeadline(time.Now().Add(time.Minute))
	target, err := b.start(ctx, "target", socket, fmt.Sprint(b.size))
	if err != nil {
		return err
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		return errors.Join(err, target.stop())
	}
	defer conn.Close()
	h, err := pager.ReceiveHandshake(ctx, conn)
	if err != nil {
		return errors.Join(err, target.stop())
	}
	defer unix.Close(h.Process)
	s, err := pager.New(pager.Config{UFFD: h.UFFD, Regions: h.Regions, Process: h.Process, Source: b.source,
		WorkingSet: set, Kill: func(context.Context) error { return target.cmd.Process.Kill() }})
	if err != nil {
		return errors.Join(err, h.UFFD.Close(), target.stop())
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	err = measure(s, target)
	return errors.Join(err, target.stop(), <-served)
}

func (b *bench) checkSum(target *process) error {
	var sum uint64
	if err := target.ask("s", &sum); err != nil {
		return err
	}
	return b.compare(sum)
}

func (b *bench) compare(sum uint64) error {
	if sum != b.sum {
		return fmt.Errorf("target's memory is wrong: sum %d, must be %d", sum, b.sum)
	}
	return nil
}

func (b *bench) bulkC(ctx context.Context) (s sample, err error) {
	err = b.againstC(ctx, "bulk", func(handler, target *process) error {
		if _, err := fmt.Fscanln(handler.out, &s.a); err != nil {
			return err
		}
		return b.checkSum(target)
	})
	return s, err
}

func (b *bench) bulkGo(ctx context.Context) (sample, error) { return b.install(ctx, b.set) }

// freshGo installs a set that is opened anew, as drivers do for each machine.
func (b *bench) freshGo(ctx context.Context) (s sample, err error) {
	set, err := pager.OpenWorkingSet(filepath.Join(b.dir, setFile), false)
	if err != nil {
		return s, err
	}
	s, err = b.install(ctx, set)
	return s, errors.Join(err, set.Close())
}

func (b *bench) scatteredGo(ctx context.Context) (sample, error) { return b.install(ctx, b.scattered) }

func (b *bench) install(ctx context.Context, set *pager.WorkingSet) (s sample, err error) {
	err = b.againstGo(ctx, set, func(server *pager.Server, target *process) error {
		for server.Stats().PrefetchTime == 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Millisecond):
			}
		}
		st := server.Stats()
		if st.PrefetchError != nil || int64(st.Prefetched)*pager.PageSize != b.size {
			return fmt.Errorf("prefetch was incomplete: %+v", st)
		}
		s.a = float64(st.PrefetchTime)
		return b.checkSum(target)
	})
	return s, err
}

func (b *bench) faults(target *process) (s sample, err error) {
	var sum uint64
	if err := target.ask("f", &s.a, &s.b, &sum); err != nil {
		return s, err
	}
	return s, b.compare(sum)
}

func (b *bench) faultC(ctx context.Context) (s sample, err error) {
	err = b.againstC(ctx, "serve", func(_, target *process) error {
		s, err = b.faults(target)
		return err
	})
	return s, err
}

func (b *bench) faultGo(ctx context.Context) (s sample, err error) {
	err = b.againstGo(ctx, nil, func(_ *pager.Server, target *process) error {
		s, err = b.faults(target)
		return err
	})
	return s, err
}
