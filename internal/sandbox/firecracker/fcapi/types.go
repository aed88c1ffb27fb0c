package fcapi

import "encoding/json"

// MachineConfig is the machine's size. The zero value of an optional field is
// Firecracker's default, here and in all other types.
type MachineConfig struct {
	VCPUs           int64  `json:"vcpu_count"`
	MemoryMiB       int64  `json:"mem_size_mib"`
	SMT             bool   `json:"smt,omitempty"`
	CPUTemplate     string `json:"cpu_template,omitempty"` // a static template's name
	TrackDirtyPages bool   `json:"track_dirty_pages,omitempty"`
	HugePages       string `json:"huge_pages,omitempty"` // HugePages2M
}

// HugePages2M backs the guest's memory with huge pages of 2 MiB.
const HugePages2M = "2M"

// BootSource is what the machine boots.
type BootSource struct {
	Kernel string `json:"kernel_image_path"`
	Initrd string `json:"initrd_path,omitempty"`
	Args   string `json:"boot_args,omitempty"`
}

// TokenBucket limits a rate: Size tokens each RefillMillis, after OneTimeBurst
// more at the beginning.
type TokenBucket struct {
	Size         int64 `json:"size"`
	RefillMillis int64 `json:"refill_time"`
	OneTimeBurst int64 `json:"one_time_burst,omitempty"`
}

// RateLimiter limits bytes and operations.
type RateLimiter struct {
	Bandwidth *TokenBucket `json:"bandwidth,omitempty"`
	Ops       *TokenBucket `json:"ops,omitempty"`
}

// Drive is a disk.
type Drive struct {
	ID          string       `json:"drive_id"`
	Path        string       `json:"path_on_host,omitempty"`
	Root        bool         `json:"is_root_device"` // the kernel is told to boot from it
	ReadOnly    bool         `json:"is_read_only"`
	CacheType   string       `json:"cache_type,omitempty"`
	IOEngine    string       `json:"io_engine,omitempty"`
	RateLimiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// DriveUpdate changes a disk of a machine that has been started or loaded.
type DriveUpdate struct {
	ID          string       `json:"drive_id"`
	Path        string       `json:"path_on_host,omitempty"`
	RateLimiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// NetworkInterface is a network card.
type NetworkInterface struct {
	ID     string       `json:"iface_id"`
	Device string       `json:"host_dev_name"` // the TAP device's name
	MAC    string       `json:"guest_mac,omitempty"`
	MTU    int          `json:"mtu,omitempty"`
	RX     *RateLimiter `json:"rx_rate_limiter,omitempty"`
	TX     *RateLimiter `json:"tx_rate_limiter,omitempty"`
}

// NetworkInterfaceUpdate changes the limits of a card in a running machine.
type NetworkInterfaceUpdate struct {
	ID string       `json:"iface_id"`
	RX *RateLimiter `json:"rx_rate_limiter,omitempty"`
	TX *RateLimiter `json:"tx_rate_limiter,omitempty"`
}

// Balloon takes memory from the guest and gives it back.
type Balloon struct {
	AmountMiB         int64 `json:"amount_mib"`
	DeflateOnOOM      bool  `json:"deflate_on_oom"`
	StatsInterval     int64 `json:"stats_polling_interval_s,omitempty"` // seconds; 0: no statistics
	FreePageHinting   bool  `json:"free_page_hinting,omitempty"`
	FreePageReporting bool  `json:"free_page_reporting,omitempty"`
}

// BalloonUpdate changes the balloon's size.
type BalloonUpdate struct {
	AmountMiB int64 `json:"amount_mib"`
}

// BalloonStats is the balloon's state, as far as it is used here.
type BalloonStats struct {
	TargetMiB       int64 `json:"target_mib"`
	ActualMiB       int64 `json:"actual_mib"`
	AvailableMemory int64 `json:"available_memory,omitempty"` // bytes
	FreeMemory      int64 `json:"free_memory,omitempty"`      // bytes
}

// MMDSConfig configures the metadata service, which answers in the guest at
// 169.254.169.254.
type MMDSConfig struct {
	Version    string   `json:"version"` // MMDSv2
	Interfaces []string `json:"network_interfaces"`
}

// MMDSv2 is the version that wants a token, as a function that is talked into
// a GET of a URL does not have it.
const MMDSv2 = "V2"

// Entropy is a virtio random number generator.
type Entropy struct {
	RateLimiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// Serial says where the guest's console goes.
type Serial struct {
	OutPath     string       `json:"serial_out_path,omitempty"` // "" is standard output
	RateLimiter *TokenBucket `json:"rate_limiter,omitempty"`
}

// Action is something to do at once.
type Action struct {
	Type ActionType `json:"action_type"`
}

// ActionType names an action.
type ActionType string

// The actions.
const (
	InstanceStart  ActionType = "InstanceStart"
	FlushMetrics   ActionType = "FlushMetrics"
	SendCtrlAltDel ActionType = "SendCtrlAltDel"
)

// VM is the state to bring a machine to.
type VM struct {
	State VMState `json:"state"`
}

// VMState is one of the states of VM.
type VMState string

// The states.
const (
	Paused  VMState = "Paused"
	Resumed VMState = "Resumed"
)

// SnapshotCreate makes a snapshot of a paused machine.
type SnapshotCreate struct {
	Type       SnapshotType `json:"snapshot_type,omitempty"` // Full if empty
	StatePath  string       `json:"snapshot_path"`
	MemoryPath string       `json:"mem_file_path"`
}

// SnapshotType says which memory goes into a snapshot.
type SnapshotType string

// Full is all memory, also that which was never touched. Diff is what has been
// written since the machine was loaded, or started: in the second case it is a
// whole snapshot, too, in a sparse file.
const (
	Full SnapshotType = "Full"
	Diff SnapshotType = "Diff"
)

// SnapshotLoad makes a machine from a snapshot.
type SnapshotLoad struct {
	StatePath        string            `json:"snapshot_path"`
	Memory           *MemoryBackend    `json:"mem_backend"`
	TrackDirtyPages  bool              `json:"track_dirty_pages,omitempty"`
	Resume           bool              `json:"resume_vm,omitempty"`
	NetworkOverrides []NetworkOverride `json:"network_overrides,omitempty"`
	ClockRealtime    bool              `json:"clock_realtime,omitempty"` // move the guest's clock on by the time that has passed
}

// MemoryBackend says where a loaded machine's memory comes from.
type MemoryBackend struct {
	Type BackendType `json:"backend_type"`
	Path string      `json:"backend_path"` // of the memory file, or of the page-fault handler's socket
}

// BackendType is a kind of MemoryBackend.
type BackendType string

// The kinds.
const (
	BackendFile BackendType = "File"
	BackendUFFD BackendType = "Uffd"
)

// NetworkOverride gives a loaded machine's card another TAP device.
type NetworkOverride struct {
	ID     string `json:"iface_id"`
	Device string `json:"host_dev_name"`
}

// CPUConfig is a custom CPU template, as Firecracker's cpu-template-helper
// writes it.
type CPUConfig = json.RawMessage

// InstanceInfo says what a Firecracker process is doing.
type InstanceInfo struct {
	AppName string `json:"app_name"`
	ID      string `json:"id"`
	State   string `json:"state"` // "Not started", "Running", "Paused"
	Version string `json:"vmm_version"`
}

// Version is the answer to GET /version.
type Version struct {
	Version string `json:"firecracker_version"`
}
