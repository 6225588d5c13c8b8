package suspend

import (
	"errors"
	"fmt"
	"slices"
)

// A Frame is one suspended activation of a function. It lies outside the
// program's memory, so the program can neither see nor change it.
type Frame struct {
	// Function is the function's index in the module as its author made it.
	Function uint32 `cbor:"1,keyasint"`
	// Point is where it stopped, counted within the function.
	Point uint32 `cbor:"2,keyasint"`
	// Values are the variables and the operand stack at the point, as 64-bit
	// units: i32 and f32 in the lower half, v128 as two units, low one first, a
	// reference to a function as its index plus one, or 0.
	Values []uint64 `cbor:"3,keyasint"`
}

// Limits on suspended frames. A program that recurses deeper traps, as one does
// that exhausts the machine's stack.
const (
	MaxFrames = 1 << 20
	// MaxFrameUnits is the number of units of all frames together.
	MaxFrameUnits = 1 << 24
)

// ErrStackExhausted means that a program has more frames than can be kept.
var ErrStackExhausted = errors.New("call stack exhausted")

// A Stack holds a program's suspended frames and plays the host's part of
// stopping and continuing: its methods Next, More, Save and Load are what the
// program imports from SuspendModule. It depends on no runtime. It is not safe
// for concurrent use: all belongs to the thread that runs the program.
//
// Stopping. The host sets the global StopExport. The program comes to a suspend
// point, saves its innermost frame and returns; its caller sees the global, does
// the same, and so on until the outermost function has returned to the host,
// which calls Stopped.
//
// Continuing. The host calls RunExport, which asks Next for a function to run:
// that of the innermost frame. The function loads its frame, goes on, and hands
// its results to Save when it is done, which puts them into the frame of its
// caller; then Next says to run that one. So frames come back to the machine's
// stack one at a time, when it is their turn, and a stack of any depth is
// resumed at once. When Next has nothing left the program is done.
type Stack struct {
	p      *Program
	frames []Frame // outermost first
	// unwound are the frames saved since the program has begun to stop,
	// innermost first.
	unwound   []Frame
	unwinding bool
	blocked   bool
	units     []uint64 // from More, and then from Save
	load      []uint64 // for Load, from loaded on
	loaded    int
	total     int    // units in all frames
	running   uint32 // in Program.functions: what was continued last
	results   []uint64
	free      [][]uint64 // values of frames that are done, for reuse
}

// NewStack returns an empty stack.
func NewStack(p *Program) *Stack { return &Stack{p: p} }

// Block notes that the host function that the program is in could not finish
// and has had no effect. The host must have set the global StopExport; the
// program stops, and will call the function again, with the same arguments,
// when it is continued. Only functions that can block (see the package's
// documentation) may do so.
func (s *Stack) Block() { s.blocked = true }

// Depth is the number of frames.
func (s *Stack) Depth() int { return len(s.frames) }

// Next is the import next: the function whose frame to continue, in the order of
// the resuming versions, or -1 for none. With stop, there is none: between two
// frames is a place to stop as good as any.
func (s *Stack) Next(stop bool) int32 {
	if len(s.frames) == 0 {
		return -1
	}
	s.unwinding = s.unwinding || stop
	if s.unwinding {
		return -1
	}
	f := s.frames[len(s.frames)-1]
	s.frames = s.frames[:len(s.frames)-1]
	number := s.p.byIndex[f.Function]
	fn := &s.p.functions[number]
	pt := &s.p.points[fn.first+f.Point]
	n := int(fn.ways + fn.units)
	s.load = append(s.load[:0], make([]uint64, n)...)
	s.loaded = 0
	for r, t := int32(pt.region), pt.target; r >= 0; {
		g := &s.p.regions[r]
		s.load[g.depth] = uint64(t)
		r, t = g.parent, g.target
	}
	to := s.load[fn.ways:]
	i := 0
	for j, typ := range s.p.typesAt(pt) {
		at := s.p.places[int(pt.first)+j]
		to[at] = f.Values[i]
		i++
		if typ == typV128 {
			to[at+1] = f.Values[i]
			i++
		}
	}
	s.running = number
	s.total -= len(f.Values)
	s.free = append(s.free, f.Values)
	return int32(number)
}

// Load is the import load: the next units of the frame, zeroes behind its end.
func (s *Stack) Load(units []uint64) {
	n := copy(units, s.load[s.loaded:])
	s.loaded += n
	clear(units[n:])
}

// More is the import more: units that come before those of Save.
func (s *Stack) More(units []uint64) { s.units = append(s.units, units...) }

// Save is the import save: a frame, or, if which is -1, the results of the
// function that was continued.
func (s *Stack) Save(which int32, units []uint64) error {
	s.units = append(s.units, units...)
	all := s.units
	s.units = s.units[:0]
	if which < 0 {
		if s.unwinding {
			return nil // it has stopped again, so these are no results
		}
		return s.finish(all)
	}
	id := uint32(which) >> 1
	resumed := which&1 != 0
	if uint64(id) >= uint64(len(s.p.points)) {
		return fmt.Errorf("suspend: saved at point %d of %d", id, len(s.p.points))
	}
	pt := &s.p.points[id]
	blocked := s.blocked
	s.blocked = false
	if blocked && !s.unwinding {
		if id == 0 || s.p.points[id-1].kind != pointBefore || s.p.points[id-1].function != pt.function {
			return fmt.Errorf("suspend: a host function that cannot block has blocked")
		}
	} else {
		blocked = false
	}
	s.unwinding = true
	skip := 0 // results, which a call that blocked has not left
	if blocked {
		skip = int(pt.results)
		id--
		pt = &s.p.points[id]
	}
	fn := &s.p.functions[pt.function]
	n := int(pt.units)
	if len(s.frames)+len(s.unwound) >= MaxFrames || s.total+n > MaxFrameUnits {
		return ErrStackExhausted
	}
	values := s.alloc(n)
	if resumed {
		if len(all) < int(fn.units) {
			return fmt.Errorf("suspend: %d units saved, %d expected", len(all), fn.units)
		}
		i := 0
		for j, typ := range s.p.typesAt(pt) {
			at := s.p.places[int(pt.first)+j]
			values[i] = all[at]
			i++
			if typ == typV128 {
				values[i] = all[at+1]
				i++
			}
		}
	} else {
		if len(all) < n+skip {
			return fmt.Errorf("suspend: %d units saved, %d expected", len(all), n+skip)
		}
		if skip > 0 {
			// Arguments lie behind the results.
			args := int(pt.results)
			copy(values, all[:n-args])
			copy(values[n-args:], all[n-args+skip:])
		} else {
			copy(values, all)
		}
	}
	s.total += n
	s.unwound = append(s.unwound, Frame{Function: fn.index, Point: id - fn.first, Values: values})
	return nil
}

// alloc returns memory for n units.
func (s *Stack) alloc(n int) []uint64 {
	for len(s.free) > 0 {
		v := s.free[len(s.free)-1]
		s.free = s.free[:len(s.free)-1]
		if cap(v) >= n {
			return v[:n]
		}
	}
	return make([]uint64, n, max(n, 8))
}

// finish hands results to the frame that waits for them.
func (s *Stack) finish(results []uint64) error {
	if len(s.frames) == 0 {
		n := uint32(0)
		for i := range s.p.functions[s.running].results {
			n += unitsOf(s.p.functions[s.running].results[i])
		}
		if len(results) < int(n) {
			return fmt.Errorf("suspend: %d units of results, %d expected", len(results), n)
		}
		s.results = append(s.results[:0], results[:n]...)
		return nil
	}
	f := &s.frames[len(s.frames)-1]
	fn := &s.p.functions[s.p.byIndex[f.Function]]
	pt := &s.p.points[fn.first+f.Point]
	if len(results) < int(pt.results) {
		return fmt.Errorf("suspend: %d units of results, %d expected", len(results), pt.results)
	}
	copy(f.Values[len(f.Values)-int(pt.results):], results[:pt.results])
	return nil
}

// Stopped says whether the program has stopped, rather than finished, and ends
// stopping: the host, which has called the program or continued it, calls it
// when that has returned, and sets the global StopExport back.
func (s *Stack) Stopped() bool {
	if !s.unwinding {
		return false
	}
	s.unwinding = false
	slices.Reverse(s.unwound)
	s.frames = append(s.frames, s.unwound...)
	s.unwound = s.unwound[:0]
	return true
}

// AtLoop says whether the innermost frame is at a loop's head, where it polls
// again as soon as it is continued. Elsewhere it has polled. A host that counts
// polls down must allow for it, or the program never gets anywhere.
func (s *Stack) AtLoop() bool {
	if len(s.frames) == 0 {
		return false
	}
	f := &s.frames[len(s.frames)-1]
	fn := &s.p.functions[s.p.byIndex[f.Function]]
	return s.p.points[fn.first+f.Point].kind == pointLoop
}

// Results returns what the outermost function has returned, as 64-bit units,
// once the program is done.
func (s *Stack) Results() []uint64 { return s.results }

// Reset forgets all frames: after a trap.
func (s *Stack) Reset() { *s = Stack{p: s.p} }

// Frames returns the frames, outermost first. They belong to the stack and are
// valid until the program is continued.
func (s *Stack) Frames() []Frame { return s.frames }

// SetFrames replaces the frames by others, which were taken from a stack of the
// same program, entered through the export entry. They are copied. Frames that
// the program could not have are refused; those that are accepted can make it
// compute nonsense, but nothing that a program of its own could not do.
func (s *Stack) SetFrames(entry string, frames []Frame) error {
	if err := s.p.CheckFrames(entry, frames); err != nil {
		return err
	}
	s.Reset()
	for _, f := range frames {
		f.Values = slices.Clone(f.Values)
		s.total += len(f.Values)
		s.frames = append(s.frames, f)
	}
	return nil
}

// CheckFrames says whether a program entered through the export entry can have
// these frames, outermost first.
func (p *Program) CheckFrames(entry string, frames []Frame) error {
	if len(frames) == 0 {
		return nil
	}
	if len(frames) > MaxFrames {
		return fmt.Errorf("%d frames, at most %d", len(frames), MaxFrames)
	}
	index, ok := p.exports[entry]
	if !ok {
		return fmt.Errorf("no function %s to continue", quote(entry))
	}
	total := 0
	var caller *programPoint
	for i, f := range frames {
		bad := func(format string, args ...any) error {
			return fmt.Errorf("frame %d, function %d, point %d: "+format, append([]any{i, f.Function, f.Point}, args...)...)
		}
		number, ok := p.byIndex[f.Function]
		if !ok {
			return bad("no function that can stop")
		}
		fn := &p.functions[number]
		if f.Point >= fn.points {
			return bad("it has %d points", fn.points)
		}
		pt := &p.points[fn.first+f.Point]
		switch {
		case caller == nil:
			if f.Function != index && !p.standsFor(fn, p.resultsOf(index)) {
				return bad("%s is function %d", quote(entry), index)
			}
		case caller.kind != pointCall:
			return bad("its caller is not in a call")
		case p.standsFor(fn, p.awaited(caller)):
		case caller.indirect:
			if p.typeOf[f.Function] != caller.callee {
				return bad("its caller calls another type")
			}
		case caller.callee != f.Function:
			return bad("its caller calls function %d", caller.callee)
		}
		if len(f.Values) != int(pt.units) {
			return bad("%d values, not %d", len(f.Values), pt.units)
		}
		j := 0
		for _, typ := range p.typesAt(pt) {
			v := f.Values[j]
			switch typ {
			case typI32, typF32:
				if v > 1<<32-1 {
					return bad("value %d has more than 32 bits", j)
				}
			case typFuncref:
				if v > uint64(len(p.typeOf)) {
					return bad("value %d refers to function %d of %d", j, v-1, len(p.typeOf))
				}
			}
			j += int(unitsOf(typ))
		}
		if total += len(f.Values); total > MaxFrameUnits {
			return fmt.Errorf("more than %d values in frames", MaxFrameUnits)
		}
		caller = pt
	}
	return nil
}
