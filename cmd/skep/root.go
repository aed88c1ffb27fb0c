package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"github.com/skep-dev/skep/internal/daemon"
)

const defaultConfigFile = "/etc/skep/config.yaml"

// globals are the flags that every command has.
type globals struct {
	data       string
	configFile string
	kubeconfig string
	namespace  string
	output     string
}

// dataDir is the folder that was chosen, "" for the default ones. The
// variable SKEP_DATA chooses it for `skep up` and for all other commands.
func (g *globals) dataDir() string {
	if g.data == "" {
		return os.Getenv("SKEP_DATA")
	}
	return g.data
}

// runDir is where sockets and the kubeconfig are: below the data folder if
// that is given, /run/skep if not.
func (g *globals) runDir() string {
	if dir := g.dataDir(); dir != "" {
		return filepath.Join(dir, "run")
	}
	return daemon.DefaultConfig().Run
}

func newRoot() *cobra.Command {
	g := &globals{}
	root := &cobra.Command{
		Use:   "skep",
		Short: "Serverless functions, each in a sandbox of its own",
		Long: `Skep runs functions from container images, each instance in a sandbox of its
own, from zero instances and back to zero. The API is Knative Serving's:
kubectl works with the kubeconfig that 'skep up' writes.

  skep up                                   start Skep on this machine
  skep deploy hello --source ./functions/hello/go
  skep invoke hello
  skep delete hello`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return coded(exitUsage, loadConfig(cmd, g.configFile))
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&g.data, "data-dir", "", "the --data folder of the Skep to talk to, also $SKEP_DATA (default: /run/skep)")
	f.StringVar(&g.configFile, "config", defaultConfigFile, "configuration file of skep up: a key for each flag")
	f.StringVar(&g.kubeconfig, "kubeconfig", "", "kubeconfig of the Skep to talk to (default: the one of --data)")
	f.StringVarP(&g.namespace, "namespace", "n", "default", "namespace of the service")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return coded(exitUsage, err) })
	root.AddCommand(newUp(g), newDeploy(g), newList(g), newDescribe(g), newInvoke(g), newLogs(g),
		newDelete(g), newImage(g), newSnapshot(g), newSetup(g), newDoctor(g), newVersion(g), newExitCodes(),
		newSingleVM(g), newMultiVM(g), newFirerunner(g), newRuntime(g), newApp(g), newNetwork())
	return root
}

// loadConfig fills the flags of `skep up` that the command line did not give
// from the environment (SKEP_API_LISTEN) or the configuration file (api-listen).
func loadConfig(cmd *cobra.Command, file string) error {
	if cmd.Name() != "up" {
		return nil
	}
	v := viper.New()
	v.SetEnvPrefix("SKEP")
	v.SetEnvKeyReplacer(strings.NewReplacer("-", "_"))
	v.AutomaticEnv()
	v.SetConfigFile(file)
	if err := v.ReadInConfig(); err != nil {
		if !errors.Is(err, fs.ErrNotExist) || cmd.Flags().Changed("config") {
			return fmt.Errorf("--config: %w", err)
		}
	}
	// A key that no command knows is a misspelling.
	known := map[string]bool{}
	cmd.Flags().VisitAll(func(f *pflag.Flag) { known[f.Name] = true })
	for _, k := range v.AllKeys() {
		if !known[k] {
			return fmt.Errorf("%s: unknown key %q: keys are the names of flags, such as api-listen", file, k)
		}
	}
	var err error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if err != nil || f.Changed || !v.IsSet(f.Name) || f.Name == "config" {
			return
		}
		if setErr := cmd.Flags().Set(f.Name, v.GetString(f.Name)); setErr != nil {
			err = fmt.Errorf("%s (from %s or SKEP_%s): %w", f.Name, file,
				strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_")), setErr)
		}
	})
	return err
}

// outputFlag adds -o to a command.
func outputFlag(cmd *cobra.Command, g *globals) {
	cmd.Flags().StringVarP(&g.output, "output", "o", "table", "output format: table, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
}

func newExitCodes() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "What the exit codes of skep mean",
		Long: `0  done
1  failed; the message says why
2  wrong usage: an unknown flag, a value that cannot be, an invalid manifest
3  there is no such service, revision or image
4  the service did not become ready; the message has the cause
5  no running skep was found, or it does not answer`,
	}
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
