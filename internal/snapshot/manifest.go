package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ManifestVersion is the version of manifests that this program writes and
// reads.
const ManifestVersion = 1

// Bounds of a manifest.
const (
	MaxManifest = 1 << 20 // bytes
	maxLayers   = 64
	maxLabels   = 64
	maxFeatures = 1024
	maxString   = 4096 // bytes
	maxMemory   = 1 << 44
	maxVCPUs    = 4096
)

// ID names a snapshot: the digest of its manifest.
type ID = Digest

// Manifest says what a snapshot is made of and everything that must match for
// it to be restored.
type Manifest struct {
	Version int       `json:"version"`
	Created time.Time `json:"created"` // UTC
	Parent  ID        `json:"parent"`  // snapshot that this one builds on; zero: none
	Requirements
	Layers []LayerRef `json:"layers"`
	// WorkingSet is the role of the layer that holds the pages which the first
	// request needs, in order; empty: none was recorded.
	WorkingSet string            `json:"workingSet,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
}

// Requirements are what a snapshot and the place that restores it must agree
// on.
type Requirements struct {
	Driver      Component `json:"driver"`
	Kernel      string    `json:"kernel,omitempty"`    // digest or release; empty where the driver has none
	Agent       string    `json:"agent,omitempty"`     // digest
	RootImage   string    `json:"rootImage,omitempty"` // digest
	CPU         CPU       `json:"cpu"`
	MemoryBytes int64     `json:"memoryBytes"`
	VCPUs       int       `json:"vcpus"`
}

// Component is a program and its version.
type Component struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// CPU is what the inside of a sandbox sees of the processor.
type CPU struct {
	Arch     string   `json:"arch"`               // as GOARCH
	Model    string   `json:"model"`              // vendor, family, model; or the driver's template
	Features []string `json:"features,omitempty"` // sorted, each once
}

// LayerRef names a layer in the part it plays.
type LayerRef struct {
	Role   string `json:"role"` // "memory", "disk", "state" ...; each once
	Digest Digest `json:"digest"`
	Size   int64  `json:"size"` // bytes of the image
}

// Layer finds the layer of a role.
func (m *Manifest) Layer(role string) (LayerRef, bool) {
	i := slices.IndexFunc(m.Layers, func(l LayerRef) bool { return l.Role == role })
	if i < 0 {
		return LayerRef{}, false
	}
	return m.Layers[i], true
}

// Encode checks the manifest and writes it in its one canonical form.
func (m *Manifest) Encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding the manifest: %w", err)
	}
	if len(data) > MaxManifest {
		return nil, fmt.Errorf("manifest has %d bytes, allowed are %d", len(data), MaxManifest)
	}
	return data, nil
}

// VersionError says that a manifest or layer is of a version that this program
// does not know.
type VersionError struct {
	What      string
	Have, Own int
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s has version %d, this program knows version %d", e.What, e.Have, e.Own)
}

// DecodeManifest reads what Encode wrote, and nothing else: unknown, repeated
// or misspelt fields, trailing bytes and any other form of the same content
// are refused, because the bytes are what the snapshot's ID stands for. A
// manifest of another version gives a *VersionError.
func DecodeManifest(data []byte) (*Manifest, error) {
	if len(data) > MaxManifest {
		return nil, fmt.Errorf("manifest has %d bytes, allowed are %d", len(data), MaxManifest)
	}
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, fmt.Errorf("manifest is no JSON: %w", err)
	}
	if v.Version != ManifestVersion {
		return nil, &VersionError{What: "manifest", Have: v.Version, Own: ManifestVersion}
	}
	var m Manifest
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return nil, fmt.Errorf("decoding the manifest: %w", err)
	}
	again, err := m.Encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, data) {
		return nil, errors.New("manifest is not in canonical form")
	}
	return &m, nil
}

func (m *Manifest) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if m.Version != ManifestVersion {
		return &VersionError{What: "manifest", Have: m.Version, Own: ManifestVersion}
	}
	if m.Created.IsZero() || m.Created.Location() != time.UTC {
		bad("created must be a time in UTC, not %v", m.Created)
	}
	for _, text := range []struct {
		field, value string // as in the JSON
		optional     bool
	}{
		{"driver.name", m.Driver.Name, false},
		{"driver.version", m.Driver.Version, false},
		{"kernel", m.Kernel, true},
		{"agent", m.Agent, true},
		{"rootImage", m.RootImage, true},
		{"cpu.arch", m.CPU.Arch, false},
		{"cpu.model", m.CPU.Model, false},
	} {
		switch {
		case text.value == "" && !text.optional:
			bad("%s is missing", text.field)
		case len(text.value) > maxString:
			bad("%s has %d bytes, allowed are %d", text.field, len(text.value), maxString)
		}
	}
	if m.MemoryBytes <= 0 || m.MemoryBytes > maxMemory {
		bad("memory of %d bytes, allowed are 1 to %d", m.MemoryBytes, int64(maxMemory))
	}
	if m.VCPUs <= 0 || m.VCPUs > maxVCPUs {
		bad("%d vCPUs, allowed are 1 to %d", m.VCPUs, maxVCPUs)
	}
	if len(m.CPU.Features) > maxFeatures {
		bad("%d CPU features, allowed are %d", len(m.CPU.Features), maxFeatures)
	}
	for i, f := range m.CPU.Features {
		if f == "" || len(f) > maxString || i > 0 && m.CPU.Features[i-1] >= f {
			bad("CPU features must be sorted, each once: %.40q", f)
		}
	}
	if len(m.Layers) == 0 || len(m.Layers) > maxLayers {
		bad("%d layers, allowed are 1 to %d", len(m.Layers), maxLayers)
	}
	roles := map[string]bool{}
	for _, l := range m.Layers {
		if l.Role == "" || len(l.Role) > maxString || roles[l.Role] {
			bad("layer role %.40q is empty, too long or there twice", l.Role)
		}
		roles[l.Role] = true
		if l.Digest.IsZero() || l.Size < 0 || l.Size > maxMemory {
			bad("layer %.40q needs a digest and a size of at most %d bytes", l.Role, int64(maxMemory))
		}
	}
	if m.WorkingSet != "" && !roles[m.WorkingSet] {
		bad("working set %.40q is no layer's role", m.WorkingSet)
	}
	if len(m.Labels) > maxLabels {
		bad("%d labels, allowed are %d", len(m.Labels), maxLabels)
	}
	for k, v := range m.Labels {
		if k == "" || len(k)+len(v) > maxString {
			bad("label %.40q is empty or longer than %d bytes", k, maxString)
		}
	}
	return errors.Join(errs...)
}
