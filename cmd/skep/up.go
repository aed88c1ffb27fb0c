package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/skep-dev/skep/internal/daemon"
	"github.com/skep-dev/skep/internal/node/snapshots"
)

func newUp(g *globals) *cobra.Command {
	cfg := daemon.DefaultConfig()
	var logFormat, logLevel, uplinks string
	var vhive bool // --snapshots
	poolMemory := resource.NewQuantity(cfg.SnapshotPoolMemory, resource.BinarySI).String()
	snapshotLimit := resource.NewQuantity(cfg.SnapshotLimit, resource.BinarySI).String()
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start Skep on this machine, in the foreground",
		Long: `Start the API, the gateway and the node in one process. SIGTERM or Ctrl-C
drains requests and stops everything; what was deployed is there again at the
next start.

Everything listens on loopback. Each flag has a key of the same name in the
configuration file and a variable in the environment (SKEP_API_LISTEN).`,
		Example: `  sudo skep up
  sudo skep up --data /tmp/skep --listen 127.0.0.1:8081 --sandbox qemu`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir := g.dataDir(); dir != "" {
				cfg.Data, cfg.Run = dir, g.runDir()
			}
			if err := cfg.Uplinks.UnmarshalText([]byte(uplinks)); err != nil {
				return coded(exitUsage, fmt.Errorf("--uplinks: %w", err))
			}
			memory, err := resource.ParseQuantity(poolMemory)
			if err != nil {
				return coded(exitUsage, fmt.Errorf("--snapshot-pool-memory: %q is not a size such as 1Gi", poolMemory))
			}
			cfg.SnapshotPoolMemory = memory.Value()
			limit, err := resource.ParseQuantity(snapshotLimit)
			if err != nil {
				return coded(exitUsage, fmt.Errorf("--snapshot-limit: %q is not a size such as 16Gi", snapshotLimit))
			}
			cfg.SnapshotLimit = limit.Value()
			if cmd.Flags().Changed("snapshots") {
				cfg.Snapshots = &vhive
			}
			log, err := newLogger(os.Stderr, logFormat, logLevel)
			if err != nil {
				return coded(exitUsage, err)
			}
			slog.SetDefault(log)
			cfg.Log = log
			if err := cfg.Validate(); err != nil {
				return coded(exitUsage, err)
			}
			return up(cmd.Context(), cfg, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&g.data, "data", "", "folder for all state, sockets and the kubeconfig (default /var/lib/skep and /run/skep)")
	f.StringVar(&cfg.Listen, "listen", cfg.Listen, "address of the gateway")
	f.StringVar(&cfg.APIListen, "api-listen", cfg.APIListen, "address of the Kubernetes API")
	f.StringVar(&cfg.RegistryListen, "registry-listen", cfg.RegistryListen, "address of the image registry (loopback)")
	f.StringVar(&cfg.MetricsListen, "metrics-listen", cfg.MetricsListen, "address of /metrics and /healthz (loopback)")
	f.StringVar(&cfg.Sandbox, "sandbox", cfg.Sandbox, "default sandbox: auto, firecracker, gvisor, qemu or runc")
	f.StringVar(&cfg.Domain, "domain", cfg.Domain, "domain below which services get their names")
	f.DurationVar(&cfg.IdleAfter, "idle-after", cfg.IdleAfter, "how long a service without requests keeps its last instance")
	f.DurationVar(&cfg.DrainTimeout, "drain-timeout", cfg.DrainTimeout, "how long running requests may take to end at SIGTERM")
	f.IntVar(&cfg.PoolSize, "pool-size", cfg.PoolSize, "networks kept ready for new instances")
	f.StringVar(&uplinks, "uplinks", "", "addresses of the uplinks of sandboxes with egress (default a free part of 10.0.0.0/8)")
	f.StringVar(&cfg.Kernel, "kernel", cfg.Kernel, "kernel of micro-VMs (default: the newest cloud kernel in /boot)")
	f.StringVar(&cfg.Accel, "accel", cfg.Accel, "acceleration of QEMU: auto, kvm or tcg")
	f.Int64Var(&cfg.ImageBytes, "image-bytes", cfg.ImageBytes, "largest root file system of an image, in bytes")
	f.Int64Var(&cfg.StoreBytes, "store-bytes", cfg.StoreBytes, "size of the image store above which unused images are removed")
	f.StringVar(&cfg.SnapshotProfile, "snapshot-profile", cfg.SnapshotProfile, "when snapshots are made and how they are restored: default, none, or as vHive does: snapshots, reap")
	f.BoolVar(&vhive, "snapshots", false, "vHive's switch for --snapshot-profile snapshots; --snapshots=false is none")
	f.BoolVar(&cfg.UPF, "upf", cfg.UPF, "with --snapshots: vHive's switches for --snapshot-profile reap, which records and prefetches working sets by the pager")
	f.StringVar(&cfg.SnapshotPolicy, "snapshot-policy", cfg.SnapshotPolicy, "when a snapshot is made, unless as the profile says (after-ready): off, after-ready, after-first-response, after-n=N or at-scale-down; several with commas refine it from one restore to the next")
	f.StringVar(&cfg.SnapshotRestoreMode, "snapshot-restore-mode", cfg.SnapshotRestoreMode, "how instances are restored, unless as the profile says (auto): auto (unless booting proves faster), always, off, or a mode that the driver has: map, map+hint, eager, pager, background")
	f.StringVar(&cfg.SnapshotPool, "snapshot-pool", cfg.SnapshotPool, "sandboxes kept prepared for each revision: a number or auto")
	f.IntVar(&cfg.SnapshotDiffs, "snapshot-diffs", cfg.SnapshotDiffs, "how many differences may lie on a whole snapshot, where the driver can save what changed alone")
	f.StringVar(&cfg.SnapshotWorkingSet, "snapshot-working-set", cfg.SnapshotWorkingSet, "what becomes of a working set that is recorded anew: last, union or intersection")
	f.StringVar(&poolMemory, "snapshot-pool-memory", poolMemory, "memory that prepared sandboxes may take, all together")
	f.StringVar(&snapshotLimit, "snapshot-limit", snapshotLimit, "size above which the least recently used snapshots are removed")
	f.DurationVar(&cfg.SnapshotWait, "snapshot-wait", cfg.SnapshotWait, "how long a start waits for a snapshot that is in the store only, before it boots")
	f.StringVar(&cfg.SnapshotStore, "snapshot-store", cfg.SnapshotStore, "where snapshots are kept: a folder, or s3://BUCKET/PREFIX?endpoint=URL (default below the data folder)")
	firecrackerFlags(f, &cfg.Firecracker)
	f.StringSliceVar(&cfg.InsecureRegistries, "insecure-registry", nil, "HOST[:PORT] of a registry that may be spoken to in plain HTTP, may be repeated")
	f.StringVar(&logFormat, "log-format", "text", "format of the log on standard error: text or json")
	f.StringVar(&logLevel, "log-level", "info", "least level logged: debug, info, warn or error")
	for name, values := range map[string][]string{
		"sandbox": daemon.Drivers, "accel": daemon.Accels,
		"snapshot-profile": daemon.Profiles(), "snapshot-policy": snapshots.PolicyNames(), "snapshot-restore-mode": snapshots.RestoreNames(), "snapshot-pool": {"0", "1", "auto"},
		"firecracker-balloon": daemon.Balloons,
		"log-format":          {"text", "json"}, "log-level": {"debug", "info", "warn", "error"},
	} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	return cmd
}

func firecrackerFlags(f *pflag.FlagSet, c *daemon.FirecrackerConfig) {
	f.StringVar(&c.CPUTemplate, "firecracker-cpu-template", c.CPUTemplate, "what Firecracker's guests see of the processor, so that snapshots can be restored on others: C3, T2, T2S, T2CL, T2A, or a file of cpu-template-helper")
	f.BoolVar(&c.HugePages, "firecracker-huge-pages", c.HugePages, "back Firecracker's guests with huge pages of 2 MiB (vm.nr_hugepages)")
	f.StringVar(&c.Balloon, "firecracker-balloon", c.Balloon, "off; free: Firecracker's guests give free memory back; or a size, which they give besides of what they can spare")
	f.BoolVar(&c.DirtyTracking, "firecracker-dirty-tracking", c.DirtyTracking, "have KVM track what Firecracker's guests write, for smaller differences between snapshots")
	f.StringVar(&c.DiskRate, "firecracker-disk-rate", c.DiskRate, "limit of each disk of Firecracker's guests: BYTES or BYTES,OPERATIONS per second, such as 100Mi,2000 (default none)")
	f.StringVar(&c.ReceiveRate, "firecracker-receive-rate", c.ReceiveRate, "limit of what each of Firecracker's guests receives, likewise (default none)")
	f.StringVar(&c.SendRate, "firecracker-send-rate", c.SendRate, "limit of what each of Firecracker's guests sends, likewise (default none)")
	f.StringVar(&c.Metadata, "firecracker-metadata", c.Metadata, "file with a JSON object that Firecracker's guests can ask for at 169.254.169.254, by MMDSv2 (default none: nobody answers)")
}

func up(ctx context.Context, cfg daemon.Config, out io.Writer) error {
	// The API machinery makes much short-lived garbage; a lower target than
	// Go's default of 100 keeps the idle daemon small.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	began := time.Now()
	d, err := daemon.Start(ctx, cfg)
	if err != nil && ctx.Err() != nil {
		cfg.Log.Info("stopped while starting", "cause", err)
		return nil
	}
	if err != nil {
		return err
	}
	e := d.Endpoints()
	fmt.Fprintf(out, "Skep is ready after %s.\n", time.Since(began).Round(10*time.Millisecond))
	fmt.Fprintf(out, "  gateway   http://%s   (NAME.NAMESPACE.%s)\n", e.Gateway, e.Domain)
	fmt.Fprintf(out, "  API       %s   (export KUBECONFIG=%s)\n", e.API, e.Kubeconfig)
	fmt.Fprintf(out, "  registry  %s\n", e.Registry)
	fmt.Fprintf(out, "  metrics   http://%s/metrics\n", e.Metrics)
	select {
	case <-ctx.Done():
		cfg.Log.Info("draining", "timeout", cfg.DrainTimeout)
	case err = <-d.Failed():
		cfg.Log.Error("a part of skep broke down, stopping", "error", err)
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.DrainTimeout)
	defer cancel()
	if stopErr := d.Stop(stopping); stopErr != nil {
		cfg.Log.Error("stop", "error", stopErr)
	}
	return err
}

func newLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level: %q is not one of debug, info, warn, error", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("--log-format: %q is neither text nor json", format)
}
