package wasi

import (
	"context"
	"fmt"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"
)

// Instantiate adds the functions to a runtime, as module wasi_snapshot_preview1.
func (h *Host) Instantiate(ctx context.Context, rt wazero.Runtime) error {
	b := rt.NewHostModuleBuilder(Module)
	for name, f := range functions {
		results := []api.ValueType{i32}
		body := func(_ context.Context, mod api.Module, stack []uint64) {
			stack[0] = uint64(h.call(name, f, memory{mod.Memory()}, stack))
		}
		if name == "proc_exit" {
			results = nil
			body = func(_ context.Context, _ api.Module, stack []uint64) {
				// The runtime unwinds the guest and returns this error to who
				// called it.
				panic(sys.NewExitError(uint32(stack[0])))
			}
		}
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(body), f.params, results).Export(name)
	}
	if _, err := b.Instantiate(ctx); err != nil {
		return fmt.Errorf("instantiate %s: %w", Module, err)
	}
	return nil
}

// call makes one call of a guest's.
func (h *Host) call(name string, f function, mem memory, stack []uint64) errno {
	if name != "poll_oneoff" {
		h.poll = nil // the guest does not make that call again
	}
	e := f.call(h, mem, stack)
	h.interrupted = e == errIntr
	return e
}

// function is one of preview1's. call returns an error number; the arguments
// are on the stack.
type function struct {
	params []api.ValueType
	call   func(h *Host, mem memory, stack []uint64) errno
}

const (
	i32 = api.ValueTypeI32
	i64 = api.ValueTypeI64
)

// functions are all of preview1, with the types of its witx files.
var functions = map[string]function{
	"args_get":                {types(i32, i32), (*Host).argsGet},
	"args_sizes_get":          {types(i32, i32), (*Host).argsSizesGet},
	"environ_get":             {types(i32, i32), (*Host).environGet},
	"environ_sizes_get":       {types(i32, i32), (*Host).environSizesGet},
	"clock_res_get":           {types(i32, i32), (*Host).clockResGet},
	"clock_time_get":          {types(i32, i64, i32), (*Host).clockTimeGet},
	"fd_advise":               {types(i32, i64, i64, i32), (*Host).fdAdvise},
	"fd_allocate":             {types(i32, i64, i64), (*Host).fdAllocate},
	"fd_close":                {types(i32), (*Host).fdClose},
	"fd_datasync":             {types(i32), (*Host).fdDatasync},
	"fd_fdstat_get":           {types(i32, i32), (*Host).fdFdstatGet},
	"fd_fdstat_set_flags":     {types(i32, i32), (*Host).fdFdstatSetFlags},
	"fd_fdstat_set_rights":    {types(i32, i64, i64), (*Host).fdFdstatSetRights},
	"fd_filestat_get":         {types(i32, i32), (*Host).fdFilestatGet},
	"fd_filestat_set_size":    {types(i32, i64), (*Host).fdFilestatSetSize},
	"fd_filestat_set_times":   {types(i32, i64, i64, i32), (*Host).fdFilestatSetTimes},
	"fd_pread":                {types(i32, i32, i32, i64, i32), (*Host).fdPread},
	"fd_prestat_get":          {types(i32, i32), (*Host).fdPrestatGet},
	"fd_prestat_dir_name":     {types(i32, i32, i32), (*Host).fdPrestatDirName},
	"fd_pwrite":               {types(i32, i32, i32, i64, i32), (*Host).fdPwrite},
	"fd_read":                 {types(i32, i32, i32, i32), (*Host).fdRead},
	"fd_readdir":              {types(i32, i32, i32, i64, i32), (*Host).fdReaddir},
	"fd_renumber":             {types(i32, i32), (*Host).fdRenumber},
	"fd_seek":                 {types(i32, i64, i32, i32), (*Host).fdSeek},
	"fd_sync":                 {types(i32), (*Host).fdSync},
	"fd_tell":                 {types(i32, i32), (*Host).fdTell},
	"fd_write":                {types(i32, i32, i32, i32), (*Host).fdWrite},
	"path_create_directory":   {types(i32, i32, i32), (*Host).pathCreateDirectory},
	"path_filestat_get":       {types(i32, i32, i32, i32, i32), (*Host).pathFilestatGet},
	"path_filestat_set_times": {types(i32, i32, i32, i32, i64, i64, i32), (*Host).pathFilestatSetTimes},
	"path_link":               {types(i32, i32, i32, i32, i32, i32, i32), (*Host).pathLink},
	"path_open":               {types(i32, i32, i32, i32, i32, i64, i64, i32, i32), (*Host).pathOpen},
	"path_readlink":           {types(i32, i32, i32, i32, i32, i32), (*Host).pathReadlink},
	"path_remove_directory":   {types(i32, i32, i32), (*Host).pathRemoveDirectory},
	"path_rename":             {types(i32, i32, i32, i32, i32, i32), (*Host).pathRename},
	"path_symlink":            {types(i32, i32, i32, i32, i32), (*Host).pathSymlink},
	"path_unlink_file":        {types(i32, i32, i32), (*Host).pathUnlinkFile},
	"poll_oneoff":             {types(i32, i32, i32, i32), (*Host).pollOneoff},
	"proc_exit":               {types(i32), nil},
	"proc_raise":              {types(i32), (*Host).procRaise},
	"random_get":              {types(i32, i32), (*Host).randomGet},
	"sched_yield":             {nil, (*Host).schedYield},
	"sock_accept":             {types(i32, i32, i32), (*Host).notSocket},
	"sock_recv":               {types(i32, i32, i32, i32, i32, i32), (*Host).notSocket},
	"sock_send":               {types(i32, i32, i32, i32, i32), (*Host).notSocket},
	"sock_shutdown":           {types(i32, i32), (*Host).notSocket},
}

func types(t ...api.ValueType) []api.ValueType { return t }

// notSocket is a function on sockets: no descriptor is one.
func (h *Host) notSocket(_ memory, stack []uint64) errno {
	if h.fd(uint32(stack[0])) == nil {
		return errBadf
	}
	return errNotsock
}

// procRaise has no signals to raise: C libraries that know them handle them
// themselves, and end with proc_exit.
func (h *Host) procRaise(memory, []uint64) errno { return errNosys }
