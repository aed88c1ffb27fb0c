package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/skep-dev/skep/internal/admin"
	"github.com/skep-dev/skep/internal/fleet"
	"github.com/skep-dev/skep/internal/gateway"
	"github.com/skep-dev/skep/internal/image"
	"github.com/skep-dev/skep/internal/node/logs"
)

// backend answers the admin socket.
type backend struct {
	lower   *lower
	fleet   *fleet.Fleet
	gateway *gateway.Gateway
	cfg     Config
}

func (b *backend) Images(context.Context) ([]admin.Image, error) {
	out := []admin.Image{}
	for _, i := range b.lower.images.List() {
		out = append(out, b.image(i))
	}
	return out, nil
}

func (b *backend) image(i *image.Image) admin.Image {
	return admin.Image{
		Ref: i.Ref, Digest: i.Digest, Bytes: i.RootfsSize, Created: i.Added, InUse: b.lower.images.InUse(i.Digest),
	}
}

func (b *backend) ImportImage(ctx context.Context, path, ref string) (admin.Image, error) {
	i, err := b.lower.images.Import(ctx, path, ref)
	if err != nil {
		return admin.Image{}, err
	}
	return b.image(i), nil
}

func (b *backend) RemoveImage(ctx context.Context, ref string) error {
	err := b.lower.images.Remove(ctx, ref)
	if errors.Is(err, image.ErrNotFound) {
		return fmt.Errorf("%w: %w", admin.ErrNotFound, err)
	}
	return err
}

func (b *backend) Instances(ctx context.Context) ([]admin.Instance, error) {
	out := []admin.Instance{}
	for _, i := range b.lower.node.Instances() {
		l := i.Launch()
		a := admin.Instance{
			ID: i.ID(), Namespace: l.Namespace, Service: l.Service, Revision: l.Revision,
			Driver: l.Driver, Start: string(i.Kind()), ReadyAt: i.ReadyAt(),
		}
		if st, err := i.Stats(ctx); err == nil { // it may just be ending
			a.MemoryBytes, a.CPUTime = st.MemoryBytes, st.CPUTime
		}
		out = append(out, a)
	}
	return out, nil
}

func (b *backend) Logs(ctx context.Context, q logs.Query, emit func(logs.Line) error) error {
	return b.lower.logs.Read(ctx, q, emit)
}
