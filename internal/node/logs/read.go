package logs

import (
	"bufio"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Query selects lines. An empty Revision means all of Revisions.
type Query struct {
	Namespace string
	Revisions []string // at least one
	Follow    bool     // go on with new lines until the context ends
	Tail      int      // only the last so many of the stored lines; < 0 means all
}

type follower struct {
	query Query
	lines chan Line
}

func (s *Store) publish(k Key, l Line) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.followers {
		if f.query.Namespace != k.Namespace || !slices.Contains(f.query.Revisions, k.Revision) {
			continue
		}
		select {
		case f.lines <- l:
		default: // the follower is too slow; the file has the line
		}
	}
}

// Read calls emit for each stored line in order of time, then, if the query
// follows, for each new one until ctx ends. An error of emit ends it.
func (s *Store) Read(ctx context.Context, q Query, emit func(Line) error) error {
	var f *follower
	if q.Follow {
		// First listen, then read the files, so that no line is missed.
		f = &follower{query: q, lines: make(chan Line, followQueue)}
		s.mu.Lock()
		s.followers[f] = struct{}{}
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			delete(s.followers, f)
			s.mu.Unlock()
		}()
	}
	stored, err := s.stored(q)
	if err != nil {
		return err
	}
	var last time.Time
	for _, l := range stored {
		if err := emit(l); err != nil {
			return err
		}
		last = l.At
	}
	if f == nil {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case l := <-f.lines:
			if !l.At.After(last) && len(stored) > 0 {
				continue // it was in the file already
			}
			if err := emit(l); err != nil {
				return err
			}
		}
	}
}

func (s *Store) stored(q Query) ([]Line, error) {
	var lines []Line
	for _, rev := range q.Revisions {
		dir := s.revisionDir(Key{Namespace: q.Namespace, Revision: rev})
		entries, err := os.ReadDir(dir)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			lines = appendFile(lines, filepath.Join(dir, e.Name()), instanceOf(e.Name()))
		}
	}
	slices.SortStableFunc(lines, func(a, b Line) int { return a.At.Compare(b.At) })
	if q.Tail >= 0 && len(lines) > q.Tail {
		lines = lines[len(lines)-q.Tail:]
	}
	return lines, nil
}

// instanceOf takes the instance from a file's name, which is ID.log or, once
// rotated, ID-TIME.log.
func instanceOf(file string) string {
	name := strings.TrimSuffix(file, ".log")
	if id, _, ok := strings.Cut(name, "-"); ok {
		return id
	}
	return name
}

func appendFile(lines []Line, path, instance string) []Line {
	f, err := os.Open(path)
	if err != nil {
		return lines // removed meanwhile
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	sc.Buffer(make([]byte, 0, 64<<10), 4*maxLine)
	for sc.Scan() {
		if l, ok := parse(sc.Text()); ok {
			l.Instance = instance
			lines = append(lines, l)
		}
	}
	return lines
}

// parse reads one stored line.
func parse(s string) (Line, bool) {
	parts := strings.SplitN(s, " ", 4)
	if len(parts) != 4 {
		return Line{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, parts[0])
	if err != nil {
		return Line{}, false
	}
	return Line{At: at, Stream: parts[1], Text: parts[3]}, true
}

// ended lists the log files whose instance is not open, oldest first.
func ended(entries []fs.DirEntry, isOpen func(instance string) bool) []string {
	type file struct {
		name string
		at   time.Time
	}
	var files []file
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || isOpen(instanceOf(e.Name())) {
			continue
		}
		files = append(files, file{e.Name(), info.ModTime()})
	}
	slices.SortFunc(files, func(a, b file) int { return a.at.Compare(b.at) })
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = f.name
	}
	return names
}
