package collector

import (
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// node is what the collector keeps of an object.
type node struct {
	resource   schema.GroupVersionResource
	namespace  string
	name       string
	uid        types.UID
	owners     []metav1.OwnerReference
	finalizers []string
	deleting   bool
}

// graph knows who owns whom. It follows watches, so it may be behind.
type graph struct {
	mu         sync.Mutex
	nodes      map[types.UID]*node
	dependents map[types.UID]map[types.UID]bool // by owner, which may be unknown or gone
}

func newGraph() *graph {
	return &graph{nodes: map[types.UID]*node{}, dependents: map[types.UID]map[types.UID]bool{}}
}

// put adds a node or replaces it.
func (g *graph) put(n *node) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.unlink(g.nodes[n.uid])
	g.nodes[n.uid] = n
	for _, owner := range n.owners {
		if g.dependents[owner.UID] == nil {
			g.dependents[owner.UID] = map[types.UID]bool{}
		}
		g.dependents[owner.UID][n.uid] = true
	}
}

// remove takes a node out and returns it, nil if it was not in.
func (g *graph) remove(uid types.UID) *node {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.nodes[uid]
	g.unlink(n)
	delete(g.nodes, uid)
	return n
}

func (g *graph) unlink(n *node) {
	if n == nil {
		return
	}
	for _, owner := range n.owners {
		delete(g.dependents[owner.UID], n.uid)
		if len(g.dependents[owner.UID]) == 0 {
			delete(g.dependents, owner.UID)
		}
	}
}

// get returns a node, nil if it is unknown; it is not to be changed.
func (g *graph) get(uid types.UID) *node {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.nodes[uid]
}

// owned returns what names uid as an owner.
func (g *graph) owned(uid types.UID) []*node {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []*node
	for dependent := range g.dependents[uid] {
		if n := g.nodes[dependent]; n != nil {
			all = append(all, n)
		}
	}
	return all
}

// of returns all nodes of a resource.
func (g *graph) of(resource schema.GroupVersionResource) []types.UID {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []types.UID
	for uid, n := range g.nodes {
		if n.resource == resource {
			all = append(all, uid)
		}
	}
	return all
}
