package proto

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"testing"
)

func TestTickRoundTrip(t *testing.T) {
	for _, want := range []Tick{
		{},
		{Steps: 1, Frame: true},
		{Steps: 255, Digest: true, Inputs: []Input{
			{Kind: Push, Cube: 513, Vec: [3]float32{1, -2, 3.5}},
			{Kind: Explode, Vec: [3]float32{0, 1, 2}, Radius: 3, Strength: 4},
			{Kind: Gravity, Vec: [3]float32{0, -9.81, 0}},
		}},
	} {
		b := want.Append(nil)
		var got Tick
		if err := got.Parse(b); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Append(nil), b) || len(got.Inputs) != len(want.Inputs) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		for i := range b {
			if err := got.Parse(b[:i]); !errors.Is(err, ErrMalformed) {
				t.Errorf("%d of %d bytes: %v", i, len(b), err)
			}
		}
		if err := got.Parse(append(b, 0)); !errors.Is(err, ErrMalformed) {
			t.Errorf("a byte too many: %v", err)
		}
	}
}

// TestWire pins the bytes of each message: a client of today speaks to a worker
// of tomorrow.
func TestWire(t *testing.T) {
	tick := Tick{Steps: 2, Frame: true, Digest: true, Inputs: []Input{{Kind: Push, Cube: 258, Vec: [3]float32{1, 0, -2}}}}
	digest := [32]byte{0xaa}
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"tick":  {tick.Append(nil), "\x01\x03\x02\x01\x01\x01\x02\x3f\x80\x00\x00\x00\x00\x00\x00\xc0\x00\x00\x00"},
		"init":  {Init{512, 7}.Append(nil), "\x02\x02\x00\x00\x00\x00\x00\x00\x00\x00\x07"},
		"reply": {AppendReply(nil, 9, &digest, false), "\x02\x00\x00\x00\x00\x00\x00\x00\x09\xaa" + string(make([]byte, 31))},
		"frame": {
			AppendCube(AppendFrame(nil, 9, 2, 1), [3]float32{1, -0.5, 1000}, [4]float32{1, 0, 0, 0}),
			"\x01\x00\x00\x00\x00\x00\x00\x00\x09\x40\x00\x00\x00\x00\x01\x02\x00\xff\x00\x7f\xff\x20\x08\x02\x00",
		},
	} {
		if string(c.got) != c.want {
			t.Errorf("%s: got %q, want %q", name, c.got, c.want)
		}
	}
}

func TestFramePrecision(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var want []Cube
	for range 1000 {
		var c Cube
		length := 0.0
		for i := range c.Rot {
			c.Rot[i] = float32(r.NormFloat64())
			length += float64(c.Rot[i]) * float64(c.Rot[i])
		}
		for i := range c.Rot {
			c.Rot[i] /= float32(math.Sqrt(length))
		}
		for i := range c.Pos {
			c.Pos[i] = r.Float32()*100 - 50
		}
		want = append(want, c)
	}
	want = append(want, Cube{Rot: [4]float32{0, 0, 0, -1}}, Cube{Rot: [4]float32{0.5, -0.5, 0.5, -0.5}})
	b := AppendFrame(nil, 42, 10, len(want))
	for _, c := range want {
		b = AppendCube(b, c.Pos, c.Rot)
	}
	f, err := ParseFrame(b)
	if err != nil || f.Tick != 42 || f.Wall != 10 || len(f.Cubes) != len(want) {
		t.Fatalf("%v: %d cubes of tick %d", err, len(f.Cubes), f.Tick)
	}
	for i, c := range f.Cubes {
		cos := 0.0
		for k := range c.Rot {
			cos += float64(c.Rot[k]) * float64(want[i].Rot[k])
		}
		if angle := 2 * math.Acos(min(math.Abs(cos), 1)) * 180 / math.Pi; angle > 0.4 {
			t.Errorf("cube %d is turned by %.2f degrees: %v, want %v", i, angle, c.Rot, want[i].Rot)
		}
		for k := range c.Pos {
			if d := math.Abs(float64(c.Pos[k] - want[i].Pos[k])); d > 0.001 {
				t.Errorf("cube %d is %.4f m from its place", i, d)
			}
		}
	}

	nan := float32(math.NaN())
	b = AppendCube(AppendFrame(nil, 1, 1, 1), [3]float32{nan, nan, nan}, [4]float32{nan, nan, nan, nan})
	if _, err := ParseFrame(b); err != nil {
		t.Error(err)
	}
}

func FuzzTick(f *testing.F) {
	f.Add((&Tick{Steps: 1, Frame: true, Inputs: []Input{{Kind: Explode}, {Kind: Push}, {Kind: Gravity}}}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var tick Tick
		if err := tick.Parse(b); err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if again := tick.Append(nil); !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

func FuzzInit(f *testing.F) {
	f.Add(Init{512, 1}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		i, err := ParseInit(b)
		if err == nil && !bytes.Equal(i.Append(nil), b) {
			t.Fatalf("%x became %+v", b, i)
		}
	})
}

func FuzzReply(f *testing.F) {
	f.Add(AppendReply(nil, 5, &[32]byte{1}, false))
	f.Add(AppendCube(AppendFrame(AppendReply(nil, 5, nil, true), 5, 1, 1), [3]float32{}, [4]float32{1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseReply(b)
		if err != nil {
			return
		}
		again := append(AppendReply(nil, r.Tick, r.Digest, r.Frame != nil), r.Frame...)
		if !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
		fr, err := ParseFrame(r.Frame)
		if err != nil {
			return
		}
		// Packing what was unpacked must not drift.
		once := AppendFrame(nil, fr.Tick, fr.Wall, len(fr.Cubes))
		for _, c := range fr.Cubes {
			once = AppendCube(once, c.Pos, c.Rot)
		}
		if len(once) != len(r.Frame) {
			t.Fatalf("a frame of %d bytes became one of %d", len(r.Frame), len(once))
		}
	})
}
