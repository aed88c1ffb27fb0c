package serving

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	v1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/skep-dev/skep/internal/gateway"
)

// tenant is one deployment of a revision on the node. The names of revisions
// come again, when a service is deleted and made anew or goes back to an
// earlier revision, so there can be two deployments of one name: the end of
// the old one must not be that of the new one, and its instances must not
// serve for it. Of each name one tenant has the place, the newest.
type tenant struct {
	key gateway.RevisionKey
	uid types.UID // of the revision
}

// drainTimeout bounds how long a revision may take to end its requests.
const drainTimeout = 10 * time.Minute

// install gives a revision its place on the node: image held, settings known
// to gateway and fleet. It does nothing once ctx has ended.
func (c *Controller) install(ctx context.Context, rev *v1.Revision, p *plan, digest string) (*tenant, error) {
	c.places.Lock()
	defer c.places.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	key := p.gateway.Key
	if err := c.cfg.Images.Hold(ctx, key.String(), digest); err != nil {
		return nil, err
	}
	if old := c.tenants[key]; old != nil && old.uid != rev.UID {
		c.cfg.Fleet.Remove(key) // what it does goes on until it is done
	}
	t := &tenant{key: key, uid: rev.UID}
	c.tenants[key] = t
	p.fleet.Launch.Image = digest
	c.cfg.Router.SetRevision(p.gateway)
	c.cfg.Fleet.Set(p.fleet)
	return t, nil
}

func (c *Controller) tenantOf(key gateway.RevisionKey) *tenant {
	c.places.Lock()
	defer c.places.Unlock()
	return c.tenants[key]
}

// retire drains a deployment and forgets it, unless another one has taken its
// place, which has then taken over all it had.
func (c *Controller) retire(t *tenant) {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	// Requests that had found the route before it was changed may still
	// come in; let the last of them be served.
	for quiet := 0; quiet < 3 && ctx.Err() == nil && c.tenantOf(t.key) == t; {
		if st, ok := c.cfg.Router.Stats(t.key); !ok || st.InFlight+st.Queued == 0 {
			quiet++
		} else {
			quiet = 0
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	gone := c.vacate(t)
	if gone == nil {
		return
	}
	select {
	case <-gone:
	case <-ctx.Done():
		c.cfg.Log.Warn("instances of a retired revision do not end", "namespace", t.key.Namespace, "revision", t.key.Name)
	}
	c.places.Lock()
	defer c.places.Unlock()
	if c.tenants[t.key] == nil {
		c.cfg.Router.RemoveRevision(t.key)
		c.forgetLogs(t.key)
	}
}

// vacate takes the place from a tenant; nil if it does not have it.
func (c *Controller) vacate(t *tenant) (gone <-chan struct{}) {
	c.places.Lock()
	defer c.places.Unlock()
	if c.tenants[t.key] != t {
		return nil
	}
	delete(c.tenants, t.key)
	gone = c.cfg.Fleet.Remove(t.key)
	if err := c.cfg.Images.Unhold(context.Background(), t.key.String()); err != nil {
		c.cfg.Log.Warn("retire revision", "namespace", t.key.Namespace, "revision", t.key.Name, "error", err)
	}
	return gone
}

// forgetLogs removes what a revision printed, and its snapshots, if it is neither deployed nor on
// record. The caller holds places.
func (c *Controller) forgetLogs(key gateway.RevisionKey) {
	if c.tenants[key] != nil {
		return
	}
	if _, err := c.revisions.Revisions(key.Namespace).Get(key.Name); !apierrors.IsNotFound(err) {
		return
	}
	if err := c.cfg.Logs.Remove(key.Namespace, key.Name); err != nil {
		c.cfg.Log.Warn("remove logs", "namespace", key.Namespace, "revision", key.Name, "error", err)
	}
	if c.cfg.Snapshots != nil {
		c.cfg.Snapshots.Forget(key.Namespace, key.Name)
	}
}
