package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"meshnode/node/control"
	"meshnode/placement/manifest"
)

// schemaCommand prints the JSON Schemas of what people write.
func (a *app) schemaCommand() *cobra.Command {
	return a.group("schema", "Print the JSON Schemas of the files that meshnode reads", &cobra.Command{
		Use:   "app",
		Short: "Print the JSON Schema of an app's manifest",
		Long: `app prints the JSON Schema (draft 2020-12) of an app's manifest. It is made from
the same definitions that ` + "`meshnode app check`" + ` reads with, so editors that know
it complete and underline as this version of meshnode would.

    meshnode schema app > app.schema.json
    # yaml-language-server: $schema=app.schema.json`,
		Args:              a.args(),
		ValidArgsFunction: noFiles,
		RunE: func(*cobra.Command, []string) error {
			_, err := a.stdout.Write(manifest.Schema())
			return err
		},
	})
}

// appCommand is about what an app needs, as its manifest says it.
func (a *app) appCommand() *cobra.Command {
	return a.group("app", "Run apps where their users' latencies are kept", a.appCheckCommand(), a.appPlanCommand(),
		a.appApplyCommand(), a.appListCommand(), a.appShowCommand(), a.appRemoveCommand())
}

func (a *app) appCheckCommand() *cobra.Command {
	var effective bool
	cmd := a.outputFlag(&cobra.Command{
		Use:   "check FILE",
		Short: "Check an app's manifest",
		Long: `check reads a manifest and says everything that is wrong with it: the line, why,
and what would be accepted. No daemon is asked. - is standard input.

    meshnode app check physics.yaml
    meshnode app check physics.yaml --effective   # with every default filled in`,
		Args:              a.args("FILE, an app's manifest"),
		ValidArgsFunction: manifestFiles,
		RunE: func(_ *cobra.Command, args []string) error {
			m, _, err := a.readManifest(args[0])
			var bad *manifest.Error
			if errors.As(err, &bad) && a.format.value == "json" {
				// The problems are the result that was asked for.
				if err := control.Encode(a.stdout, &control.AppCheck{File: bad.File, Problems: problems(bad)}); err != nil {
					return err
				}
				return silentError{control.ExitUsage}
			}
			if err != nil {
				return err
			}
			d := control.AppCheck{File: args[0], App: m.Name, Valid: true, Problems: []control.ManifestProblem{}}
			if w := moduleMissing(args[0], m); w != "" {
				d.Warnings = append(d.Warnings, w)
				if a.format.value != "json" {
					fmt.Fprintf(a.stderr, "meshnode: warning: %s\n", w)
				}
			}
			if effective {
				d.Effective = m
			}
			if effective && a.format.value != "json" {
				_, err := a.stdout.Write(m.Effective())
				return err
			}
			return a.print(&d, func(w io.Writer) { fmt.Fprintf(w, "%s: app %s is valid\n", freeText(args[0]), m.Name) })
		},
	})
	cmd.Flags().BoolVar(&effective, "effective", false, "print the manifest with every default filled in")
	return cmd
}

// readManifest reads and parses a manifest; - is standard input. It also
// returns the text. A bad manifest is an error of usage that wraps
// *manifest.Error: nothing was tried.
func (a *app) readManifest(file string) (*manifest.App, []byte, error) {
	r, name := a.stdin, "standard input"
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, nil, &manifestError{code: fileCode(err), err: err}
		}
		defer f.Close()
		r, name = f, file
	}
	// One byte more than fits lets the parser say that there is too much.
	text, err := io.ReadAll(io.LimitReader(r, manifest.MaxBytes+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read the manifest: %w", err)
	}
	m, err := manifest.Parse(name, text)
	if err != nil {
		return nil, nil, &manifestError{code: control.CodeInvalid, err: err}
	}
	return m, text, nil
}

func fileCode(err error) control.Code {
	if errors.Is(err, os.ErrNotExist) {
		return control.CodeNotFound
	}
	return control.CodeFailed
}

// A manifestError gives what is wrong with a manifest its code without losing
// the list of problems.
type manifestError struct {
	code control.Code
	err  error
}

func (e *manifestError) Error() string { return e.err.Error() }

// As gives the error its code.
func (e *manifestError) As(target any) bool {
	if t, ok := target.(**control.Error); ok {
		*t = &control.Error{Code: e.code, Message: e.err.Error()}
		return true
	}
	return false
}

func (e *manifestError) Unwrap() error { return e.err }

func problems(e *manifest.Error) []control.ManifestProblem {
	out := make([]control.ManifestProblem, len(e.Problems))
	for i, p := range e.Problems {
		out[i] = control.ManifestProblem(p)
	}
	return out
}

// moduleMissing says that a manifest names a file that is not there. That is
// no problem of the manifest: it may be checked before the module is built.
func moduleMissing(file string, m *manifest.App) string {
	if m.Module.Path == "" {
		return ""
	}
	if _, err := os.Stat(modulePath(file, m)); err != nil {
		return fmt.Sprintf("module.path: %s; build it before the app is run", err)
	}
	return ""
}

// modulePath is where a manifest's module is: relative to the manifest, or to
// the present directory when it came over standard input.
func modulePath(file string, m *manifest.App) string {
	if file == "-" || filepath.IsAbs(m.Module.Path) {
		return m.Module.Path
	}
	return filepath.Join(filepath.Dir(file), m.Module.Path)
}

// manifestFiles completes the names of manifests.
func manifestFiles(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return []cobra.Completion{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
}
