package daemon

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// Files in the run folder.
const (
	adminSocket   = "skep.sock"
	kubeconfig    = "kubeconfig"
	endpointsFile = "endpoints.json"
)

// Endpoints tells clients on this machine where a running Skep listens.
type Endpoints struct {
	PID        int    `json:"pid"`
	NodeID     string `json:"nodeID"`   // part of all names of the node on the machine
	Gateway    string `json:"gateway"`  // host:port
	API        string `json:"api"`      // https URL
	Registry   string `json:"registry"` // host:port
	Metrics    string `json:"metrics"`  // host:port
	Domain     string `json:"domain"`
	Kubeconfig string `json:"kubeconfig"` // path
	Admin      string `json:"admin"`      // path of the Unix socket
}

// ReadEndpoints reads what a running Skep wrote into its run folder.
func ReadEndpoints(run string) (*Endpoints, error) {
	b, err := os.ReadFile(filepath.Join(run, endpointsFile))
	if err != nil {
		return nil, fmt.Errorf("no running skep found in %s: start one with `skep up`, or name its folder with --data: %w", run, err)
	}
	var e Endpoints
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(run, endpointsFile), err)
	}
	return &e, nil
}

func (e *Endpoints) write(run string) error {
	b, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(run, endpointsFile)
	if err := os.WriteFile(path+".tmp", append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}
