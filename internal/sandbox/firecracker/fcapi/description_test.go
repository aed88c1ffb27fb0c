package fcapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"sigs.k8s.io/yaml"
)

// descriptionEnv names the file firecracker.yaml of a release, its OpenAPI
// description, which is in Firecracker's repository (src/firecracker/swagger).
const descriptionEnv = "SKEP_FIRECRACKER_API"

// table is testdata/api.json: what this client uses of Firecracker's API, in
// the names of its description.
type table struct {
	Version  string
	Requests []string // "PUT /drives/{drive_id}"
	Types    map[string]struct {
		Fields   map[string]string // "string", or "string: A B" of two values
		Required []string
	}
}

func readTable(t *testing.T) (a table) {
	t.Helper()
	b, err := os.ReadFile("testdata/api.json")
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// types are ours, by the names of the description's.
var types = map[string]any{
	"MachineConfiguration": MachineConfig{}, "BootSource": BootSource{}, "TokenBucket": TokenBucket{},
	"RateLimiter": RateLimiter{}, "Drive": Drive{}, "PartialDrive": DriveUpdate{}, "NetworkInterface": NetworkInterface{},
	"PartialNetworkInterface": NetworkInterfaceUpdate{}, "Balloon": Balloon{}, "BalloonUpdate": BalloonUpdate{},
	"BalloonStats": BalloonStats{}, "EntropyDevice": Entropy{}, "SerialDevice": Serial{}, "InstanceActionInfo": Action{},
	"Vm": VM{}, "SnapshotCreateParams": SnapshotCreate{}, "SnapshotLoadParams": SnapshotLoad{}, "MemoryBackend": MemoryBackend{},
	"NetworkOverride": NetworkOverride{}, "InstanceInfo": InstanceInfo{}, "FirecrackerVersion": Version{}, "MmdsConfig": MMDSConfig{},
}

// answers are types that only Firecracker sends.
var answers = []string{"InstanceInfo", "BalloonStats", "FirecrackerVersion"}

// The table is of the pinned release.
func TestTableVersion(t *testing.T) {
	b, err := os.ReadFile("../version.txt")
	if err != nil {
		t.Fatal(err)
	}
	if v := readTable(t).Version; !slices.Contains(strings.Fields(string(b)), "v"+v) {
		t.Errorf("testdata/api.json is of release %s, version.txt pins another: compare it with that one's description (%s)", v, descriptionEnv)
	}
}

// Every field of ours is in the table, with the right type, and whatever is
// required is always sent.
func TestTypes(t *testing.T) {
	a := readTable(t)
	for name, v := range types {
		want, ok := a.Types[name]
		if !ok {
			t.Errorf("the table has no %s", name)
			continue
		}
		typ := reflect.TypeOf(v)
		if len(want.Fields) != typ.NumField() {
			t.Errorf("%s has %d fields in the table, and %s %d", name, len(want.Fields), typ.Name(), typ.NumField())
		}
		always := map[string]bool{}
		for i := range typ.NumField() {
			f := typ.Field(i)
			key, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
			always[key] = rest == ""
			kind, values, _ := strings.Cut(want.Fields[key], ": ")
			if got := kindOf(f.Type); got != kind {
				t.Errorf("%s.%s is %q in the table, and %q here", name, key, kind, got)
			}
			for _, v := range ours[name+"."+key] {
				if !slices.Contains(strings.Fields(values), v) {
					t.Errorf("%s.%s: %q is not among %q", name, key, v, values)
				}
			}
		}
		for _, r := range want.Required {
			if !always[r] && !slices.Contains(answers, name) {
				t.Errorf("%s.%s is required, and %s does not always send it", name, r, typ.Name())
			}
		}
	}
	if len(a.Types) != len(types) {
		t.Errorf("the table has %d types, this test %d", len(a.Types), len(types))
	}
}

// ours are the values that we may send.
var ours = map[string][]string{
	"InstanceActionInfo.action_type":     {string(InstanceStart), string(FlushMetrics), string(SendCtrlAltDel)},
	"Vm.state":                           {string(Paused), string(Resumed)},
	"SnapshotCreateParams.snapshot_type": {string(Full), string(Diff)},
	"MemoryBackend.backend_type":         {string(BackendFile), string(BackendUFFD)},
	"MachineConfiguration.huge_pages":    {HugePages2M},
	"MmdsConfig.version":                 {MMDSv2},
}

func kindOf(t reflect.Type) string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return map[reflect.Kind]string{
		reflect.String: "string", reflect.Bool: "boolean", reflect.Int: "integer", reflect.Int64: "integer",
		reflect.Slice: "array", reflect.Struct: "object",
	}[t.Kind()]
}

// The client sends the table's requests, and no others.
func TestRequests(t *testing.T) {
	var mu sync.Mutex
	var sent []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		sent = append(sent, r.Method+" "+r.URL.Path)
		_, _ = w.Write([]byte("{}"))
	}))
	defer s.Close()
	c := New(func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", s.Listener.Addr().String())
	})
	defer c.Close()
	v := reflect.ValueOf(c)
	for i := range v.NumMethod() {
		m := v.Method(i)
		if m.Type().NumIn() == 0 {
			continue // Close
		}
		in := []reflect.Value{reflect.ValueOf(t.Context())}
		for j := 1; j < m.Type().NumIn(); j++ {
			arg := reflect.New(m.Type().In(j)).Elem()
			switch x := arg.Addr().Interface().(type) {
			case *Drive:
				x.ID = "{drive_id}"
			case *DriveUpdate:
				x.ID = "{drive_id}"
			case *NetworkInterface:
				x.ID = "{iface_id}"
			case *NetworkInterfaceUpdate:
				x.ID = "{iface_id}"
			case *json.RawMessage:
				*x = json.RawMessage("{}")
			}
			in = append(in, arg)
		}
		out := m.Call(in)
		if err, _ := out[len(out)-1].Interface().(error); err != nil {
			t.Errorf("%s: %v", v.Type().Method(i).Name, err)
		}
	}
	want := readTable(t).Requests
	slices.Sort(want)
	slices.Sort(sent)
	if !slices.Equal(sent, want) {
		t.Errorf("the client sends\n%q, the table has\n%q", sent, want)
	}
}

// The table is true: compared with the description itself, where one is given.
func TestTableIsTrue(t *testing.T) {
	path := os.Getenv(descriptionEnv)
	if path == "" {
		t.Skipf("%s is not set: it names Firecracker's OpenAPI description, which the table has been compared with", descriptionEnv)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	type property struct {
		Type string   `json:"type"`
		Ref  string   `json:"$ref"`
		Enum []string `json:"enum"`
	}
	var d struct {
		Info        struct{ Version string }
		Definitions map[string]struct {
			property
			Properties map[string]property `json:"properties"`
			Required   []string            `json:"required"`
		} `json:"definitions"`
		Paths map[string]map[string]any
	}
	if err := yaml.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	a := readTable(t)
	if d.Info.Version != a.Version {
		t.Errorf("the description is of release %s, the table of %s", d.Info.Version, a.Version)
	}
	for _, r := range a.Requests {
		method, path, _ := strings.Cut(r, " ")
		if d.Paths[path][strings.ToLower(method)] == nil {
			t.Errorf("the description has no %s", r)
		}
	}
	for name, ours := range a.Types {
		theirs := d.Definitions[name]
		slices.Sort(theirs.Required)
		if !slices.Equal(ours.Required, theirs.Required) {
			t.Errorf("%s requires %q, and in the table %q", name, theirs.Required, ours.Required)
		}
		for key, want := range ours.Fields {
			p := theirs.Properties[key]
			if p.Ref != "" {
				p = d.Definitions[p.Ref[strings.LastIndex(p.Ref, "/")+1:]].property
			}
			got := p.Type
			if len(p.Enum) > 0 {
				got = fmt.Sprint(got, ": ", strings.Join(p.Enum, " "))
			}
			if got != want {
				t.Errorf("%s.%s is %q, and in the table %q", name, key, got, want)
			}
		}
	}
}
