package fleet

import (
	"github.com/skep-dev/skep/internal/gateway"
	"github.com/skep-dev/skep/internal/node"
)

// instance is an Instance as the gateway sees it.
type instance struct{ Instance }

// Start tells how the instance came to be, for the response's headers.
func (i instance) Start() gateway.StartInfo {
	phases := i.Phases()
	info := gateway.StartInfo{Kind: gateway.Booted, Phases: make([]gateway.Phase, len(phases))}
	if s, ok := i.Instance.(Snapshotter); ok && s.Kind() == node.Restored {
		info.Kind = gateway.Restored
	}
	for n, p := range phases {
		info.Phases[n] = gateway.Phase{Name: p.Name, Took: p.Took}
	}
	return info
}
