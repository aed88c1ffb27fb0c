// Package logs keeps what functions print: a bounded, rotated file for each
// instance, with followers served from memory as lines arrive.
//
// A line is stored in the format of the Kubernetes container runtime
// interface: "2026-01-02T15:04:05.999999999Z stdout F text".
package logs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"gopkg.in/natefinch/lumberjack.v2"
)

const (
	maxLine     = 16 << 10 // bytes; longer lines are split, as containerd does
	maxFileMB   = 8        // megabytes, with one older file beside it
	followQueue = 1024     // lines a slow follower may lag behind before it loses some
	keepOld     = 5        // logs of ended instances kept for each revision
)

// Key names the instance a log belongs to.
type Key struct{ Namespace, Revision, Instance string }

// Line is one line of output.
type Line struct {
	At       time.Time `json:"time"`
	Stream   string    `json:"stream"` // stdout or stderr
	Instance string    `json:"instance"`
	Text     string    `json:"text"`
}

// Store keeps the logs of a node below one folder.
type Store struct {
	dir string

	mu        sync.Mutex
	open      map[Key]*Log
	followers map[*follower]struct{}
}

// New returns a store that keeps its files in dir.
func New(dir string) *Store {
	return &Store{dir: dir, open: map[Key]*Log{}, followers: map[*follower]struct{}{}}
}

func (s *Store) revisionDir(k Key) string { return filepath.Join(s.dir, k.Namespace, k.Revision) }

func (s *Store) file(k Key) string { return filepath.Join(s.revisionDir(k), k.Instance+".log") }

// Log takes the output of one instance.
type Log struct {
	store          *Store
	key            Key
	Stdout, Stderr *os.File // the ends to write to
	readers        sync.WaitGroup

	mu   sync.Mutex
	file *lumberjack.Logger
	tail []string
}

// Create makes the log of a new instance. Close it when the instance is gone.
func (s *Store) Create(k Key) (*Log, error) {
	if err := os.MkdirAll(s.revisionDir(k), 0o750); err != nil {
		return nil, fmt.Errorf("create log of instance %s: %w", k.Instance, err)
	}
	s.dropOld(k)
	l := &Log{store: s, key: k, file: &lumberjack.Logger{Filename: s.file(k), MaxSize: maxFileMB, MaxBackups: 1}}
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("create log of instance %s: %w", k.Instance, err)
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		_, _ = outR.Close(), outW.Close()
		return nil, fmt.Errorf("create log of instance %s: %w", k.Instance, err)
	}
	l.Stdout, l.Stderr = outW, errW
	s.mu.Lock()
	s.open[k] = l
	s.mu.Unlock()
	l.readers.Add(2)
	go l.read(outR, "stdout")
	go l.read(errR, "stderr")
	return l, nil
}

// read copies lines until every writer has closed its end.
func (l *Log) read(r *os.File, stream string) {
	defer l.readers.Done()
	defer r.Close()
	br := bufio.NewReaderSize(r, maxLine)
	for {
		b, err := br.ReadSlice('\n') // at most maxLine bytes
		if len(b) > 0 {
			l.add(stream, strings.TrimRight(string(b), "\r\n"), err)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func (l *Log) add(stream, text string, readErr error) {
	line := Line{At: time.Now().UTC(), Stream: stream, Instance: l.key.Instance, Text: text}
	tag := "F"
	if errors.Is(readErr, bufio.ErrBufferFull) {
		tag = "P" // partial, in the format's words
	}
	l.mu.Lock()
	// A full disk loses lines, not the function.
	_, _ = fmt.Fprintf(l.file, "%s %s %s %s\n", line.At.Format(time.RFC3339Nano), stream, tag, text)
	if l.tail = append(l.tail, text); len(l.tail) > 10 {
		l.tail = l.tail[1:]
	}
	l.mu.Unlock()
	l.store.publish(l.key, line)
}

// Tail returns the last few lines, to explain why an instance ended.
func (l *Log) Tail() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.tail...)
}

// Drain waits until all that was printed has been stored. It is for use
// after the instance's processes are gone; Close does it too.
func (l *Log) Drain(timeout time.Duration) {
	_, _ = l.Stdout.Close(), l.Stderr.Close()
	done := make(chan struct{})
	go func() { l.readers.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(timeout): // somebody still holds an end: the reader goes with it
	}
}

// Close ends the log. Its file stays until Remove or until newer instances
// of the revision push it out.
func (l *Log) Close() error {
	l.Drain(time.Second)
	l.store.mu.Lock()
	delete(l.store.open, l.key)
	l.store.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}

// Remove deletes all logs of a revision.
func (s *Store) Remove(namespace, revision string) error {
	return os.RemoveAll(s.revisionDir(Key{Namespace: namespace, Revision: revision}))
}

// dropOld keeps the newest logs of ended instances of a revision and removes
// the others.
func (s *Store) dropOld(k Key) {
	entries, err := os.ReadDir(s.revisionDir(k))
	if err != nil {
		return
	}
	files := ended(entries, func(instance string) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.open[Key{k.Namespace, k.Revision, instance}] != nil
	})
	for len(files) > keepOld {
		_ = os.Remove(filepath.Join(s.revisionDir(k), files[0]))
		files = files[1:]
	}
}

var _ io.Closer = (*Log)(nil)
