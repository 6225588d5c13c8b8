package node

import (
	"context"
	"fmt"
	"time"

	"meshnode/node/control"
	"meshnode/node/runner"
	"meshnode/node/wasi"
)

// Files implements control.Backend.
func (b backend) Files(ctx context.Context, ref, path, after string) (control.FileList, error) {
	d := control.FileList{Path: path}
	l, err := b.look(ctx, ref, path, func(ctx context.Context, r *runner.Runner) (runner.Looked, error) {
		return r.Look(ctx, path, after)
	})
	if err != nil {
		return d, err
	}
	d.File = fileOf(l.Info)
	for _, e := range l.Entries {
		d.Entries = append(d.Entries, fileOf(e))
	}
	d.More = len(l.Entries) == runner.MaxLooked
	return d, nil
}

// ReadFile implements control.Backend.
func (b backend) ReadFile(ctx context.Context, ref, path string, offset int64) ([]byte, error) {
	l, err := b.look(ctx, ref, path, func(ctx context.Context, r *runner.Runner) (runner.Looked, error) {
		return r.ReadFile(ctx, path, offset)
	})
	return l.Data, err
}

func (b backend) look(ctx context.Context, ref, path string, ask func(context.Context, *runner.Runner) (runner.Looked, error)) (l runner.Looked, err error) {
	w, err := b.here(ref)
	if err != nil {
		return l, err
	}
	if w.runner == nil || ended(w.describe().State) {
		return l, &control.Error{Code: control.CodeConflict, Message: fmt.Sprintf("worker %s is %s: its files are gone", w.Name, w.describe().State)}
	}
	if !w.runner.HasFiles() {
		return l, &control.Error{
			Code: control.CodeConflict, Message: fmt.Sprintf("worker %s has no files", w.Name),
			Hint: "a program gets a copy of a directory with `meshnode worker run --dir HOST:GUEST`",
		}
	}
	// A request to the runner cannot be given up without ending it.
	if l, err = ask(context.WithoutCancel(ctx), w.runner); err != nil {
		return l, &control.Error{Code: control.CodeConflict, Message: fmt.Sprintf("worker %s: %v", w.Name, err)}
	}
	switch {
	case l.Absent:
		return l, control.NoFile(w.Name, path)
	case l.Wrong != "":
		return l, &control.Error{Code: control.CodeConflict, Message: fmt.Sprintf("worker %s: %s", w.Name, l.Wrong)}
	}
	return l, nil
}

func fileOf(i wasi.FileInfo) control.File {
	f := control.File{Name: i.Name, Kind: i.Kind, Size: i.Size, Target: i.Target}
	if i.Modified > 0 {
		f.Modified = time.Unix(0, int64(i.Modified)).UTC()
	}
	return f
}
