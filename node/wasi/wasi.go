// Package wasi gives event workers WASI preview1 with state that can be saved
// and restored.
//
// An event worker has no files and no sockets: its descriptors are standard
// input, which is at its end, and standard output and error, whose lines become
// log lines. Every function of preview1 is present, so that programs link and
// run; those that make no sense here return the error number a program expects,
// and none of them traps.
//
// Guest memory is only ever read and written by Go code, never handed to a
// system call: while a worker's memory is still arriving, a system call that
// meets a missing page fails with EFAULT, where Go code waits for the page.
package wasi

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"
)

// Module is the name guests import WASI's functions from.
const Module = "wasi_snapshot_preview1"

// Limits.
const (
	// MaxLine is the longest line of output, in bytes; a longer one comes in
	// pieces.
	MaxLine = 8 << 10
	// MaxArgs bounds arguments and environment, each, in bytes with one more
	// for every string's end.
	MaxArgs = 256 << 10
	// maxVectors bounds the buffers of one read or write.
	maxVectors = 1024
	// maxSubscriptions bounds one poll.
	maxSubscriptions = 8192
)

// Config is what a Host gives its guest.
type Config struct {
	// Args and Env are the same for all of a worker's life: a guest may ask
	// for them at any time. Neither may contain a zero byte.
	Args, Env []string
	// Clock is the worker's monotonic clock; nil makes one that starts at 0.
	Clock *Clock
	// Output receives each line the guest writes to standard output (1) or
	// error (2), without its end. The slice is only valid during the call. nil
	// drops them.
	Output func(stream int, line []byte)
}

// A Host is WASI for one guest. It is not safe for concurrent use: the guest's
// calls, State, SetState and Flush must not overlap.
type Host struct {
	args, env stringTable
	clock     *Clock
	output    func(stream int, line []byte)
	fds       [3]FD
	// lines holds the unfinished line of each output stream.
	lines [3][]byte
}

// New makes a Host. It starts nothing.
func New(cfg Config) (*Host, error) {
	h := &Host{clock: cfg.Clock, output: cfg.Output, fds: freshFDs()}
	var err error
	if h.args, err = newStringTable(cfg.Args); err != nil {
		return nil, fmt.Errorf("arguments: %w", err)
	}
	if h.env, err = newStringTable(cfg.Env); err != nil {
		return nil, fmt.Errorf("environment: %w", err)
	}
	if h.clock == nil {
		h.clock = NewClock(0)
	}
	if h.output == nil {
		h.output = func(int, []byte) {}
	}
	return h, nil
}

// A State is what a guest's WASI functions remember between two calls. The
// clock is not in it: the Clock's reading travels beside it.
type State struct {
	FDs [3]FD `cbor:"1,keyasint"`
}

// An FD is one descriptor.
type FD struct {
	// Stream is what it leads to: 0 standard input, 1 output, 2 error.
	Stream uint8 `cbor:"1,keyasint,omitempty"`
	Closed bool  `cbor:"2,keyasint,omitempty"`
	// Flags are fdflags as the guest set them.
	Flags uint16 `cbor:"3,keyasint,omitempty"`
	// Base and Inheriting are rights; a guest can only give them up.
	Base       uint64 `cbor:"4,keyasint,omitempty"`
	Inheriting uint64 `cbor:"5,keyasint,omitempty"`
}

// State returns the guest's state, between two of its calls. Output that is not
// a whole line yet is not in it: Flush first.
func (h *Host) State() State { return State{FDs: h.fds} }

// SetState makes the guest's state what another Host's was. The error says what
// in s no Host would have said.
func (h *Host) SetState(s State) error {
	for i, fd := range s.FDs {
		if fd.Stream > 2 || fd.Flags > maxFlags || fd.Base&^streamRights[fd.Stream] != 0 || fd.Inheriting != 0 {
			return fmt.Errorf("WASI state: descriptor %d is %+v", i, fd)
		}
	}
	h.fds = s.FDs
	return nil
}

// Flush hands on output that did not end in a line end yet, each stream's as a
// line of its own.
func (h *Host) Flush() {
	for stream := 1; stream <= 2; stream++ {
		if len(h.lines[stream]) > 0 {
			h.output(stream, h.lines[stream])
			h.lines[stream] = h.lines[stream][:0]
		}
	}
}

// Instantiate adds the functions to a runtime, as module wasi_snapshot_preview1.
func (h *Host) Instantiate(ctx context.Context, rt wazero.Runtime) error {
	b := rt.NewHostModuleBuilder(Module)
	for name, f := range functions {
		call := f.call
		results := []api.ValueType{i32}
		body := func(_ context.Context, mod api.Module, stack []uint64) {
			stack[0] = uint64(call(h, memory{mod.Memory()}, stack))
		}
		switch name {
		case "proc_exit":
			results = nil
			body = func(_ context.Context, _ api.Module, stack []uint64) {
				// The runtime unwinds the guest and returns this error to who
				// called it.
				panic(sys.NewExitError(uint32(stack[0])))
			}
		case "sched_yield":
			body = func(_ context.Context, _ api.Module, stack []uint64) { stack[0] = uint64(success) }
		}
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(body), f.params, results).Export(name)
	}
	if _, err := b.Instantiate(ctx); err != nil {
		return fmt.Errorf("instantiate %s: %w", Module, err)
	}
	return nil
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
	"fd_advise":               {types(i32, i64, i64, i32), onStream(errSpipe)},
	"fd_allocate":             {types(i32, i64, i64), onStream(errSpipe)},
	"fd_close":                {types(i32), (*Host).fdClose},
	"fd_datasync":             {types(i32), onStream(errInval)},
	"fd_fdstat_get":           {types(i32, i32), (*Host).fdFdstatGet},
	"fd_fdstat_set_flags":     {types(i32, i32), (*Host).fdFdstatSetFlags},
	"fd_fdstat_set_rights":    {types(i32, i64, i64), (*Host).fdFdstatSetRights},
	"fd_filestat_get":         {types(i32, i32), (*Host).fdFilestatGet},
	"fd_filestat_set_size":    {types(i32, i64), onStream(errInval)},
	"fd_filestat_set_times":   {types(i32, i64, i64, i32), onStream(errNotcapable)},
	"fd_pread":                {types(i32, i32, i32, i64, i32), onStream(errSpipe)},
	"fd_prestat_get":          {types(i32, i32), always(errBadf)},
	"fd_prestat_dir_name":     {types(i32, i32, i32), always(errBadf)},
	"fd_pwrite":               {types(i32, i32, i32, i64, i32), onStream(errSpipe)},
	"fd_read":                 {types(i32, i32, i32, i32), (*Host).fdRead},
	"fd_readdir":              {types(i32, i32, i32, i64, i32), onStream(errNotdir)},
	"fd_renumber":             {types(i32, i32), (*Host).fdRenumber},
	"fd_seek":                 {types(i32, i64, i32, i32), onStream(errSpipe)},
	"fd_sync":                 {types(i32), onStream(errInval)},
	"fd_tell":                 {types(i32, i32), onStream(errSpipe)},
	"fd_write":                {types(i32, i32, i32, i32), (*Host).fdWrite},
	"path_create_directory":   {types(i32, i32, i32), onStream(errNotdir)},
	"path_filestat_get":       {types(i32, i32, i32, i32, i32), onStream(errNotdir)},
	"path_filestat_set_times": {types(i32, i32, i32, i32, i64, i64, i32), onStream(errNotdir)},
	"path_link":               {types(i32, i32, i32, i32, i32, i32, i32), onStream(errNotdir)},
	"path_open":               {types(i32, i32, i32, i32, i32, i64, i64, i32, i32), onStream(errNotdir)},
	"path_readlink":           {types(i32, i32, i32, i32, i32, i32), onStream(errNotdir)},
	"path_remove_directory":   {types(i32, i32, i32), onStream(errNotdir)},
	"path_rename":             {types(i32, i32, i32, i32, i32, i32), onStream(errNotdir)},
	"path_symlink":            {types(i32, i32, i32, i32, i32), (*Host).pathSymlink},
	"path_unlink_file":        {types(i32, i32, i32), onStream(errNotdir)},
	"poll_oneoff":             {types(i32, i32, i32, i32), (*Host).pollOneoff},
	"proc_exit":               {types(i32), nil},
	"proc_raise":              {types(i32), always(errNosys)},
	"random_get":              {types(i32, i32), (*Host).randomGet},
	"sched_yield":             {nil, nil},
	"sock_accept":             {types(i32, i32, i32), onStream(errNotsock)},
	"sock_recv":               {types(i32, i32, i32, i32, i32, i32), onStream(errNotsock)},
	"sock_send":               {types(i32, i32, i32, i32, i32), onStream(errNotsock)},
	"sock_shutdown":           {types(i32, i32), onStream(errNotsock)},
}

func types(t ...api.ValueType) []api.ValueType { return t }

// always is a function that can only fail.
func always(e errno) func(*Host, memory, []uint64) errno {
	return func(*Host, memory, []uint64) errno { return e }
}

// onStream is a function that fails with e on a descriptor that is open, which
// can only be a stream, and with errBadf on any other.
func onStream(e errno) func(*Host, memory, []uint64) errno {
	return func(h *Host, _ memory, stack []uint64) errno {
		if h.fd(uint32(stack[0])) == nil {
			return errBadf
		}
		return e
	}
}

// A stringTable is a list of strings in the form guests read it.
type stringTable struct {
	count uint32
	// data holds the strings one after the other, each with a zero byte behind.
	data []byte
	// offsets are where each begins in data.
	offsets []uint32
}

func newStringTable(list []string) (stringTable, error) {
	var t stringTable
	for _, s := range list {
		if strings.IndexByte(s, 0) >= 0 {
			return t, errors.New("a string with a zero byte")
		}
		t.offsets = append(t.offsets, uint32(len(t.data)))
		t.data = append(append(t.data, s...), 0)
		if len(t.data) > MaxArgs {
			return t, fmt.Errorf("more than %d bytes", MaxArgs)
		}
	}
	t.count = uint32(len(list))
	return t, nil
}

func (t *stringTable) get(mem memory, stack []uint64) errno {
	pointers, data := uint32(stack[0]), uint32(stack[1])
	p, ok := mem.view(pointers, uint64(t.count)*4)
	if !ok {
		return errFault
	}
	d, ok := mem.view(data, uint64(len(t.data)))
	if !ok {
		return errFault
	}
	copy(d, t.data)
	for i, off := range t.offsets {
		le.PutUint32(p[4*i:], data+off)
	}
	return success
}

func (t *stringTable) sizes(mem memory, stack []uint64) errno {
	c, ok := mem.view(uint32(stack[0]), 4)
	if !ok {
		return errFault
	}
	n, ok := mem.view(uint32(stack[1]), 4)
	if !ok {
		return errFault
	}
	le.PutUint32(c, t.count)
	le.PutUint32(n, uint32(len(t.data)))
	return success
}

func (h *Host) argsGet(mem memory, stack []uint64) errno      { return h.args.get(mem, stack) }
func (h *Host) argsSizesGet(mem memory, stack []uint64) errno { return h.args.sizes(mem, stack) }
func (h *Host) environGet(mem memory, stack []uint64) errno   { return h.env.get(mem, stack) }
func (h *Host) environSizesGet(mem memory, stack []uint64) errno {
	return h.env.sizes(mem, stack)
}

func (h *Host) randomGet(mem memory, stack []uint64) errno {
	return Random(mem.Memory, uint32(stack[0]), uint32(stack[1]))
}

// Random fills n bytes of guest memory at p with random bytes from the
// operating system. The result is 0, or 21 (EFAULT) if they are not all in
// memory.
func Random(mem api.Memory, p, n uint32) uint32 {
	view, ok := mem.Read(p, n)
	if !ok {
		return errFault
	}
	var buf [256]byte
	for len(view) > 0 {
		chunk := buf[:min(len(view), len(buf))]
		_, _ = rand.Read(chunk) // never fails: crypto/rand ends the process first
		view = view[copy(view, chunk):]
	}
	return success
}
