package wasi

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"

	"meshnode/node/suspend"
	"meshnode/node/suspend/wasmtest"
)

// A guest has every function of preview1 and calls the one it is told to.
type guest struct {
	t   testing.TB
	h   *Host
	mod api.Module
	out []string // lines, each behind the number of its stream
}

// pages is the guest's memory in 64 KiB.
const pages = 2

func newGuest(t testing.TB, cfg Config) *guest {
	t.Helper()
	g := &guest{t: t}
	cfg.Output = func(stream int, line []byte) { g.out = append(g.out, fmt.Sprint(stream, " ", string(line))) }
	var err error
	if g.h, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	t.Cleanup(func() { rt.Close(ctx) })
	if err := g.h.Instantiate(ctx, rt); err != nil {
		t.Fatal(err)
	}
	m := new(wasmtest.Module)
	type wrapper struct {
		name            string
		index           uint32
		params, results []byte
	}
	var all []wrapper
	for _, f := range suspend.HostFunctions() {
		if f.Module != Module {
			continue
		}
		params, results := signature(f.Type)
		all = append(all, wrapper{f.Name, m.Import(f.Module, f.Name, params, results), params, results})
	}
	m.Mem(pages, pages)
	for _, w := range all {
		var code []byte
		for i := range w.params {
			code = append(code, wasmtest.LocalGet(uint32(i))...)
		}
		m.Export(w.name, wasmtest.Function, m.Func(w.params, w.results, nil, code, wasmtest.Invoke(w.index)))
	}
	if g.mod, err = rt.Instantiate(ctx, m.Bytes()); err != nil {
		t.Fatal(err)
	}
	return g
}

// signature takes a type such as "(i32, i64) -> (i32)" apart.
func signature(s string) (params, results []byte) {
	p, r, _ := strings.Cut(s, " -> ")
	list := func(s string) []byte {
		var out []byte
		for _, t := range strings.FieldsFunc(s, func(r rune) bool { return strings.ContainsRune("(), ", r) }) {
			out = append(out, map[string]byte{"i32": wasmtest.I32, "i64": wasmtest.I64}[t])
		}
		return out
	}
	return list(p), list(r)
}

// call returns the error number.
func (g *guest) call(name string, args ...uint64) errno {
	g.t.Helper()
	r, err := g.mod.ExportedFunction(name).Call(context.Background(), args...)
	if err != nil {
		g.t.Fatalf("%s%v: %v", name, args, err)
	}
	return errno(r[0])
}

// want calls and compares the error number.
func (g *guest) want(e errno, name string, args ...uint64) {
	g.t.Helper()
	if got := g.call(name, args...); got != e {
		g.t.Errorf("%s%v: %d, want %d", name, args, got, e)
	}
}

func (g *guest) put(at uint32, b ...byte) { g.mod.Memory().Write(at, b) }

func (g *guest) put32(at uint32, vs ...uint32) {
	for i, v := range vs {
		g.mod.Memory().WriteUint32Le(at+4*uint32(i), v)
	}
}

func (g *guest) get(at, n uint32) []byte {
	b, _ := g.mod.Memory().Read(at, n)
	return append([]byte(nil), b...)
}

func (g *guest) get32(at uint32) uint32 { v, _ := g.mod.Memory().ReadUint32Le(at); return v }
func (g *guest) get64(at uint32) uint64 { v, _ := g.mod.Memory().ReadUint64Le(at); return v }

// say writes to a descriptor.
func (g *guest) say(fd uint64, s string) errno {
	g.put(4096, []byte(s)...)
	g.put32(1024, 4096, uint32(len(s)))
	return g.call("fd_write", fd, 1024, 1, 1032)
}

const end = pages * 65536

func TestStrings(t *testing.T) {
	g := newGuest(t, Config{Args: []string{"app", "", "-v"}, Env: []string{"A=1", "B=x y"}})
	g.want(success, "args_sizes_get", 0, 4)
	if g.get32(0) != 3 || g.get32(4) != 8 {
		t.Errorf("%d arguments in %d bytes", g.get32(0), g.get32(4))
	}
	g.want(success, "args_get", 16, 64)
	if got := string(g.get(64, 8)); got != "app\x00\x00-v\x00" {
		t.Errorf("got %q", got)
	}
	if got := []uint32{g.get32(16), g.get32(20), g.get32(24)}; !reflect.DeepEqual(got, []uint32{64, 68, 69}) {
		t.Errorf("pointers %v", got)
	}
	g.want(success, "environ_sizes_get", 0, 4)
	g.want(success, "environ_get", 16, 64)
	if got := string(g.get(64, g.get32(4))); g.get32(0) != 2 || got != "A=1\x00B=x y\x00" {
		t.Errorf("got %q", got)
	}
	for _, name := range []string{"args", "environ"} {
		g.want(errFault, name+"_get", end-4, 64)
		g.want(errFault, name+"_get", 16, end-4)
		g.want(errFault, name+"_sizes_get", end-3, 0)
		g.want(errFault, name+"_sizes_get", 0, math.MaxUint32)
	}
	for _, cfg := range []Config{
		{Args: []string{"a\x00b"}}, {Env: []string{"\x00"}}, {Args: []string{strings.Repeat("x", MaxArgs)}},
	} {
		if _, err := New(cfg); err == nil {
			t.Error("accepted")
		}
	}
	none := newGuest(t, Config{})
	none.want(success, "args_get", end, end)
	none.want(success, "environ_get", 0, 0)
}

func TestClocks(t *testing.T) {
	clock := NewClock(1_000_000)
	g := newGuest(t, Config{Clock: clock})
	before := time.Now().UnixNano()
	g.want(success, "clock_time_get", clockRealtime, 0, 8)
	if got := int64(g.get64(8)); got < before || got > time.Now().UnixNano() {
		t.Errorf("realtime %d", got)
	}
	last := int64(1_000_000)
	for range 100 {
		g.want(success, "clock_time_get", clockMonotonic, 0, 8)
		if got := int64(g.get64(8)); got < last {
			t.Fatalf("monotonic clock ran from %d to %d", last, got)
		} else {
			last = got
		}
	}
	clock.Set(math.MaxInt64 - 1)
	g.want(success, "clock_time_get", clockMonotonic, 0, 8)
	if got := g.get64(8); got != math.MaxInt64 {
		t.Errorf("at the end of time: %d", got)
	}
	for id := range uint64(2) {
		g.want(success, "clock_res_get", id, 8)
		if got := g.get64(8); got == 0 || got > 1_000_000 {
			t.Errorf("resolution %d", got)
		}
	}
	g.want(errNotsup, "clock_time_get", clockProcess, 0, 8)
	g.want(errNotsup, "clock_res_get", clockThread, 8)
	g.want(errInval, "clock_time_get", 9, 0, 8)
	g.want(errInval, "clock_res_get", 9, 8)
	g.want(errFault, "clock_time_get", clockMonotonic, 0, end-7)
	g.want(errFault, "clock_res_get", clockMonotonic, end)
}

func TestRandom(t *testing.T) {
	g := newGuest(t, Config{})
	g.want(success, "random_get", 100, 1000)
	b := g.get(100, 1000)
	seen := map[byte]bool{}
	for _, c := range b {
		seen[c] = true
	}
	if len(seen) < 200 {
		t.Errorf("%d different bytes of 1000", len(seen))
	}
	if g.get32(96) != 0 || g.get32(1100) != 0 {
		t.Error("wrote beside the buffer")
	}
	g.want(success, "random_get", end, 0)
	g.want(errFault, "random_get", end-10, 11)
	g.want(errFault, "random_get", 5, math.MaxUint32)
}

func TestWrite(t *testing.T) {
	g := newGuest(t, Config{})
	check := func(want ...string) {
		t.Helper()
		if !reflect.DeepEqual(g.out, want) {
			t.Errorf("got %q, want %q", g.out, want)
		}
		g.out = nil
	}
	g.put(4096, []byte("one\ntwo\nth")...)
	g.put32(1024, 4096, 5, 4101, 5, 0, 0)
	g.want(success, "fd_write", 1, 1024, 3, 1100)
	if got := g.get32(1100); got != 10 {
		t.Errorf("wrote %d", got)
	}
	check("1 one", "1 two")
	g.say(2, "other\n")
	check("2 other")
	g.say(1, "ree\n\n")
	check("1 three", "1 ")
	g.say(1, "left")
	g.say(2, "over")
	check()
	g.h.Flush()
	check("1 left", "2 over")
	g.h.Flush()
	check()

	long := strings.Repeat("x", MaxLine)
	g.say(1, long+"\n")
	check("1 " + long)
	g.say(1, long+"y\n")
	check("1 "+long, "1 y")
	g.say(1, long[:MaxLine-1])
	g.say(1, "ab\n")
	check("1 "+long[:MaxLine-1]+"a", "1 b")
	g.say(1, long+long+"z")
	g.h.Flush()
	check("1 "+long, "1 "+long, "1 z")

	g.want(errBadf, "fd_write", 0, 1024, 1, 1100)
	g.want(errBadf, "fd_write", 3, 1024, 1, 1100)
	g.want(errFault, "fd_write", 1, end-4, 1, 1100)
	g.want(errInval, "fd_write", 1, 0, maxVectors+1, 1100)
	g.put32(1024, 4096, 4, end-1, 2)
	g.want(errFault, "fd_write", 1, 1024, 2, 1100)
	g.put32(1024, 4096, 4)
	g.want(errFault, "fd_write", 1, 1024, 1, end-3)
	g.h.Flush()
	check() // a write that fails writes nothing
	g.want(success, "fd_write", 1, 1024, 0, 1100)
}

func TestRead(t *testing.T) {
	g := newGuest(t, Config{})
	g.put32(1024, 4096, 16)
	g.put32(1100, 77)
	g.want(success, "fd_read", 0, 1024, 1, 1100)
	if got := g.get32(1100); got != 0 {
		t.Errorf("read %d", got)
	}
	g.want(errBadf, "fd_read", 1, 1024, 1, 1100)
	g.want(errBadf, "fd_read", 7, 1024, 1, 1100)
	g.want(errFault, "fd_read", 0, 1024, 1, end)
	g.put32(1024, end, 1)
	g.want(errFault, "fd_read", 0, 1024, 1, 1100)
}

func TestDescriptors(t *testing.T) {
	g := newGuest(t, Config{})
	for fd := range uint64(3) {
		g.want(success, "fd_fdstat_get", fd, 200)
		b := g.get(200, 24)
		if b[0] != filetypeCharacter || le.Uint16(b[2:]) != 0 || le.Uint64(b[8:]) != streamRights[fd] {
			t.Errorf("descriptor %d: %x", fd, b)
		}
		g.want(success, "fd_filestat_get", fd, 200)
		if b := g.get(200, 64); b[16] != filetypeCharacter || le.Uint64(b[32:]) != 0 {
			t.Errorf("descriptor %d: %x", fd, b)
		}
	}
	g.want(errFault, "fd_fdstat_get", 0, end-23)
	g.want(errFault, "fd_filestat_get", 0, end-63)
	g.want(success, "fd_fdstat_set_flags", 1, 5)
	g.want(errInval, "fd_fdstat_set_flags", 1, 32)
	// Rights only shrink.
	g.want(errNotcapable, "fd_fdstat_set_rights", 1, rightRead, 0)
	g.want(errNotcapable, "fd_fdstat_set_rights", 1, rightWrite, 1)
	g.want(success, "fd_fdstat_set_rights", 1, rightPoll, 0)
	g.want(errNotcapable, "fd_fdstat_set_rights", 1, rightPoll|rightWrite, 0)
	g.want(errNotcapable, "fd_fdstat_set_flags", 1, 0)
	g.want(errNotcapable, "fd_filestat_get", 1, 200)
	if got := g.say(1, "x"); got != errNotcapable {
		t.Errorf("write without the right: %d", got)
	}
	g.want(success, "fd_close", 0)
	g.want(errBadf, "fd_close", 0)
	g.want(errBadf, "fd_fdstat_get", 0, 200)
	// Standard error becomes descriptor 1.
	g.want(errBadf, "fd_renumber", 2, 0)
	g.want(success, "fd_renumber", 1, 1)
	g.want(success, "fd_renumber", 2, 1)
	g.want(errBadf, "fd_close", 2)
	if e := g.say(1, "err\n"); e != success || !reflect.DeepEqual(g.out, []string{"2 err"}) {
		t.Errorf("%d, %q", e, g.out)
	}

	s := g.h.State()
	want := State{FDs: []FD{{Closed: true}, {Stream: 2, Base: streamRights[2]}, {Closed: true}}}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("state %+v, want %+v", s, want)
	}
	other := newGuest(t, Config{})
	if err := other.h.SetState(s); err != nil {
		t.Fatal(err)
	}
	if got := other.h.State(); !reflect.DeepEqual(got, want) {
		t.Errorf("state %+v after it was set to %+v", got, want)
	}
	other.want(errBadf, "fd_close", 0)
	for _, bad := range []FD{{Stream: 3}, {Flags: 32}, {Base: 1 << 63}, {Stream: 0, Base: rightWrite}, {Inheriting: 1}} {
		if err := other.h.SetState(State{FDs: []FD{1: bad}}); err == nil {
			t.Errorf("accepted %+v", bad)
		}
	}
	if got := other.h.State(); !reflect.DeepEqual(got, want) {
		t.Errorf("state %+v after it was refused", got)
	}
}

// Functions for files and sockets say so.
func TestUnsupported(t *testing.T) {
	g := newGuest(t, Config{})
	want := map[string]errno{
		"fd_advise": errSpipe, "fd_allocate": errSpipe, "fd_datasync": errInval, "fd_filestat_set_size": errInval,
		"fd_filestat_set_times": errNotcapable, "fd_pread": errSpipe, "fd_pwrite": errSpipe, "fd_readdir": errNotdir,
		"fd_seek": errSpipe, "fd_sync": errInval, "fd_tell": errSpipe,
		"path_create_directory": errNotdir, "path_filestat_get": errNotdir, "path_filestat_set_times": errNotdir,
		"path_link": errNotdir, "path_open": errNotdir, "path_readlink": errNotdir, "path_remove_directory": errNotdir,
		"path_rename": errNotdir, "path_unlink_file": errNotdir,
		"sock_accept": errNotsock, "sock_recv": errNotsock, "sock_send": errNotsock, "sock_shutdown": errNotsock,
	}
	for name, e := range want {
		args := make([]uint64, len(functions[name].params))
		g.want(e, name, args...)
		args[0] = 3
		g.want(errBadf, name, args...)
		args[0] = math.MaxUint32
		g.want(errBadf, name, args...)
	}
	g.want(errBadf, "fd_prestat_get", 3, 0)
	g.want(errBadf, "fd_prestat_dir_name", 3, 0, 0)
	g.want(errNotdir, "path_symlink", 0, 0, 0, 0, 0)
	g.want(errBadf, "path_symlink", 0, 0, 3, 0, 0)
	g.want(errNosys, "proc_raise", 9)
	g.want(success, "sched_yield")
}

func TestExit(t *testing.T) {
	g := newGuest(t, Config{})
	_, err := g.mod.ExportedFunction("proc_exit").Call(context.Background(), 42)
	var exit *sys.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 42 {
		t.Errorf("got %v", err)
	}
}

// subscribe writes subscription i at 8192.
func (g *guest) subscribe(i uint32, user uint64, tag byte, fields ...uint64) {
	at := 8192 + i*subscriptionSize
	g.put(at, make([]byte, subscriptionSize)...)
	g.mod.Memory().WriteUint64Le(at, user)
	g.put(at+8, tag)
	g.put32(at+16, uint32(fields[0]))
	if len(fields) > 1 {
		g.mod.Memory().WriteUint64Le(at+24, fields[1])
	}
	if len(fields) > 2 {
		g.put(at+40, byte(fields[2]))
	}
}

type event struct {
	User  uint64
	Error uint16
	Type  byte
	Flags uint16
}

// poll returns what happened.
func (g *guest) poll(n uint64) []event {
	g.t.Helper()
	g.want(success, "poll_oneoff", 8192, 16384, n, 100)
	var got []event
	for i := range g.get32(100) {
		b := g.get(16384+i*eventSize, eventSize)
		got = append(got, event{le.Uint64(b), le.Uint16(b[8:]), b[10], le.Uint16(b[24:])})
	}
	return got
}

func TestPoll(t *testing.T) {
	clock := NewClock(1_000_000_000)
	g := newGuest(t, Config{Clock: clock})
	check := func(n uint64, want ...event) {
		t.Helper()
		if got := g.poll(n); !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	const ms = uint64(time.Millisecond)

	// A timeout is waited for, on the clock it is on.
	for _, id := range []uint64{clockRealtime, clockMonotonic} {
		g.subscribe(0, 7, eventClock, id, 2*ms)
		start := clock.Now()
		check(1, event{User: 7})
		if took := clock.Now() - start; took < int64(2*ms) {
			t.Errorf("waited %d ns", took)
		}
	}
	// The first of two; an absolute one that is over already.
	g.subscribe(0, 1, eventClock, clockMonotonic, 3600_000*ms)
	g.subscribe(1, 2, eventClock, clockMonotonic, ms)
	check(2, event{User: 2})
	g.subscribe(1, 3, eventClock, clockMonotonic, 5, clockAbsolute)
	check(2, event{User: 3})
	deadline := uint64(clock.Now()) + ms
	g.subscribe(1, 4, eventClock, clockMonotonic, deadline, clockAbsolute)
	check(2, event{User: 4})
	if now := uint64(clock.Now()); now < deadline {
		t.Errorf("woke at %d, before %d", now, deadline)
	}
	g.subscribe(1, 5, eventClock, clockRealtime, uint64(time.Now().Add(-time.Hour).UnixNano()), clockAbsolute)
	check(2, event{User: 5})
	// Streams are ready, or wrong, at once.
	g.subscribe(0, 1, eventClock, clockMonotonic, 3600_000*ms)
	g.subscribe(1, 2, eventFDRead, 0)
	g.subscribe(2, 3, eventFDWrite, 1)
	g.subscribe(3, 4, eventFDWrite, 0)
	g.subscribe(4, 5, eventFDRead, 9)
	check(5, event{2, 0, eventFDRead, hangup}, event{3, 0, eventFDWrite, 0},
		event{4, uint16(errBadf), eventFDWrite, 0}, event{5, uint16(errBadf), eventFDRead, 0})
	// Clocks there are none of.
	g.subscribe(0, 1, eventClock, 77, ms)
	g.subscribe(1, 2, eventClock, clockProcess, ms)
	check(2, event{User: 1, Error: uint16(errInval)}, event{User: 2, Error: uint16(errNotsup)})
	// A timeout that would never come does not overflow.
	g.subscribe(0, 1, eventClock, clockMonotonic, math.MaxUint64)
	g.subscribe(1, 2, eventClock, clockMonotonic, 0)
	check(2, event{User: 2})
	g.want(success, "fd_close", 1)
	g.subscribe(0, 1, eventFDWrite, 1)
	check(1, event{1, uint16(errBadf), eventFDWrite, 0})

	g.want(errInval, "poll_oneoff", 8192, 16384, 0, 100)
	g.want(errInval, "poll_oneoff", 0, 0, maxSubscriptions+1, 100)
	g.want(errFault, "poll_oneoff", end-47, 16384, 1, 100)
	g.want(errFault, "poll_oneoff", 8192, end-31, 1, 100)
	g.want(errFault, "poll_oneoff", 8192, 16384, 1, end-3)
	g.subscribe(0, 1, 3, 0)
	g.want(errInval, "poll_oneoff", 8192, 16384, 1, 100)
}

// The guest sees exactly what preview1 has.
func TestComplete(t *testing.T) {
	listed := map[string]string{}
	for _, f := range suspend.HostFunctions() {
		if f.Module == Module {
			listed[f.Name] = f.Type
		}
	}
	if len(listed) != len(functions) || len(functions) != 46 {
		t.Errorf("%d functions here, %d in suspend, want 46", len(functions), len(listed))
	}
	for name := range functions {
		if listed[name] == "" {
			t.Errorf("%s is missing in suspend", name)
		}
	}
}

// FuzzCalls: no arguments make a function trap or write beside its memory, and
// the state stays one that can be restored.
func FuzzCalls(f *testing.F) {
	f.Add([]byte{26, 1, 0, 0, 0, 0, 0, 4, 0, 0, 1, 0, 0, 0, 8, 4, 0, 0})
	f.Add([]byte{37, 0, 32, 0, 0, 0, 64, 0, 0, 1, 0, 0, 0, 100, 0, 0, 0})
	var names []string
	for _, fn := range suspend.HostFunctions() {
		if fn.Module == Module && fn.Name != "proc_exit" {
			names = append(names, fn.Name)
		}
	}
	g := newGuest(f, Config{Args: []string{"a"}, Env: []string{"B=c"}})
	g.h.output = func(int, []byte) {} // one call may write gigabytes
	fresh := g.h.State()
	f.Fuzz(func(t *testing.T, data []byte) {
		g.t = t
		if err := g.h.SetState(fresh); err != nil {
			t.Fatal(err)
		}
		// Few calls: one may copy all of memory a thousand times.
		for n := 0; n < 4 && len(data) > 0; n++ {
			name := names[int(data[0])%len(names)]
			data = data[1:]
			var args []uint64
			for range functions[name].params {
				var b [8]byte
				n := copy(b[:4], data)
				data = data[n:]
				args = append(args, uint64(binary.LittleEndian.Uint32(b[:])))
			}
			if name == "poll_oneoff" && args[2] > 0 {
				// No waiting: a subscription that is over.
				args[0], args[2] = 8192, 1
				g.subscribe(0, 1, eventClock, clockMonotonic, 0)
			}
			g.call(name, args...)
		}
		other, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		if err := other.SetState(g.h.State()); err != nil {
			t.Fatal(err)
		}
	})
}
