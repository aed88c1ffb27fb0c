package fcapi

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// descriptionEnv names the file firecracker.yaml of the pinned release, its
// OpenAPI description, which is in Firecracker's repository.
const descriptionEnv = "SKEP_FIRECRACKER_API"

type schema struct {
	Properties map[string]any `json:"properties"`
	Required   []string       `json:"required"`
}

// Every field of ours is in the description, with the right type, and whatever
// is required there is always sent.
func TestDescription(t *testing.T) {
	path := os.Getenv(descriptionEnv)
	if path == "" {
		t.Skipf("%s is not set: it names Firecracker's OpenAPI description", descriptionEnv)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Definitions map[string]schema `json:"definitions"`
		Paths       map[string]map[string]any
	}
	if err := yaml.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]any{
		"MachineConfiguration": MachineConfig{}, "BootSource": BootSource{}, "TokenBucket": TokenBucket{},
		"RateLimiter": RateLimiter{}, "Drive": Drive{}, "PartialDrive": DriveUpdate{}, "NetworkInterface": NetworkInterface{},
		"PartialNetworkInterface": NetworkInterfaceUpdate{}, "Balloon": Balloon{}, "BalloonUpdate": BalloonUpdate{},
		"BalloonStats": BalloonStats{}, "EntropyDevice": Entropy{}, "SerialDevice": Serial{}, "InstanceActionInfo": Action{},
		"Vm": VM{}, "SnapshotCreateParams": SnapshotCreate{}, "SnapshotLoadParams": SnapshotLoad{}, "MemoryBackend": MemoryBackend{},
		"NetworkOverride": NetworkOverride{}, "InstanceInfo": InstanceInfo{}, "FirecrackerVersion": Version{},
	} {
		s, ok := d.Definitions[name]
		if !ok {
			t.Errorf("the description has no %s", name)
			continue
		}
		checkType(t, name, s, reflect.TypeOf(v))
	}
	for path, methods := range map[string][]string{
		"/": {"get"}, "/version": {"get"}, "/machine-config": {"put"}, "/cpu-config": {"put"}, "/boot-source": {"put"},
		"/drives/{drive_id}": {"put", "patch"}, "/network-interfaces/{iface_id}": {"put", "patch"}, "/balloon": {"put", "patch"},
		"/balloon/statistics": {"get"}, "/entropy": {"put"}, "/serial": {"put"}, "/actions": {"put"}, "/vm": {"patch"},
		"/snapshot/create": {"put"}, "/snapshot/load": {"put"},
	} {
		for _, m := range methods {
			if d.Paths[path][m] == nil {
				t.Errorf("the description has no %s %s", strings.ToUpper(m), path)
			}
		}
	}
}

func checkType(t *testing.T, name string, s schema, typ reflect.Type) {
	t.Helper()
	sent := map[string]bool{}
	for i := range typ.NumField() {
		f := typ.Field(i)
		key, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
		sent[key] = rest == ""
		p, ok := s.Properties[key].(map[string]any)
		if !ok {
			t.Errorf("%s has no %q, the field %s.%s", name, key, typ.Name(), f.Name)
			continue
		}
		want := map[reflect.Kind]string{
			reflect.String: "string", reflect.Bool: "boolean", reflect.Int: "integer", reflect.Int64: "integer", reflect.Slice: "array",
		}[f.Type.Kind()]
		if got, _ := p["type"].(string); got != "" && got != want {
			t.Errorf("%s.%s is a %s there, and %s here", name, key, got, f.Type)
		}
		checkEnum(t, name+"."+key, p["enum"])
	}
	if typ == reflect.TypeFor[InstanceInfo]() || typ == reflect.TypeFor[BalloonStats]() || typ == reflect.TypeFor[Version]() {
		return // answers
	}
	for _, r := range s.Required {
		if !sent[r] {
			t.Errorf("%s.%s is required, and %s does not always send it", name, r, typ.Name())
		}
	}
}

// checkEnum checks that what we may send is among what is allowed.
func checkEnum(t *testing.T, name string, enum any) {
	t.Helper()
	ours := map[string][]string{
		"InstanceActionInfo.action_type":     {string(InstanceStart), string(FlushMetrics), string(SendCtrlAltDel)},
		"Vm.state":                           {string(Paused), string(Resumed)},
		"SnapshotCreateParams.snapshot_type": {string(Full), string(Diff)},
		"MemoryBackend.backend_type":         {string(BackendFile), string(BackendUFFD)},
		"MachineConfiguration.huge_pages":    {HugePages2M},
	}[name]
	allowed, _ := enum.([]any)
	for _, v := range ours {
		if !slices.Contains(allowed, any(v)) {
			t.Errorf("%s: %q is not among %v", name, v, allowed)
		}
	}
}
