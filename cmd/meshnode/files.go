package main

import (
	"io"
	"time"

	"github.com/spf13/cobra"

	"meshnode/node/control"
)

func (a *app) workerFilesCommand() *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:   "files NAME [PATH]",
		Short: "List a program's files, or read one",
		Long: `files lists the directories that a program was given, or what is in the
directory PATH, a path as the program sees it. If PATH is a file it writes what is
in that to standard output; with -o json it describes it.

The program stands still for some microseconds meanwhile. What it writes to a file
while that is read may be in what comes out or not; pause the worker first if that
matters.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				return nil
			}
			return a.args(workerArg)(cmd, args)
		},
		ValidArgsFunction: a.completeWorkers,
		RunE: func(cmd *cobra.Command, args []string) error {
			path := ""
			if len(args) == 2 {
				path = args[1]
			}
			c := a.client()
			defer c.Close()
			d, err := c.Files(cmd.Context(), args[0], path)
			if err != nil {
				return err
			}
			if d.File.Kind == control.FileRegular && a.format.value != "json" {
				return c.ReadFile(cmd.Context(), args[0], path, a.stdout)
			}
			return a.print(&d, func(w io.Writer) {
				row(w, "KIND", "SIZE", "MODIFIED", "NAME")
				for _, f := range d.Entries {
					name, bytes := freeText(f.Name), ""
					if f.Target != "" {
						name += " -> " + freeText(f.Target)
					}
					if f.Kind == control.FileRegular {
						bytes = size(uint64(f.Size))
					}
					row(w, f.Kind, bytes, f.Modified.Local().Format(time.DateTime), name)
				}
			})
		},
	})
}
