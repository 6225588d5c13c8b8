package sim

import "testing"

func BenchmarkStep(b *testing.B) {
	w, _ := New(512, 1)
	for b.Loop() {
		if w.Tick() == 240 {
			w.Reset(512, 1)
		}
		w.Step()
	}
}

func TestX(t *testing.T) {
	w, _ := New(512, 1)
	for i := range 900 {
		w.Step()
		if i%30 == 0 {
			t.Logf("%d %+v m=%d p=%d pairs=%d", i, w.Stats(), len(w.manifolds), len(w.points), len(w.pairs))
		}
	}
}
