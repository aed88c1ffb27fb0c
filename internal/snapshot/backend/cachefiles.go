package backend

import (
	"cmp"
	"container/list"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// cacheFiles is a folder of checksummed files with a limit. Failing to keep a
// file is no failure: the cache is then smaller than it might be.
type cacheFiles struct {
	dir   string
	limit int64

	mu    sync.Mutex
	order *list.List // of *cacheFile, most recently used first
	names map[string]*list.Element
	stats CacheStats
}

type cacheFile struct {
	name string
	size int64
}

const cacheSuffix = ".cached"

func openCacheFiles(dir string, limit int64) (*cacheFiles, error) {
	c := &cacheFiles{dir: dir, limit: limit, order: list.New(), names: map[string]*list.Element{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the cache folder: %w", err)
	}
	type found struct {
		cacheFile
		used time.Time
	}
	var files []found
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		code, ok := strings.CutSuffix(e.Name(), cacheSuffix)
		name, err := hex.DecodeString(code)
		if !ok || err != nil {
			if strings.HasPrefix(e.Name(), "new-") { // left by a crash
				os.Remove(filepath.Join(dir, e.Name()))
			}
			continue
		}
		files = append(files, found{cacheFile{string(name), info.Size()}, info.ModTime()})
	}
	slices.SortFunc(files, func(a, b found) int { return cmp.Compare(b.used.UnixNano(), a.used.UnixNano()) })
	for _, f := range files {
		c.names[f.name] = c.order.PushBack(&f.cacheFile)
		c.stats.Bytes += f.size
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shrink()
	return c, nil
}

// path codes the name, because slashes cannot be in a flat folder's names.
func (c *cacheFiles) path(name string) string {
	return filepath.Join(c.dir, hex.EncodeToString([]byte(name))+cacheSuffix)
}

// maxCachedName keeps the coded name within a file name's 255 bytes; objects
// with longer names are not cached.
const maxCachedName = 120

func (c *cacheFiles) get(name string) ([]byte, bool) {
	c.mu.Lock()
	el, ok := c.names[name]
	if ok {
		c.order.MoveToFront(el)
	} else {
		c.stats.Misses++
	}
	c.mu.Unlock()
	if !ok {
		return nil, false
	}
	raw, err := os.ReadFile(c.path(name))
	good := err == nil && len(raw) >= 4 &&
		crc32.Checksum(raw[4:], castagnoli) == binary.LittleEndian.Uint32(raw)
	c.mu.Lock()
	defer c.mu.Unlock()
	if good {
		c.stats.Hits++
		return raw[4:], true
	}
	c.stats.Misses++
	if c.names[name] == el { // else it was evicted while we read
		c.stats.Damaged++
		c.remove(el)
	}
	return nil, false
}

func (c *cacheFiles) put(name string, data []byte) {
	if len(name) > maxCachedName || int64(len(data))+4 > c.limit {
		return
	}
	f, err := os.CreateTemp(c.dir, "new-")
	if err != nil {
		return
	}
	defer os.Remove(f.Name()) // without effect after the rename
	var sum [4]byte
	binary.LittleEndian.PutUint32(sum[:], crc32.Checksum(data, castagnoli))
	_, err = f.Write(sum[:])
	if err == nil {
		_, err = f.Write(data)
	}
	if cerr := f.Close(); err != nil || cerr != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if el, ok := c.names[name]; ok {
		c.remove(el)
	}
	if os.Rename(f.Name(), c.path(name)) != nil {
		return
	}
	file := &cacheFile{name, int64(len(data)) + 4}
	c.names[name] = c.order.PushFront(file)
	c.stats.Bytes += file.size
	c.shrink()
}

func (c *cacheFiles) drop(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if el, ok := c.names[name]; ok {
		c.remove(el)
	}
}

// shrink and remove want c.mu held.
func (c *cacheFiles) shrink() {
	for c.stats.Bytes > c.limit && c.order.Len() > 0 {
		c.remove(c.order.Back())
		c.stats.Evicted++
	}
}

func (c *cacheFiles) remove(el *list.Element) {
	file := c.order.Remove(el).(*cacheFile)
	delete(c.names, file.name)
	c.stats.Bytes -= file.size
	os.Remove(c.path(file.name))
}

func (c *cacheFiles) snapshot() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}
