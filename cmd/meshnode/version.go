package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"meshnode/node/control"
)

func (a *app) versionCommand() *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:               "version",
		Short:             "Describe this build",
		Args:              a.args(),
		ValidArgsFunction: noFiles,
		RunE: func(*cobra.Command, []string) error {
			v := control.BuildVersion()
			return a.print(&v, func(w io.Writer) {
				commit := ""
				if v.Commit != "" {
					commit = ", commit " + v.Commit
				}
				fmt.Fprintf(w, "meshnode %s (%s %s/%s%s)\n", v.Version, v.Go, v.OS, v.Arch, commit)
			})
		},
	})
}
