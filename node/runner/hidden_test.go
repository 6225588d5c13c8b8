//go:build unix

package runner

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"meshnode/node/suspend"
	. "meshnode/node/suspend/wasmtest"
)

// Events of the guest that changes what the runtime hides.
const (
	hideSet  = 1 + iota // change the tables by every instruction there is
	hideGrow            // add an entry to the second table
	hideDrop            // drop both segments
	hideTell            // reply with all of it
	hideInit            // table.init of nothing, from a segment: traps beyond one that was dropped
	hideLoad            // memory.init of three bytes, likewise
)

// tellSize is what hideTell replies with, in bytes: the sizes of the tables, what
// each of eight entries returns when it is called (-1: null), whether the global
// is null, what it returns, and a vector.
const tellSize = 4 * (2 + 8 + 2 + 4)

// hider is an event worker with two tables that change, a passive element and a
// passive data segment that it drops, and a vector and a reference in globals.
func hider() []byte {
	m := new(Module)
	reply := m.Import("meshnode_v1", "reply", Types(I32, I32), Types(I32))
	number := m.Type(nil, Types(I32))
	m.Mem(1, 0)
	m.Tab(4)
	m.TabRaw(Funcref, 1, 2, 8)
	vector := m.Glob(V128, true, append([]byte{0xfd, 12}, make([]byte, 16)...))
	ref := m.Glob(Funcref, true, Op(0xd0, Funcref))
	count := m.Glob(I32, true, I32Const(0))
	var f [3]uint32
	for i := range f {
		f[i] = m.Func(nil, Types(I32), nil, I32Const(int32(10+i)))
	}
	m.Elem(1, f[0])                                      // table 0: -, f0, -, -
	m.ElemRaw(Cat(Op(1, 0, 2), U32(f[1]), U32(f[2]))...) // passive
	m.Passive("abc")

	refTo := func(i int) []byte { return Cat(Op(0xd2), U32(f[i])) }
	null := Op(0xd0, Funcref)
	set := func(t byte, at int32, r []byte) []byte { return Cat(I32Const(at), r, Op(0x26, t)) }
	store := func(at int32, v []byte) []byte { return Cat(I32Const(at), v, I32Store) }
	told := func(n int) int32 { return int32(1024 + 4*n) }
	// The number that an entry's function returns.
	entry := func(n int, t byte, at int32) []byte {
		isNull := Cat(I32Const(at), Op(0x25, t), Op(0xd1))
		return Cat(
			// Entries behind the end of the table are told as -2.
			I32Const(at), Op(0xfc, 16, t), Op(0x4f), If, store(told(n), I32Const(-2)), Op(0x05),
			isNull, If, store(told(n), I32Const(-1)), Op(0x05),
			store(told(n), Cat(I32Const(at), Op(0x11), U32(number), Op(t))), End, End)
	}
	tell := store(told(0), Op(0xfc, 16, 0))
	tell = Cat(tell, store(told(1), Op(0xfc, 16, 1)))
	for i := range 4 {
		tell = Cat(tell, entry(2+i, 0, int32(i)), entry(6+i, 1, int32(i)))
	}
	tell = Cat(tell,
		store(told(10), Cat(GlobalGet(ref), Op(0xd1))),
		store(told(11), GlobalGet(count)),
		I32Const(told(12)), GlobalGet(vector), Op(0xfd, 11, 0, 0), // v128.store
		I32Const(1024), I32Const(tellSize), Invoke(reply), Drop)

	on := func(id int64, code ...[]byte) []byte {
		return Cat(LocalGet(1), I64Const(id), Op(0x51), If, Cat(code...), End)
	}
	m.Export("meshnode_event", Function, m.Func(Types(I32, I64, I32), Types(I32), nil,
		on(hideSet,
			set(0, 0, refTo(2)),
			set(0, 1, null),
			I32Const(2), refTo(1), I32Const(2), Op(0xfc, 17, 0), // table.fill
			I32Const(0), I32Const(0), I32Const(2), Op(0xfc, 12, 1, 1), // table.init: f1, f2
			I32Const(3), I32Const(0), I32Const(1), Op(0xfc, 14, 0, 1), // table.copy 1[0] to 0[3]
			I32Const(0), Op(0x25, 0), GlobalSet(ref),
			GlobalGet(vector), I64Const(7), Op(0xfd, 0x1e, 1), GlobalSet(vector), // i64x2.replace_lane
			GlobalGet(count), I32Const(1), I32Add, GlobalSet(count)),
		on(hideGrow, refTo(0), I32Const(1), Op(0xfc, 15, 1), Return),
		on(hideDrop, Op(0xfc, 13, 1), Op(0xfc, 9, 0)), // segment 0 is active
		on(hideTell, tell),
		on(hideInit, I32Const(0), I32Const(0), I32Const(1), Op(0xfc, 12, 1, 1)),
		on(hideLoad, I32Const(0), I32Const(0), I32Const(3), Op(0xfc, 8, 0, 0)),
		I32Const(0)))
	return m.Bytes()
}

// What only the runtime knows of an event worker's state travels.
func TestHiddenStateMoves(t *testing.T) {
	engines(t, func(t *testing.T, cfg Config) {
		cfg.ModulePath = moduleFile(t, hider())
		tell := func(r *Runner) []int32 {
			t.Helper()
			e := call(t, r, hideTell, "")
			if len(e.Reply) != tellSize {
				t.Fatalf("told %d bytes", len(e.Reply))
			}
			got := make([]int32, tellSize/4)
			for i := range got {
				got[i] = int32(binary.LittleEndian.Uint32(e.Reply[4*i:]))
			}
			return got
		}
		a := live(t, cfg)
		fresh := []int32{4, 2, -1, 10, -1, -1, -1, -1, -2, -2, 1, 0, 0, 0, 0, 0}
		if got := tell(a); !slices.Equal(got, fresh) {
			t.Fatalf("at first %v, want %v", got, fresh)
		}
		call(t, a, hideSet, "")
		if got := call(t, a, hideGrow, "").Status; got != 2 {
			t.Fatalf("table.grow returned %d, want 2", got)
		}
		want := []int32{4, 3, 12, -1, 11, 11, 11, 12, 10, -2, 0, 1, 0, 0, 7, 0}
		if got := tell(a); !slices.Equal(got, want) {
			t.Fatalf("told %v, want %v", got, want)
		}
		for hop := range 2 {
			cfg.Interpreter = !cfg.Interpreter
			b, s := move(t, a, cfg)
			if got := tell(b); !slices.Equal(got, want) {
				t.Fatalf("hop %d: told %v, want %v", hop, got, want)
			}
			again, err := b.State(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(again.Program, s.Program) {
				t.Errorf("hop %d: the state has changed", hop)
			}
			// It changes on from there.
			if got := call(t, b, hideGrow, "").Status; int(got) != 3+hop {
				t.Errorf("hop %d: table.grow returned %d, want %d", hop, got, 3+hop)
			}
			want[1]++
			if hop == 0 {
				want[9] = 10
			}
			a = b
		}
		if got := tell(a); !slices.Equal(got, want) {
			t.Errorf("told %v, want %v", got, want)
		}

		// Segments are there until they are dropped, and never come back.
		call(t, a, hideInit, "")
		call(t, a, hideLoad, "")
		if got := string(a.Region().Data[:3]); got != "abc" {
			t.Errorf("memory.init brought %q", got)
		}
		call(t, a, hideDrop, "")
		for id, name := range map[uint64]string{hideInit: "table.init", hideLoad: "memory.init"} {
			b, _ := move(t, a, cfg)
			_, err := b.Call(context.Background(), Event{Kind: Call, ID: id})
			var e *ExitError
			if !errors.As(err, &e) || e.Kind != Trapped {
				t.Errorf("%s from a dropped segment after a move: %v", name, err)
			}
		}
	})
}

func TestHiddenStateRestoresHostile(t *testing.T) {
	ctx := context.Background()
	cfg := Config{ModulePath: moduleFile(t, hider())}
	a := live(t, cfg)
	call(t, a, hideSet, "")
	good, err := a.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	command := begin(t, Config{ModulePath: moduleFile(t, counter())})
	if err := command.Clear(ctx); err != nil {
		t.Fatal(err)
	}
	if err := command.Restore(ctx, good); err == nil {
		t.Error("a worker without such state took it")
	}
	b := begin(t, cfg)
	if err := b.Clear(ctx); err != nil {
		t.Fatal(err)
	}
	program := func(f func(*suspend.State)) func(*State) {
		return func(s *State) { s.Program = mutate(t, s.Program, f) }
	}
	for name, spoil := range map[string]func(*State){
		"nothing":   func(s *State) { s.Program = nil },
		"a cut":     func(s *State) { s.Program = s.Program[:len(s.Program)/2] },
		"globals":   func(s *State) { s.Globals = []Global{{Type: I32}} },
		"a frame":   program(func(s *suspend.State) { s.Entry, s.Frames = "meshnode_event", []suspend.Frame{{}} }),
		"an entry":  program(func(s *suspend.State) { s.Entry = "meshnode_event" }),
		"function":  program(func(s *suspend.State) { s.Tables[0][0] = 1 << 20 }),
		"too small": program(func(s *suspend.State) { s.Tables[0] = s.Tables[0][1:] }),
		"too large": program(func(s *suspend.State) { s.Tables[1] = make([]uint32, 9) }),
	} {
		bad := good
		spoil(&bad)
		if err := b.Restore(ctx, bad); err == nil {
			t.Errorf("%s: restored", name)
		}
	}
	if err := b.Restore(ctx, good); err != nil {
		t.Errorf("good state after bad ones: %v", err)
	}
	if got, want := fmt.Sprintf("%x", call(t, b, hideTell, "").Reply), fmt.Sprintf("%x", call(t, a, hideTell, "").Reply); got != want {
		t.Errorf("told %s, want %s", got, want)
	}
}
