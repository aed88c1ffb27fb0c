package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skep-dev/skep/internal/snapfaas/controller"
	"github.com/skep-dev/skep/internal/snapfaas/runner"
)

// multiFlags are multivm's.
type multiFlags struct {
	config, listen, sandbox, accel, firerunner string
	memory                                     int64
	pool                                       int
	boot, request, drain                       time.Duration
}

func newMultiVM(g *globals) *cobra.Command {
	m := &multiFlags{}
	cmd := &cobra.Command{
		Use:   "multivm --config FILE --mem MB --listen [ADDR:]PORT",
		Short: "Run the functions of a YAML file in a pool of micro-VMs (SnapFaaS)",
		Long: `Run the functions of a YAML file, each instance in a micro-VM, within a given
memory. Requests come over TCP, as eight bytes of length and
{"function":NAME,"payload":JSON}, or over HTTP on the same port: POST / with
that object, or POST /functions/NAME with the payload alone.

It is also what skep is when it is called by the name multivm.`,
		Example: `  cat controller.yaml
    runtimefs_dir: ./runtimefs
    appfs_dir: ./appfs
    snapshot_dir: ./snapshot
    functions:
      hello: {runtimefs: python3.img, appfs: hello.img, memory: 128,
              concurrency_limit: 4, load_dir: "python3,diff/hello"}

  multivm --config controller.yaml --mem 2048 --listen 3456 &
  curl -d '{"name":"Ann"}' http://127.0.0.1:3456/functions/hello`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return m.run(cmd, g) },
	}
	f := cmd.Flags()
	f.StringVarP(&m.config, "config", "c", "", "the YAML file")
	f.Int64Var(&m.memory, "mem", 0, "memory for all functions' VMs, in MB")
	f.StringVarP(&m.listen, "listen", "l", "", "where to take requests, [ADDR:]PORT; on loopback without an address")
	f.StringVar(&m.sandbox, "sandbox", "", "what runs the functions: "+strings.Join(sandboxNames, " or ")+" (default: the file's sandbox, or "+sandboxNames[0]+")")
	f.StringVar(&m.accel, "accel", "auto", "acceleration of QEMU: auto, kvm or tcg")
	f.StringVar(&m.firerunner, "firerunner", "", "firerunner's program (default: the file's firerunner_path, or skep itself)")
	f.IntVar(&m.pool, "pool_size", 2, "networks kept ready for new VMs")
	f.DurationVar(&m.boot, "boot_timeout", runner.DefaultBoot, "how long the start of a VM may take")
	f.DurationVar(&m.request, "request_timeout", runner.DefaultRequest, "how long one request may take")
	f.DurationVar(&m.drain, "drain_timeout", 30*time.Second, "how long running requests may take to end at SIGTERM")
	f.SetNormalizeFunc(snapfaasNames)
	for _, name := range []string{"config", "mem", "listen"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return tool(cmd)
}

func (m *multiFlags) run(cmd *cobra.Command, g *globals) (err error) {
	ctx, log := cmd.Context(), toolLog(slog.LevelInfo)
	conf, err := controller.Load(m.config)
	if err != nil {
		return coded(exitUsage, fmt.Errorf("--config: %w", err))
	}
	if err := positive(cmd.Flags(), "boot_timeout", "request_timeout"); err != nil {
		return coded(exitUsage, err)
	}
	if m.memory < 1 {
		return coded(exitUsage, fmt.Errorf("--mem: %d MB is not a memory", m.memory))
	}
	v := &vmmFlags{
		sandbox: cmp.Or(m.sandbox, conf.Sandbox, sandboxNames[0]),
		kernel:  conf.KernelPath, kernelArgs: conf.KernelArgs, accel: m.accel,
	}
	if err := v.check(cmd.ErrOrStderr()); err != nil {
		return err
	}
	empty, err := placeholder(cmd, g)
	if err != nil {
		return err
	}
	limits := map[string]controller.Limits{}
	for name, f := range conf.Functions {
		machine := f.Machine(name, empty)
		if err := checkMachine(v, &machine); err != nil {
			return coded(exitUsage, fmt.Errorf("--config: functions: %s: %s", name, inYAML.Replace(err.Error())))
		}
		limits[name] = controller.Limits{MemoryMiB: f.Memory, VMs: f.ConcurrencyLimit}
	}
	if m.firerunner == "" {
		m.firerunner = conf.FirerunnerPath
	}
	h, parent, err := openHost(cmd, g, v, m.firerunner, m.pool, log)
	if err != nil {
		return err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		err = errors.Join(err, h.Close(clean))
	}()
	pool := controller.NewPool(m.memory, limits, func(ctx context.Context, name string) (controller.Worker, error) {
		f := conf.Functions[name]
		machine := f.Machine(name, empty)
		machine.Boot, machine.Request = m.boot, m.request
		return m.start(ctx, log, parent, name, machine, f.Network)
	})
	defer pool.Close()
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", listenAddress(m.listen))
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "multivm: %d functions, %d MB, listening on %s\n", len(conf.Functions), m.memory, l.Addr())
	c := controller.New(pool, log)
	err = controller.NewServer(c).Serve(ctx, l, m.drain)
	t := c.Totals()
	fmt.Fprintf(cmd.ErrOrStderr(), "Total requests: %d, failed: %d, cold starts: %d\nShutting down vms...\n", t.Requests, t.Failed, t.ColdStarts)
	return err
}

// start starts a VM. It is not the requester's alone: ctx is the server's, and
// goes on if he leaves.
func (m *multiFlags) start(ctx context.Context, log *slog.Logger, p runner.Parent, name string, c runner.Config, egress bool) (controller.Worker, error) {
	vm, err := p.Start(ctx, c, egress)
	if err != nil {
		return nil, err
	}
	attrs := []any{"function", name, "pid", vm.Pid()}
	for _, p := range vm.Ready.Phases {
		attrs = append(attrs, strings.ReplaceAll(p.Name, " ", "_"), p.Took)
	}
	log.Info("VM ready", attrs...)
	return vm, nil
}

// checkMachine finds before the first request what is wrong with a function.
func checkMachine(v *vmmFlags, c *runner.Config) error {
	if err := errors.Join(c.Validate(), v.checkSets(c)); err != nil {
		return err
	}
	for _, f := range []struct{ flag, path string }{{"runtimefs", c.Rootfs}, {"appfs", c.App}} {
		if _, err := diskPath(f.flag, f.path); err != nil {
			return err
		}
	}
	return checkDirs(c)
}

// inYAML has the names that singlevm's flags have in multivm's file.
var inYAML = strings.NewReplacer("--rootfs", "runtimefs", "--appfs", "appfs", "--mem_size", "memory", "--vcpu_count", "vcpus",
	"--load_dir", "load_dir", "--load_ws", "load_ws", "--copy_base", "copy_base", "--copy_diff", "copy_diff")

// listenAddress adds loopback to a mere port.
func listenAddress(s string) string {
	if !strings.Contains(s, ":") {
		return "127.0.0.1:" + s
	}
	return s
}
