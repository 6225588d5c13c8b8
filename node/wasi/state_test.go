package wasi

import (
	"bytes"
	"flag"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the sample in testdata anew")

// sample is a host in which there is some of everything.
func sample(t testing.TB) *Host {
	t.Helper()
	cfg := worker("sample")
	cfg.Clock = NewClock(5)
	cfg.Wait = func(int64, <-chan struct{}) bool { return true }
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.tree.now = func() uint64 { return 1_700_000_000_000_000_000 }
	for _, n := range h.tree.inodes {
		n.atim, n.mtim, n.ctim = 1, 2, 3
	}
	mem := newMemory(t)
	call := func(want errno, name string, args ...uint64) {
		t.Helper()
		if e := h.call(name, functions[name], mem, append(make([]uint64, 0, 16), args...)); e != want {
			t.Fatalf("%s%v: %d", name, args, e)
		}
	}
	path := func(s string) (uint64, uint64) { copy(mem.all(), s); return 0, uint64(len(s)) }
	p, n := path("new")
	call(success, "path_open", 3, 0, p, n, openCreate, fileRights, 0, flagAppend, 900)
	copy(mem.all()[2000:], strings.Repeat("sixteen bytes.\r\n", 1000))
	le.PutUint32(mem.all()[1000:], 2000)
	le.PutUint32(mem.all()[1004:], 16000)
	call(success, "fd_write", 5, 1000, 1, 900)
	call(success, "fd_filestat_set_size", 5, chunkBytes+100)
	p, n = path("gone")
	call(success, "path_open", 3, 0, p, n, openCreate, fileRights, 0, 0, 900)
	call(success, "path_unlink_file", 3, p, n)
	call(success, "fd_close", 4)
	for _, s := range []string{"a message", "another"} {
		if err := h.streams.Push([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	le.PutUint32(mem.all()[1004:], 2)
	call(success, "fd_read", 0, 1000, 1, 900)
	le.PutUint32(mem.all()[1004:], 14)
	call(success, "fd_write", 1, 1000, 1, 900)
	call(success, "fd_write", 2, 1000, 1, 900)
	if err := h.streams.Ack(3); err != nil {
		t.Fatal(err)
	}
	clear(mem.all()[:100])
	mem.all()[16], mem.all()[24] = clockMonotonic, 100
	mem.all()[30] = 1
	call(errIntr, "poll_oneoff", 0, 200, 1, 900)
	h.poll.Began, h.waited = 5, 6
	return h
}

const samplePath = "testdata/state.v1"

// A state that a node of version 1 saved can be restored, and is the same again.
func TestSample(t *testing.T) {
	if *update {
		if err := os.WriteFile(samplePath, sample(t).State().Encode(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(samplePath)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseState(want)
	if err != nil {
		t.Fatal(err)
	}
	h, err := New(Config{Streams: NewStreams()})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.SetState(s); err != nil {
		t.Fatal(err)
	}
	if got := h.State().Encode(); !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
	if got := sample(t).State().Encode(); !bytes.Equal(got, want) {
		t.Errorf("this version saves\n%x, want\n%x", got, want)
	}
}

// A state that no host would have saved is refused, and changes nothing.
func TestBadStates(t *testing.T) {
	good := sample(t).State()
	tree := func(edit func(*treeState)) func(*State) {
		return func(s *State) {
			var ts treeState
			if err := stateDec.Unmarshal(s.Tree[1:], &ts); err != nil {
				t.Fatal(err)
			}
			edit(&ts)
			s.Tree = append([]byte{treeVersion}, must(stateEnc.Marshal(ts))...)
		}
	}
	// The sample's inodes: 1 is /, 2 given, 7 a file, 8 the other root, now
	// gone; 11 and 12 are new and gone.
	node := func(ts *treeState, ino uint64) *inodeState {
		for i := range ts.Nodes {
			if ts.Nodes[i].Ino == ino {
				return &ts.Nodes[i]
			}
		}
		t.Fatalf("no inode %d", ino)
		return nil
	}
	onNode := func(ino uint64, edit func(*inodeState)) func(*State) {
		return tree(func(ts *treeState) { edit(node(ts, ino)) })
	}
	const file, dir, link = 11, 2, 3
	bad := map[string]func(*State){
		"no streams":            func(s *State) { s.Streams = nil },
		"too many descriptors":  func(s *State) { s.FDs = make([]FD, MaxFDs+1) },
		"stream 3":              func(s *State) { s.FDs[0].Stream = 3 },
		"rights of a stream":    func(s *State) { s.FDs[0].Base |= rightWrite },
		"rights of a file":      func(s *State) { s.FDs[5].Base |= rightPathOpen },
		"inherited by a file":   func(s *State) { s.FDs[5].Inheriting = 1 },
		"rights of a dir":       func(s *State) { s.FDs[3].Base |= rightWrite },
		"closed, yet something": func(s *State) { s.FDs[4] = FD{Closed: true, Flags: 1} },
		"flags":                 func(s *State) { s.FDs[0].Flags = 32 },
		"offset before 0":       func(s *State) { s.FDs[5].Offset = -1 },
		"offset of a dir":       func(s *State) { s.FDs[3].Offset = 1 },
		"offset of a stream":    func(s *State) { s.FDs[0].Offset = 1 },
		"inode and stream":      func(s *State) { s.FDs[5].Stream = 1 },
		"no such inode":         func(s *State) { s.FDs[5].Inode = 99 },
		"open link":             func(s *State) { s.FDs[5].Inode = link },
		"preopened file":        func(s *State) { s.FDs[5].Preopen = "/x" },
		"preopened name":        func(s *State) { s.FDs[3].Preopen = "\x00" },
		"unreachable inode":     func(s *State) { s.FDs[6] = FD{Closed: true} },
		"waited":                func(s *State) { s.Waited = -1 },
		"poll began":            func(s *State) { s.Poll.Began = -1 },
		"poll size":             func(s *State) { s.Poll.N = maxSubscriptions + 1 },
		"lines":                 func(s *State) { s.Lines = [][]byte{nil, nil} },
		"empty message":         func(s *State) { s.Streams.In[0] = nil },
		"pushed":                func(s *State) { s.Streams.Pushed = 0 },
		"much input":            func(s *State) { s.Streams.In[0] = make([]byte, MaxInput) },
		"output stream":         func(s *State) { s.Streams.Out[0].Stream = 0 },
		"empty output":          func(s *State) { s.Streams.Out[0].Data = nil },
		"much output":           func(s *State) { s.Streams.Out[0].Data = make([]byte, MaxOutput) },
		"acknowledged":          func(s *State) { s.Streams.Acked = math.MaxUint64 },
		"no tree":               func(s *State) { s.Tree = nil },
		"tree version":          func(s *State) { s.Tree = append([]byte{2}, s.Tree[1:]...) },
		"tree end":              func(s *State) { s.Tree = s.Tree[:len(s.Tree)-1] },
		"tree rest":             func(s *State) { s.Tree = append(s.Tree[:len(s.Tree):len(s.Tree)], 0) },
		"next inode":            tree(func(ts *treeState) { ts.Next = file }),
		"no next inode":         tree(func(ts *treeState) { ts.Next = math.MaxUint64 }),
		"inodes out of order":   tree(func(ts *treeState) { ts.Nodes[0], ts.Nodes[1] = ts.Nodes[1], ts.Nodes[0] }),
		"inode twice":           tree(func(ts *treeState) { ts.Nodes = append(ts.Nodes[:1:1], ts.Nodes...) }),
		"kind":                  onNode(file, func(n *inodeState) { n.Kind = 1 }),
		"file with target":      onNode(file, func(n *inodeState) { n.Target = "x" }),
		"size before 0":         onNode(file, func(n *inodeState) { n.Size = -1 }),
		"size over limit":       onNode(file, func(n *inodeState) { n.Size = 1 << 50 }),
		"size without indexes":  onNode(file, func(n *inodeState) { n.Size += chunkBytes }),
		"indexes":               onNode(file, func(n *inodeState) { n.Indexes = n.Indexes[1:] }),
		"link to nothing":       onNode(link, func(n *inodeState) { n.Target = "" }),
		"link to a zero":        onNode(link, func(n *inodeState) { n.Target = "\x00" }),
		"long link":             onNode(link, func(n *inodeState) { n.Target = strings.Repeat("x", maxPath+1) }),
		"next entry":            onNode(dir, func(n *inodeState) { n.Next = n.Entries[1].Number }),
		"next entry too small":  onNode(dir, func(n *inodeState) { n.Next, n.Entries = 1, nil }),
		"entries out of order":  onNode(dir, func(n *inodeState) { n.Entries[0], n.Entries[1] = n.Entries[1], n.Entries[0] }),
		"entry is .":            onNode(dir, func(n *inodeState) { n.Entries[0].Name = "." }),
		"entry is ..":           onNode(dir, func(n *inodeState) { n.Entries[0].Name = ".." }),
		"entry is nothing":      onNode(dir, func(n *inodeState) { n.Entries[0].Name = "" }),
		"entry is a path":       onNode(dir, func(n *inodeState) { n.Entries[0].Name = "a/b" }),
		"entry is long":         onNode(dir, func(n *inodeState) { n.Entries[0].Name = strings.Repeat("x", maxName+1) }),
		"entry twice":           onNode(dir, func(n *inodeState) { n.Entries[0].Name = n.Entries[1].Name }),
		"entry without inode":   onNode(dir, func(n *inodeState) { n.Entries[0].Ino = 99 }),
		"directory twice":       onNode(dir, func(n *inodeState) { n.Entries[0].Ino = 5 }),
		"root in a directory":   onNode(dir, func(n *inodeState) { n.Entries[0].Ino = 1 }),
		"directory in itself":   tree(func(ts *treeState) { node(ts, 1).Entries, node(ts, dir).Entries[0].Ino = nil, dir }),
		"removed, not empty":    onNode(1, func(n *inodeState) { n.Root = false }),
	}
	h, err := New(Config{Streams: NewStreams()})
	if err != nil {
		t.Fatal(err)
	}
	before := h.State()
	for name, spoil := range bad {
		s, err := ParseState(good.Encode())
		if err != nil {
			t.Fatal(err)
		}
		spoil(&s)
		if err := h.SetState(s); err == nil {
			t.Errorf("%s: accepted", name)
		} else if testing.Verbose() {
			t.Logf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(h.State(), before) {
			t.Fatalf("%s: refused, and the state has changed", name)
		}
	}
	if err := h.SetState(good); err != nil {
		t.Error(err)
	}
	if _, err := ParseState(make([]byte, MaxState+1)); err == nil {
		t.Error("a state over the limit was accepted")
	}
	small, err := New(Config{Streams: NewStreams(), Limits: Limits{Files: 5}})
	if err != nil {
		t.Fatal(err)
	}
	if err := small.SetState(good); err == nil {
		t.Error("a state over the node's limits was accepted")
	}
}

// An unfinished line moves too.
func TestLinesMove(t *testing.T) {
	a, b := newGuest(t, Config{}), newGuest(t, Config{})
	a.say(1, "be")
	a.say(2, "other")
	if err := b.h.SetState(a.h.State()); err != nil {
		t.Fatal(err)
	}
	b.say(1, "gun\n")
	b.h.Flush()
	if want := []string{"1 begun", "2 other"}; !reflect.DeepEqual(b.out, want) || a.out != nil {
		t.Errorf("%q, then %q", a.out, b.out)
	}
}

// FuzzState: no bytes make a host panic, and what it takes on it can hand on.
func FuzzState(f *testing.F) {
	b, err := os.ReadFile(samplePath)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, []byte{1, 2, 3})
	f.Add(State{FDs: []FD{{}}, Streams: &StreamState{}}.Encode(), []byte{})
	mem := newMemory(f)
	f.Fuzz(func(t *testing.T, b, calls []byte) {
		s, err := ParseState(b)
		if err != nil {
			return
		}
		host := func() *Host {
			h, err := New(Config{Streams: NewStreams(), Wait: func(int64, <-chan struct{}) bool { return true }})
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		h := host()
		if h.SetState(s) != nil {
			return
		}
		same := func() {
			t.Helper()
			if err := h.tree.consistent(); err != nil {
				t.Fatal(err)
			}
			b := h.State().Encode()
			s, err := ParseState(b)
			if err != nil {
				t.Fatal(err)
			}
			next := host()
			if err := next.SetState(s); err != nil {
				t.Fatal(err)
			}
			if again := next.State().Encode(); !bytes.Equal(again, b) {
				t.Fatalf("%x became %x", b, again)
			}
		}
		same()
		sc := &script{data: calls}
		for len(sc.data) > 0 && sc.step < 100 {
			name, args := sc.next(mem)
			h.call(name, functions[name], mem, append(make([]uint64, 0, 16), args...))
		}
		same()
	})
}
