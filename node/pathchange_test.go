package node

import (
	"slices"
	"testing"
	"time"
)

func TestSinceChange(t *testing.T) {
	ms := func(xs ...int) (out []time.Duration) {
		for _, x := range xs {
			out = append(out, time.Duration(x)*time.Millisecond)
		}
		return out
	}
	for _, r := range []struct{ samples, want []time.Duration }{
		{ms(10, 11), ms(10, 11)},
		{ms(10, 11, 50, 51, 49), ms(10, 11, 50, 51, 49)},         // three are not enough
		{ms(10, 11, 50, 51, 49, 52), ms(50, 51, 49, 52)},         // farther
		{ms(50, 52, 10, 11, 10, 12), ms(10, 11, 10, 12)},         // nearer
		{ms(10, 11, 50, 51, 10, 52), ms(10, 11, 50, 51, 10, 52)}, // noise
		{ms(10, 10, 12, 12, 12, 12), ms(10, 10, 12, 12, 12, 12)}, // within a quarter
		{ms(1, 1, 1, 1, 1, 1, 1), ms(1, 1, 1, 1, 1, 1, 1)},       // nothing
	} {
		if got := sinceChange(slices.Clone(r.samples)); !slices.Equal(got, r.want) {
			t.Errorf("%v: got %v, want %v", r.samples, got, r.want)
		}
	}
}
