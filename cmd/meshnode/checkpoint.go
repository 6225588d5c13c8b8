package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"meshnode/node/control"
)

func (a *app) workerExportCommand() *cobra.Command {
	return a.outputFlag(&cobra.Command{
		Use:   "export NAME FILE",
		Short: "Write a whole worker to a file",
		Long: `export writes all of a worker to a file (- is standard output): module, memory,
files, and where in its program it is. It stands still while it is copied, and
then goes on where it is.

worker import makes a worker of the file, on any node, as often as you like. That
is another worker, with an id of its own, which has not had the messages that the
first one has since. To take a worker elsewhere in a file, so that only one of
them goes on, pause it, export it, stop it, and import it there.`,
		Args:              a.args(workerArg, "FILE, to be written"),
		ValidArgsFunction: a.completeWorkers,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			if args[1] == "-" {
				return c.Export(cmd.Context(), args[0], a.stdout)
			}
			// The name appears when all of it is there.
			f, err := os.CreateTemp(filepath.Dir(args[1]), filepath.Base(args[1])+".*")
			if err != nil {
				return usagef("%s", err)
			}
			defer os.Remove(f.Name())
			defer f.Close()
			if err := c.Export(cmd.Context(), args[0], f); err != nil {
				return err
			}
			if err := f.Sync(); err != nil {
				return err
			}
			if err := f.Close(); err != nil {
				return err
			}
			return os.Rename(f.Name(), args[1])
		},
	})
}

func (a *app) workerImportCommand() *cobra.Command {
	var name string
	cmd := a.outputFlag(&cobra.Command{
		Use:   "import FILE",
		Short: "Run a worker that was exported, on this node",
		Long: `import makes a new worker of a file that worker export wrote (- is standard
input), and runs it on this node from where it was.`,
		Args: a.args("FILE, written by worker export"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if name != "" {
				if err := control.CheckWorkerName(name); err != nil {
					return err
				}
			}
			in := a.stdin
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return usagef("%s", err)
				}
				defer f.Close()
				in = f
			}
			c := a.client()
			defer c.Close()
			w, err := c.Import(cmd.Context(), name, in)
			if err != nil {
				return err
			}
			return a.print(&w, func(out io.Writer) {
				fmt.Fprintf(out, "%s runs on %s (%s, limit %s, suspend %s, id %s)\n",
					freeText(w.Name), freeText(w.HomeName), size(w.MemoryBytes), size(w.MemoryLimit), freeText(w.Suspend), w.ID)
			})
		},
	})
	cmd.Flags().StringVar(&name, "name", "", "its name (default: that of the exported worker)")
	return cmd
}
