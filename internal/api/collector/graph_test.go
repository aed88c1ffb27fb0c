package collector

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestGraph(t *testing.T) {
	t.Parallel()
	g := newGraph()
	owned := func(uid, owner types.UID) *node {
		return &node{uid: uid, owners: []metav1.OwnerReference{{UID: owner}}}
	}
	g.put(owned("child", "a"))
	g.put(owned("child", "b")) // moved
	g.put(owned("other", "b"))
	if len(g.owned("a")) != 0 || len(g.owned("b")) != 2 {
		t.Errorf("a owns %v, b owns %v", g.owned("a"), g.owned("b"))
	}
	if g.remove("nobody") != nil || g.remove("child") == nil || g.remove("child") != nil {
		t.Error("removing does not tell what was in")
	}
	g.remove("other")
	if len(g.dependents) != 0 || len(g.nodes) != 0 {
		t.Errorf("left behind: %v %v", g.dependents, g.nodes)
	}
}
