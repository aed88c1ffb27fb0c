package build

import (
	"fmt"
	"path"
	"runtime"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// appDir is where the function is in the image, and its working folder.
	appDir = "app"
)

// recipe is what a runtime hands over to be made an image.
type recipe struct {
	layers     []*fileLayer
	notes      []string // one per layer, for the image's history
	entrypoint []string
	env        []string
}

// assemble makes the image: layers and configuration.
func (j *job) assemble(r recipe) (v1.Image, error) {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	var adds []mutate.Addendum
	for i, l := range r.layers {
		adds = append(adds, mutate.Addendum{Layer: l, History: v1.History{
			Created: v1.Time{Time: j.epoch}, CreatedBy: "skep image build", Comment: r.notes[i],
		}})
	}
	img, err := mutate.Append(img, adds...)
	if err != nil {
		return nil, fmt.Errorf("assemble image: %w", err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("assemble image: %w", err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", runtime.GOARCH
	cf.Created = v1.Time{Time: j.epoch.In(time.UTC)}
	port := strconv.Itoa(DefaultPort)
	cf.Config = v1.Config{
		User:         fmt.Sprintf("%d:%d", UserID, UserID),
		WorkingDir:   path.Join("/", appDir),
		Entrypoint:   r.entrypoint,
		Env:          append([]string{"PATH=" + defaultPath, "HOME=/home/nonroot", "PORT=" + port}, r.env...),
		ExposedPorts: map[string]struct{}{port + "/tcp": {}},
		Labels:       map[string]string{"dev.skep.runtime": string(j.Runtime)},
	}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		return nil, fmt.Errorf("assemble image: %w", err)
	}
	return img, nil
}
