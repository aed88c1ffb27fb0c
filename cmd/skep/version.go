package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

// version is set by the build (-ldflags -X main.version=...).
var version = "dev"

func newVersion(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the version of this binary",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := struct {
				Version string `json:"version"`
				Go      string `json:"go"`
				OS      string `json:"os"`
				Arch    string `json:"arch"`
			}{version, runtime.Version(), runtime.GOOS, runtime.GOARCH}
			if g.output == "table" {
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "skep %s (%s, %s/%s)\n", v.Version, v.Go, v.OS, v.Arch)
				return err
			}
			return g.print(cmd.OutOrStdout(), v, nil)
		},
	}
	outputFlag(cmd, g)
	return cmd
}
