// Package image brings OCI images from registries, files and builders to the
// node, and makes of each one read-only EROFS root file system that all its
// sandboxes share.
//
// A store is a directory:
//
//	index.json            names of images; with blobs/ and oci-layout an OCI image layout
//	blobs/sha256/...      manifests, configs and layers, by digest, never changed
//	diffs/...             which uncompressed layer a verified blob holds
//	rootfs/KEY.erofs      flattened images; KEY depends on the layers alone
//	tmp/                  what is being written; emptied by Open
//	lock                  held by the one process that has the store open
//
// A file gets its name only when it is complete, verified and on disk, so
// that a crash at any moment leaves nothing half-made to be seen.
package image

import (
	"errors"
	"sort"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/skep-dev/skep/internal/image/erofs"
)

// Errors that callers tell apart. The error's text says what to do.
var (
	ErrBadReference  = errors.New("invalid image reference")
	ErrNotFound      = errors.New("image not found")            // not in this store
	ErrUnknown       = errors.New("unknown image")              // not in its registry
	ErrUnauthorized  = errors.New("registry denied access")     // credentials
	ErrPlainHTTP     = errors.New("registry speaks plain HTTP") // and that was not asked for
	ErrUnreachable   = errors.New("registry is not reachable")
	ErrWrongPlatform = errors.New("image is for another platform")
	ErrNotImage      = errors.New("not a container image")
	ErrCorrupt       = errors.New("content does not match its digest")
	ErrDiskFull      = errors.New("disk is full")
	ErrInUse         = errors.New("image is in use")
	ErrStoreInUse    = errors.New("image store is in use by another process")
	ErrClosed        = errors.New("image store is closed")
	// ErrTooLarge: the image exceeds a limit of the store.
	ErrTooLarge = erofs.ErrLimit
	// ErrBadLayer: a layer is not a tar stream that an image may contain.
	ErrBadLayer = erofs.ErrBadLayer
)

// Image is an image in a store.
type Image struct {
	// Ref is the name under which it was asked for, in short form:
	// "hello:latest", "ghcr.io/org/app:v1"; "" for an image without a name.
	Ref string
	// Digest of the image manifest for this platform: "sha256:...".
	Digest string
	// Rootfs is the path of the EROFS image, with everything that the layers
	// hold. Within Use it is sure to exist.
	Rootfs string
	// RootfsNoXattrs is the same without extended attributes, for gVisor,
	// whose reader refuses them. For most images it is Rootfs itself.
	RootfsNoXattrs string
	Config         RunConfig
	Platform       string // "linux/amd64"
	// Size of the manifest, the config and the layers as stored, in bytes.
	Size int64
	// RootfsSize is the space that the EROFS image takes, in bytes; 0 before
	// it is made.
	RootfsSize int64
	Created    time.Time // by its builder, may be zero
	Added      time.Time // to this store under Ref
	LastUsed   time.Time // zero if never
}

// RunConfig is how an image wants to be run.
type RunConfig struct {
	Entrypoint   []string
	Cmd          []string
	Env          []string // KEY=value
	User         string   // "", "uid", "uid:gid", "name", "name:group"
	WorkingDir   string
	ExposedPorts []string // "8080/tcp", sorted
	Labels       map[string]string
	StopSignal   string
}

func configOf(c v1.Config) RunConfig {
	out := RunConfig{
		Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, User: c.User,
		WorkingDir: c.WorkingDir, Labels: c.Labels, StopSignal: c.StopSignal,
	}
	for port := range c.ExposedPorts {
		out.ExposedPorts = append(out.ExposedPorts, port)
	}
	sort.Strings(out.ExposedPorts)
	return out
}

// Progress of a pull or an import.
type Progress struct {
	Phase string // "resolve", "layers", "flatten"
	Done  int64  // bytes
	Total int64  // bytes; 0 if not known
}
