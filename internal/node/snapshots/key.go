package snapshots

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"runtime"
	"strconv"
	"time"

	"github.com/skep-dev/skep/internal/sandbox"
	"github.com/skep-dev/skep/internal/snapshot"
)

// Labels of a snapshot's manifest.
const (
	LabelKey       = "skep.dev/key" // see Want
	LabelNamespace = "skep.dev/namespace"
	LabelService   = "skep.dev/service"
	LabelRevision  = "skep.dev/revision"
	LabelPolicy    = "skep.dev/policy" // that had it made
	// LabelGeneration counts saves since the boot; without it, it was one.
	LabelGeneration = "skep.dev/generation"
	LabelBoot       = "skep.dev/boot" // how long the instance took to boot
)

// Want describes the instance that is to be started or saved.
type Want struct {
	Namespace, Service, Revision string
	// Key is equal for instances whose insides are: root file system, process
	// and all that it can see of Spec. A snapshot of one is a start of another.
	Key string
	// Requirements are what else must be equal; where they are not, the
	// snapshot is foreign, which is said.
	Requirements snapshot.Requirements
	Policy       string
	// Boot is how long an instance took to boot; 0 if it is not known.
	Boot time.Duration
	// Generation of the snapshot that is to be made, see Use; 0 means 1.
	Generation int
}

// NewWant makes a Want of what an instance is started with.
func NewWant(namespace, service, revision, rootImage string, driver string, spec *sandbox.Spec, c sandbox.Compatibility) Want {
	inside := struct {
		Namespace, Revision, RootImage, Driver string
		Process                                sandbox.Process
		Resources                              sandbox.Resources
		Interface, MAC, Address, Gateway       string
		MTU                                    int
		DNS                                    []string
	}{
		namespace, revision, rootImage, driver, spec.Process, spec.Resources,
		spec.Link.Interface, spec.Link.MAC.String(), spec.Link.Address.String(), spec.Link.Gateway.String(),
		spec.Link.MTU, nil,
	}
	for _, ip := range spec.Link.DNS {
		inside.DNS = append(inside.DNS, ip.String())
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%#v", inside)) // quotes all strings, so no two look alike
	r := snapshot.Requirements{
		Driver: snapshot.Component{Name: driver, Version: c.Version},
		Kernel: c.Kernel, Agent: c.Agent, RootImage: rootImage,
		CPU:         snapshot.CPU{Arch: runtime.GOARCH, Model: c.CPUModel, Features: c.CPUFeatures},
		MemoryBytes: c.MemoryBytes, VCPUs: c.VCPUs,
	}
	// A driver that does not care says nothing, which a manifest cannot.
	if r.CPU.Model == "" {
		r.CPU.Model = "any"
	}
	if r.MemoryBytes <= 0 {
		r.MemoryBytes = max(1, spec.Resources.MemoryBytes)
	}
	if r.VCPUs <= 0 {
		r.VCPUs = 1
	}
	return Want{
		Namespace: namespace, Service: service, Revision: revision,
		Key: hex.EncodeToString(sum[:16]), Requirements: r,
	}
}

func (w Want) manifest() snapshot.Manifest {
	m := snapshot.Manifest{
		Requirements: w.Requirements,
		Labels: map[string]string{
			LabelKey: w.Key, LabelNamespace: w.Namespace, LabelService: w.Service,
			LabelRevision: w.Revision, LabelPolicy: w.Policy,
		},
	}
	if w.Boot > 0 {
		m.Labels[LabelBoot] = w.Boot.Round(time.Microsecond).String()
	}
	if w.Generation > 1 {
		m.Labels[LabelGeneration] = strconv.Itoa(w.Generation)
	}
	return m
}

func generationOf(labels map[string]string) int {
	n, err := strconv.Atoi(labels[LabelGeneration])
	if err != nil || n < 1 {
		return 1
	}
	return n
}

// bootOf is what a manifest tells of the time to boot; 0 if nothing, or nonsense.
func bootOf(labels map[string]string) time.Duration {
	d, err := time.ParseDuration(labels[LabelBoot])
	if err != nil || d < 0 {
		return 0
	}
	return d
}
