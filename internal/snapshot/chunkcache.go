package snapshot

import (
	"container/list"
	"sync"
)

// chunkCache keeps the plain chunks used last, up to a number of bytes.
type chunkCache struct {
	limit int64

	mu    sync.Mutex
	bytes int64
	order *list.List // of cachedChunk, most recently used first
	known map[Digest]*list.Element
}

type cachedChunk struct {
	digest Digest
	plain  []byte
}

func newChunkCache(limit int64) *chunkCache {
	return &chunkCache{limit: limit, order: list.New(), known: map[Digest]*list.Element{}}
}

func (c *chunkCache) get(d Digest) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	el, ok := c.known[d]
	if !ok {
		return nil, false
	}
	c.order.MoveToFront(el)
	chunk, _ := el.Value.(cachedChunk)
	return chunk.plain, true
}

func (c *chunkCache) put(d Digest, plain []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.known[d]; ok || int64(len(plain)) > c.limit {
		return
	}
	c.known[d] = c.order.PushFront(cachedChunk{d, plain})
	c.bytes += int64(len(plain))
	for c.bytes > c.limit {
		last, _ := c.order.Remove(c.order.Back()).(cachedChunk)
		delete(c.known, last.digest)
		c.bytes -= int64(len(last.plain))
	}
}
