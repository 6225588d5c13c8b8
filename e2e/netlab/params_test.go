package netlab

import (
	"strings"
	"testing"
	"time"
)

func parseParams(s string) (Params, error) {
	var p Params
	for _, word := range strings.Fields(s) {
		if err := p.Set(word); err != nil {
			return Params{}, err
		}
	}
	return p, p.Validate()
}

func TestParams(t *testing.T) {
	p, err := parseParams("rate=1.5mbit delay=10ms jitter=500us loss=1% reorder=0.005 duplicate=2% queue=64KiB burst=3000 reorderby=4ms down=true")
	want := Params{
		Rate: 1_500_000, Delay: 10 * time.Millisecond, Jitter: 500 * time.Microsecond,
		Loss: 0.01, Reorder: 0.005, Duplicate: 0.02, QueueBytes: 65536, Burst: 3000,
		ReorderBy: 4 * time.Millisecond, Down: true,
	}
	if err != nil || p != want {
		t.Errorf("got %+v, %v; want %+v", p, err, want)
	}
	if err := p.Set("queue=10p"); err != nil || p.QueueBytes != 0 || p.QueuePackets != 10 {
		t.Errorf("queue=10p gives %+v, %v", p, err)
	}
	for _, s := range []string{
		"rate", "rate=", "rate=10", "rate=-1mbit", "rate=1e300gbit", "rate=NaNbit", "speed=1mbit",
		"delay=10", "delay=-1ms", "delay=2h", "jitter=1ms", "loss=101%", "loss=-1%", "loss=NaN",
		"queue=100", "queue=1.5p", "queue=99999999MiB", "down=maybe",
	} {
		if p, err := parseParams(s); err == nil {
			t.Errorf("%q is accepted as %v", s, p)
		}
	}
}

func FuzzParams(f *testing.F) {
	f.Add("rate=50mbit delay=10ms jitter=1ms loss=1% reorder=0.5% queue=64KiB")
	f.Add("rate=0 queue=100p burst=15000 duplicate=1% reorderby=3ms down=true")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseParams(s)
		if err != nil {
			return
		}
		again, err := parseParams(p.String())
		if err != nil || again != p {
			t.Errorf("%q is %+v, but %q is %+v, %v", s, p, p, again, err)
		}
	})
}
