package main

import (
	"fmt"

	"meshnode/e2e/apps/physics/proto"
)

// demoSeed is where the bodies of every demo start from.
const demoSeed = 1

// physicsInit asks for a new world.
func physicsInit(bodies int) []byte {
	return proto.Init{Cubes: uint16(bodies), Seed: demoSeed}.Append(nil)
}

// physicsTick is step i of every run, from 0, and asks for the frame that
// shows it. The inputs are a function of i alone, so that a second run can
// have the same: now and then a body is pushed, or some are blown up, so that
// they never all come to rest.
func physicsTick(i, bodies int) []byte {
	t := proto.Tick{Steps: 1, Frame: true}
	if k := i / 10; i%10 == 0 {
		t.Inputs = append(t.Inputs, proto.Input{
			Kind: proto.Push, Cube: uint16(k * 7919 % bodies),
			Vec: [3]float32{float32(k%7) - 3, 4, float32(k%5) - 2},
		})
	}
	if i%(3*demoHz) == 2*demoHz {
		t.Inputs = append(t.Inputs, proto.Input{
			Kind: proto.Explode, Vec: [3]float32{float32(i%9) - 4, 0.5, float32(i%11) - 5}, Radius: 4, Strength: 12,
		})
	}
	return t.Append(nil)
}

// physicsState asks for the state's digest and a frame, and changes nothing.
func physicsState() []byte {
	return (&proto.Tick{Frame: true, Digest: true}).Append(nil)
}

// physicsReply reads the reply to a step or to physicsState.
func physicsReply(b []byte) (proto.Reply, error) {
	r, err := proto.ParseReply(b)
	if err != nil {
		return r, fmt.Errorf("the app's reply: %w", err)
	}
	if _, err := proto.ParseFrame(r.Frame); err != nil {
		return r, fmt.Errorf("the app's reply: %w", err)
	}
	return r, nil
}
