package sim

import "testing"

func at(n int) *World {
	w, _ := New(512, 1)
	for range n {
		w.Step()
	}
	return w
}
func BenchmarkStepPartIterate(b *testing.B) {
	w := at(100)
	w.findPairs()
	w.findContacts()
	for b.Loop() {
		w.iterate(true)
	}
}
func BenchmarkStepPartWarm(b *testing.B) {
	w := at(100)
	w.findPairs()
	w.findContacts()
	for b.Loop() {
		w.warm()
	}
}
func BenchmarkStepPartPairs(b *testing.B) {
	w := at(100)
	for b.Loop() {
		w.findPairs()
	}
}
func BenchmarkStepPartContacts(b *testing.B) {
	w := at(100)
	w.findPairs()
	for b.Loop() {
		w.findContacts()
	}
}
func BenchmarkStepPartSettle(b *testing.B) {
	w := at(100)
	for b.Loop() {
		w.settle()
	}
}
func BenchmarkStepPartAxes(b *testing.B) {
	w := at(100)
	for b.Loop() {
		for i := range w.bodies {
			w.axes[i] = w.bodies[i].rot.axes()
		}
	}
}

func TestStackX(t *testing.T) {
	w, _ := New(10, 1)
	for i := range 10 {
		w.bodies[i] = body{pos: vec{0, 0.5 + float32(i)*1.001, 0}, rot: quat{w: 1}, awake: 1}
	}
	for k := range 600 {
		w.Step()
		if k%60 == 0 || k < 5 {
			t.Log(w.bodies[0].pos, w.bodies[9].pos, w.Stats())
		}
	}
}
func BenchmarkStepPartAsleep(b *testing.B) {
	w := at(400)
	for b.Loop() {
		w.Step()
	}
}
func BenchmarkStepPartAwake(b *testing.B) {
	w := at(70)
	for b.Loop() {
		for i := range w.bodies[:512] {
			w.bodies[i].rest = 0
			w.bodies[i].awake = 1
		}
		w.Step()
	}
}
