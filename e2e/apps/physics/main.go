//go:build wasip1

// Physics is a worker that simulates rigid cubes falling into a pit (package
// sim). It is driven by calls: a client sends inputs and asks for ticks, and
// gets frames and digests back in the binary protocol of package proto. For the
// command line there is the same as text:
//
//	init N SEED           starts anew with N cubes
//	tick [N]              advances by N ticks, 1 if not said
//	push CUBE X Y Z       gives a cube an impulse in newton seconds
//	explode X Y Z R S     pushes what is within R metres away, with up to S
//	                      newton seconds
//	gravity X Y Z         in m/s²; 0 -9.81 0 at the start
//	stats                 tick, cubes, awake, contacts, energy, mean height
//	digest                BLAKE3 of the whole state in hexadecimal
//
// A new worker holds 512 cubes of seed 1. What makes no sense ends with code 1
// and the reason as the reply. One-way messages work as calls do, unanswered.
package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"meshnode/e2e/apps/physics/proto"
	"meshnode/e2e/apps/physics/sim"
	"meshnode/node/guest"
)

var (
	world *sim.World
	tick  proto.Tick // these two are reused, so that ticks leave no garbage
	reply []byte
)

func init() {
	w, err := sim.New(512, 1)
	if err != nil {
		panic(err)
	}
	world = w
	guest.Handle(handle)
}

func main() {}

func handle(ev guest.Event) {
	if ev.Kind == guest.KindTimer {
		return
	}
	reply = reply[:0]
	if err := command(ev.Payload); err != nil {
		ev.Fail(1)
		reply = append(reply[:0], err.Error()...)
	}
	if ev.Kind == guest.KindCall {
		ev.Reply(reply)
	}
}

func command(b []byte) error {
	if len(b) == 0 {
		return errors.New("empty request")
	}
	switch b[0] {
	case proto.OpTick:
		if err := tick.Parse(b); err != nil {
			return err
		}
		return advance()
	case proto.OpInit:
		in, err := proto.ParseInit(b)
		if err != nil {
			return err
		}
		if err := world.Reset(int(in.Cubes), in.Seed); err != nil {
			return err
		}
		answer(false, false)
		return nil
	case proto.OpFrame, proto.OpDigest:
		if len(b) != 1 {
			return fmt.Errorf("%d bytes after operation %d", len(b)-1, b[0])
		}
		answer(b[0] == proto.OpFrame, b[0] == proto.OpDigest)
		return nil
	}
	if b[0] < 0x20 {
		return fmt.Errorf("unknown operation %d", b[0])
	}
	return text(strings.Fields(string(b)))
}

// advance carries out the tick that was parsed.
func advance() error {
	for _, in := range tick.Inputs {
		if err := input(in); err != nil {
			return err
		}
	}
	for range tick.Steps {
		world.Step()
	}
	answer(tick.Frame, tick.Digest)
	return nil
}

func input(in proto.Input) error {
	switch in.Kind {
	case proto.Push:
		return world.Push(int(in.Cube), in.Vec)
	case proto.Explode:
		return world.Explode(in.Vec, in.Radius, in.Strength)
	case proto.Gravity:
		return world.SetGravity(in.Vec)
	}
	return fmt.Errorf("unknown kind of input %d", in.Kind)
}

// answer writes the reply.
func answer(frame, digest bool) {
	var sum *[32]byte
	if digest {
		d := world.Digest()
		sum = &d
	}
	reply = proto.AppendReply(reply, world.Tick(), sum, frame)
	if !frame {
		return
	}
	reply = proto.AppendFrame(reply, world.Tick(), world.Wall(), world.Cubes())
	for i := range world.Cubes() {
		pos, rot := world.Pose(i)
		reply = proto.AppendCube(reply, pos, rot)
	}
}

// text carries out a command given as words.
func text(words []string) error {
	if len(words) == 0 {
		return errors.New("empty request")
	}
	verb, args := words[0], words[1:]
	n := make([]float32, len(args))
	for i, a := range args {
		f, err := strconv.ParseFloat(a, 32)
		if err != nil {
			return fmt.Errorf("%s: %q is not a number", verb, a)
		}
		n[i] = float32(f)
	}
	want := func(count int) error {
		if len(n) != count {
			return fmt.Errorf("%s: want %d numbers, got %d", verb, count, len(n))
		}
		return nil
	}
	switch verb {
	case "init":
		if err := want(2); err != nil {
			return err
		}
		cubes, err := strconv.Atoi(args[0])
		if err != nil {
			return fmt.Errorf("init: %q is not a number of cubes", args[0])
		}
		seed, err := strconv.ParseUint(args[1], 10, 64)
		if err != nil {
			return fmt.Errorf("init: %q is not a seed", args[1])
		}
		if err := world.Reset(cubes, seed); err != nil {
			return err
		}
	case "tick":
		steps := 1
		if len(args) > 0 {
			var err error
			if steps, err = strconv.Atoi(args[0]); err != nil || steps < 0 || steps > 10000 {
				return fmt.Errorf("tick: want at most 10000 ticks, got %q", args[0])
			}
		}
		for range steps {
			world.Step()
		}
		reply = strconv.AppendUint(reply, world.Tick(), 10)
		return nil
	case "push":
		if err := want(4); err != nil {
			return err
		}
		cube, err := strconv.Atoi(args[0])
		if err != nil {
			return fmt.Errorf("push: %q is not a cube", args[0])
		}
		return world.Push(cube, [3]float32{n[1], n[2], n[3]})
	case "explode":
		if err := want(5); err != nil {
			return err
		}
		return world.Explode([3]float32{n[0], n[1], n[2]}, n[3], n[4])
	case "gravity":
		if err := want(3); err != nil {
			return err
		}
		return world.SetGravity([3]float32{n[0], n[1], n[2]})
	case "stats":
		s := world.Stats()
		reply = fmt.Appendf(reply, "tick=%d cubes=%d awake=%d contacts=%d kinetic=%.3f height=%.3f",
			world.Tick(), world.Cubes(), s.Awake, s.Contacts, s.Kinetic, s.Height)
	case "digest":
		d := world.Digest()
		reply = hex.AppendEncode(reply, d[:])
	default:
		return fmt.Errorf("unknown command %q: want init, tick, push, explode, gravity, stats or digest", verb)
	}
	return nil
}
