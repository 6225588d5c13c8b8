package mesh

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// testKey returns a key that is the same in every run.
func testKey(b byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
}

func keyID(k ed25519.PrivateKey) NodeID { return DeriveNodeID(k.Public().(ed25519.PublicKey)) }

func fullRecord() Record {
	r := Record{
		Name: strings.Repeat("n", maxName), Tier: Cloud, Arch: strings.Repeat("a", maxWord), OS: strings.Repeat("o", maxWord),
		Cores: 65535, MemoryFree: 1<<32 - 1, Load: 100, Engine: strings.Repeat("e", maxWord), Paging: strings.Repeat("p", maxWord),
		DocumentDigest: [32]byte(bytes.Repeat([]byte{0xff}, 32)), Authority: true,
		Speed: 1<<32 - 1, Cordoned: true, Leaving: true, Uplink: 1<<32 - 1, Downlink: 1<<32 - 1,
	}
	w := coordinateWire{-maxCoordinate, maxCoordinate, -maxCoordinate, maxCoordinate, maxCoordinate, -maxCoordinate, maxCoordError}
	var err error
	if r.Coordinate, err = w.coordinate(); err != nil {
		panic(err)
	}
	for i := range maxEndpoints {
		ip := netip.AddrFrom16([16]byte{0x20, 1, 15: byte(i)})
		r.Endpoints = append(r.Endpoints, netip.AddrPortFrom(ip, 65535))
	}
	return r
}

func TestRecord(t *testing.T) {
	key := testKey(1)
	small := Record{Name: "x", Tier: Device}
	for _, r := range []Record{fullRecord(), small} {
		b, err := encodeRecord(&r, key)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d bytes", len(b))
		got, err := decodeRecord(keyID(key), b)
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("got %+v, %v, want %+v", got, err, r)
		}
		if _, err := decodeRecord(keyID(testKey(2)), b); !errors.Is(err, ErrMalformed) {
			t.Errorf("record under another id: %v", err)
		}
		// Every bit counts: no change is accepted.
		for i := range b {
			c := slices.Clone(b)
			c[i] ^= 0x40
			if got, err := decodeRecord(keyID(key), c); err == nil {
				t.Errorf("byte %d changed and still accepted: %+v", i, got)
			}
		}
		for i := range b {
			if _, err := decodeRecord(keyID(key), b[:i]); err == nil {
				t.Errorf("cut to %d bytes and still accepted", i)
			}
		}
	}
	old, err := hex.DecodeString(recordV1)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decodeRecord(keyID(key), old); err != nil || !reflect.DeepEqual(got, sampleRecord()) {
		t.Errorf("version 1: got %+v, %v", got, err)
	}
	for name, spoil := range map[string]func(*Record){
		"no name":           func(r *Record) { r.Name = "" },
		"long name":         func(r *Record) { r.Name += "n" },
		"control character": func(r *Record) { r.Name = "a\x1bb" },
		"bad UTF-8":         func(r *Record) { r.Name = "a\xff" },
		"no tier":           func(r *Record) { r.Tier = 0 },
		"space in arch":     func(r *Record) { r.Arch = "a b" },
		"long engine":       func(r *Record) { r.Engine += "e" },
		"load":              func(r *Record) { r.Load = 101 },
		"endpoint":          func(r *Record) { r.Endpoints[0] = netip.MustParseAddrPort("0.0.0.0:1") },
		"coordinate":        func(r *Record) { r.Coordinate.Vec[0] = math.Inf(1) },
		"port":              func(r *Record) { r.Endpoints[0] = netip.MustParseAddrPort("1.2.3.4:0") },
		"many endpoints":    func(r *Record) { r.Endpoints = append(r.Endpoints, netip.MustParseAddrPort("1.2.3.4:5")) },
	} {
		r := fullRecord()
		spoil(&r)
		if _, err := encodeRecord(&r, key); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What version 1 wrote, every later version reads.
const (
	recordV1 = "84015876ac01666564676520310202036561726d363404656c696e7578050406190800070a08581a040a0000011f0a06" +
		"20010db800000000000000000000000101bb096b696e7465727072657465720a64636f70790b58200000000000000000" +
		"0000000000000000000000000000000000000000000000010cf558208a88e3dd7409f195fd52db2d3cba5d72ca6709bf" +
		"1d94121bf3748801b40f6f5c58408a2e281bea9eb4f14cf9c2f93cf36f7cb8b326a38fe4e38bf59e9de17dcd849eb981" +
		"0de8addf19e9cf481350b389957dd78bd8d67523f9f019bc87e30ec01c0f"
	tokenV1 = "mn1_hlggCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQlQBwcHBwcHBwcHBwcHBwcHB1ggCAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgaZVPxAAKCbTEwLjAuMC4xOjc5NDZ0ZWRnZS5leGFtcGxlLm9yZzo0NDM"
)

func sampleToken() Token {
	return Token{
		Tier: Edge, Expires: time.Unix(1700000000, 0), Endpoints: []string{"10.0.0.1:7946", "edge.example.org:443"},
		pin: caPin(bytes.Repeat([]byte{9}, 32)), id: tokenID(bytes.Repeat([]byte{7}, 16)), secret: [32]byte(bytes.Repeat([]byte{8}, 32)),
	}
}

func sampleRecord() Record {
	return Record{
		Name: "edge 1", Tier: Edge, Arch: "arm64", OS: "linux", Cores: 4, MemoryFree: 2048, Load: 10,
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:7946"), netip.MustParseAddrPort("[2001:db8::1]:443")},
		Engine:    "interpreter", Paging: "copy", DocumentDigest: [32]byte{31: 1}, Authority: true,
	}
}

func TestTokenText(t *testing.T) {
	want := sampleToken()
	got, err := ParseToken(tokenV1)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v; it would now be written %s", got, err, want, want)
	}
	if s := want.String(); s != tokenV1 {
		t.Errorf("now written %s", s)
	}
	if s := fmt.Sprint(want.LogValue()); strings.Contains(tokenV1, s) || strings.Contains(s, "0808") {
		t.Errorf("log value %q", s)
	}
	long := want
	long.Endpoints = slices.Repeat([]string{strings.Repeat("h", 253) + ":65535"}, maxTokenEndpoints)
	if s := long.String(); len(s) > maxToken {
		t.Errorf("the longest token has %d characters, more than %d", len(s), maxToken)
	} else if _, err := ParseToken(s); err != nil {
		t.Error(err)
	}
}

func TestNodeID(t *testing.T) {
	id := keyID(testKey(1))
	if got, err := ParseNodeID(string(id)); err != nil || got != id {
		t.Errorf("parse %s: %v", id, err)
	}
	for _, s := range []string{"", "a", string(id[:25]), string(id) + "a", strings.ToUpper(string(id)), string(id[:25]) + "1", string(id[:25]) + "b"} {
		if _, err := ParseNodeID(s); s != string(id) && !errors.Is(err, ErrMalformed) {
			t.Errorf("parse %q: %v", s, err)
		}
	}
	a := gossipAddr(id)
	if !a.Is6() || a.As16()[0] != 0xfd || a == gossipAddr(keyID(testKey(2))) {
		t.Errorf("gossip address %v", a)
	}
}

func TestMessage(t *testing.T) {
	type msg struct {
		A int    `cbor:"1,keyasint"`
		B []byte `cbor:"2,keyasint,omitempty"`
	}
	var buf bytes.Buffer
	want := []msg{{1, []byte("one")}, {2, nil}, {3, make([]byte, 5000)}}
	for _, m := range want {
		if err := WriteMessage(&buf, m); err != nil {
			t.Fatal(err)
		}
	}
	r := iotest.OneByteReader(bytes.NewReader(buf.Bytes()))
	for _, w := range want {
		var got msg
		if err := ReadMessage(r, 6000, &got); err != nil || !reflect.DeepEqual(got, w) {
			t.Errorf("got %v, %v", got.A, err)
		}
	}
	if err := ReadMessage(r, 6000, new(msg)); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	if err := ReadMessage(bytes.NewReader(buf.Bytes()[:7]), 6000, new(msg)); err != io.ErrUnexpectedEOF {
		t.Errorf("cut short: %v", err)
	}
	// A length beyond the limit is refused before anything is read for it.
	if err := ReadMessage(io.MultiReader(bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xff}), iotest.ErrReader(errors.New("read on"))), 100, new(msg)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("oversized: %v", err)
	}
	// A length within the limit costs no memory before the bytes are there.
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 100 {
		ReadMessage(bytes.NewReader([]byte{0, 0xff, 0xff, 0xff, 1}), 1<<24, new(msg))
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / 100; each > 64<<10 {
		t.Errorf("a claimed length of 16 MiB cost %d bytes", each)
	}
	if err := WriteMessage(io.Discard, make([]byte, maxMessage)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("write of too much: %v", err)
	}
	for _, bad := range []string{"", "ff", "bf01020302ff", "a2010101 02", "c101", "a1018181818181818181818181"} {
		b, _ := hex.DecodeString(strings.ReplaceAll(bad, " ", ""))
		frame := append([]byte{0, 0, 0, byte(len(b))}, b...)
		if err := ReadMessage(bytes.NewReader(frame), 100, new(any)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestState(t *testing.T) {
	key := testKey(3)
	b, err := signState(key, "mesh", []byte("state"))
	if err != nil {
		t.Fatal(err)
	}
	got, id, err := openState("mesh", b)
	if err != nil || string(got) != "state" || id != keyID(key) {
		t.Errorf("got %q of %s, %v", got, id, err)
	}
	if _, _, err := openState("another", b); !errors.Is(err, ErrMalformed) {
		t.Errorf("state of another mesh: %v", err)
	}
	for i := range b {
		c := slices.Clone(b)
		c[i] ^= 1
		if s, id, err := openState("mesh", c); err == nil {
			t.Errorf("byte %d changed and still accepted: %q of %s", i, s, id)
		}
	}
}

// The set of seen messages against the obvious.
func TestSeenSet(t *testing.T) {
	const seed = 4
	rng := rand.New(rand.NewPCG(seed, seed))
	var s seenSet
	var order []publishID
	for range 4 * maxSeen {
		var id publishID
		id[0], id[1] = byte(rng.Uint32()), byte(rng.Uint32())
		recent := order[max(0, len(order)-maxSeen):]
		want := !slices.Contains(recent[max(0, len(recent)-64):], id)
		if _, ok := s.set[id]; want && ok {
			want = false // seen, longer ago than we looked
		}
		if got := s.add(id); got != want {
			t.Fatalf("seed %d: add(%x) = %v, want %v", seed, id, got, want)
		} else if got {
			order = append(order, id)
		}
		if len(s.set) > maxSeen || len(s.ring) != len(s.set) {
			t.Fatalf("holds %d ids and %d in order", len(s.set), len(s.ring))
		}
	}
}

func TestLocalEndpoints(t *testing.T) {
	got := localEndpoints(netip.MustParseAddrPort("127.0.0.1:9"))
	if len(got) != 1 || got[0] != netip.MustParseAddrPort("127.0.0.1:9") {
		t.Errorf("bound to one address: %v", got)
	}
	for _, a := range []string{"0.0.0.0:9", "[::]:9"} {
		for _, ep := range localEndpoints(netip.MustParseAddrPort(a)) {
			if !validEndpoint(ep) || ep.Port() != 9 {
				t.Errorf("bound to %s: %v", a, ep)
			}
		}
	}
}

func TestValidate(t *testing.T) {
	good := Config{Dir: "x", Advertise: []string{"example.org:1"}, Seeds: []string{"[::1]:2", "1.2.3.4:3"}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no dir":    func(c *Config) { c.Dir = "" },
		"document":  func(c *Config) { c.Document = make([]byte, maxDocument+1) },
		"advertise": func(c *Config) { c.Advertise = []string{"nohost"} },
		"seed":      func(c *Config) { c.Seeds = []string{"host:0"} },
		"duration":  func(c *Config) { c.Gossip.Interval = -1 },
		"mult":      func(c *Config) { c.Gossip.SuspicionMult = -1 },
	} {
		c := good
		spoil(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(tokenV1)
	f.Add("mn1_")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			if !errors.Is(err, ErrTokenMalformed) {
				t.Errorf("error %v", err)
			}
			return
		}
		if tok.String() != s {
			t.Errorf("%q is written %q", s, tok)
		}
	})
}

func FuzzRecord(f *testing.F) {
	for _, r := range []Record{fullRecord(), sampleRecord(), {Name: "x", Tier: Device}} {
		b, err := encodeRecord(&r, testKey(1))
		if err != nil {
			f.Fatal(err)
		}
		var e recordEnvelope
		if err := decode(b, &e); err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(e.Body)
	}
	key := testKey(1)
	f.Fuzz(func(t *testing.T, b []byte) {
		decodeRecord(keyID(key), b)
		r, err := decodeRecordBody(b)
		if err != nil {
			return
		}
		c, err := encodeRecord(&r, key)
		if err != nil {
			t.Fatalf("accepted, but cannot be written: %v", err)
		}
		if again, err := decodeRecord(keyID(key), c); err != nil || !reflect.DeepEqual(again, r) {
			t.Errorf("%+v came back as %+v, %v", r, again, err)
		}
	})
}

func FuzzReadMessage(f *testing.F) {
	for _, v := range []any{hello{Endpoints: sampleRecord().Endpoints, Boot: make([]byte, 8)}, helloReply{make([]byte, 8)}, joinRequest{[]byte{1}, []byte{2}, []byte{3}, true},
		joinReply{Code: 3, Reason: "r", Cert: []byte{1}, Peers: []knownPeer{{"a", sampleRecord().Endpoints}}},
		documentRequest{[]byte{1}}, documentReply{true, []byte("doc")}} {
		var buf bytes.Buffer
		if err := WriteMessage(&buf, v); err != nil {
			f.Fatal(err)
		}
		f.Add(buf.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, v := range []any{new(hello), new(helloReply), new(joinRequest), new(joinReply), new(documentRequest), new(documentReply), new(any)} {
			r := bytes.NewReader(b)
			if err := ReadMessage(r, 4096, v); err != nil {
				continue
			}
			var buf bytes.Buffer
			if _, untyped := v.(*any); untyped {
				continue
			}
			if err := WriteMessage(&buf, v); err != nil {
				t.Fatalf("%T accepted, but cannot be written: %v", v, err)
			}
			again := reflect.New(reflect.TypeOf(v).Elem()).Interface()
			if err := ReadMessage(&buf, 1<<20, again); err != nil {
				t.Errorf("%T: %v", v, err)
			}
			if q, ok := v.(*joinRequest); ok {
				checkRequest(q)
			}
			if q, ok := v.(*joinReply); ok {
				q.err()
			}
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add(appendHeader(nil, protoGossip))
	f.Add(append(appendHeader(nil, strings.Repeat("x", maxProtocol)), "rest"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		p, err := readHeader(r)
		if err != nil {
			return
		}
		if got := appendHeader(nil, p); !bytes.Equal(got, b[:len(b)-r.Len()]) {
			t.Errorf("%q is written %q", b, got)
		}
	})
}

func FuzzEndpoints(f *testing.F) {
	f.Add(endpointList(fullRecord().Endpoints).appendTo(nil))
	f.Add(endpointList(sampleRecord().Endpoints).appendTo(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseEndpoints(b)
		if err != nil {
			return
		}
		if got := endpointList(l).appendTo(nil); !bytes.Equal(got, b) {
			t.Errorf("%x is written %x", b, got)
		}
		if got := mergeEndpoints(nil, l...); !slices.Equal(got, l) {
			t.Errorf("accepted %v, which merges to %v", l, got)
		}
	})
}

func FuzzHostPort(f *testing.F) {
	for _, s := range []string{"1.2.3.4:5", "[::1]:80", "example.org:443", "[fe80::1%eth0]:1", ":1", "a:+1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if checkHostPort(s) == nil && portOf(s) == 0 {
			t.Errorf("%q has no port", s)
		}
	})
}

func FuzzDatagram(f *testing.F) {
	f.Add([]byte{datagramGossip, 1, 2})
	f.Add(append(append([]byte{publishDirectory}, make([]byte, 16)...), "message"...))
	state, err := signState(testKey(1), "mesh", []byte("state"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(state)
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := parseDatagram(b); err == nil && !bytes.Equal(append([]byte{datagramGossip}, p...), b) {
			t.Errorf("%x gives %x", b, p)
		}
		if kind, id, p, err := parsePublished(b); err == nil {
			if got := append(append([]byte{kind}, id[:]...), p...); !bytes.Equal(got, b) {
				t.Errorf("%x gives %x", b, got)
			}
		}
		openState("mesh", b)
		isPersonal(b)
	})
}
