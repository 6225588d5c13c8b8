package netlab

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// MTU is the largest IP packet a link carries, in bytes.
const MTU = 1500

// Params describes one direction of a link. The zero value is a perfect wire:
// no delay, no limit, nothing lost.
type Params struct {
	// Rate is in bits of IP packet a second; zero is no limit.
	Rate int64
	// Burst is how many bytes an idle link may send at once before Rate
	// applies. Zero makes the link a plain wire.
	Burst int
	// QueueBytes and QueuePackets limit what waits for Rate, the packet being
	// sent included; a packet that finds the queue full is dropped. If both
	// are zero the limit is 50 ms of Rate, but at least 32 packets of MTU.
	QueueBytes   int
	QueuePackets int

	// Delay is the time from the end of a packet's transmission to its
	// arrival.
	Delay time.Duration
	// Jitter lets the delay wander within Delay ± Jitter without ever
	// reordering packets: it draws a new value every 4 × Jitter and moves
	// linearly from one to the next. It may not exceed Delay.
	Jitter time.Duration

	// Loss, Reorder and Duplicate are probabilities for each packet, drawn
	// independently.
	Loss      float64
	Reorder   float64
	Duplicate float64
	// ReorderBy is how much longer a reordered packet is under way, so that
	// those behind it overtake it; zero means 2 ms.
	ReorderBy time.Duration

	// Down drops everything.
	Down bool
}

const (
	defaultReorderBy = 2 * time.Millisecond
	maxRate          = 100_000_000_000 // keeps bits × 1e9 of a packet far from overflow
	maxTime          = time.Hour
	maxQueue         = 1 << 30
)

// Validate reports the first field that has no meaning.
func (p Params) Validate() error {
	for _, f := range []struct {
		name  string
		value float64
	}{{"loss", p.Loss}, {"reorder", p.Reorder}, {"duplicate", p.Duplicate}} {
		if math.IsNaN(f.value) || f.value < 0 || f.value > 1 {
			return fmt.Errorf("%s is %v: want a probability of 0 to 100%%", f.name, f.value)
		}
	}
	for _, f := range []struct {
		name  string
		value time.Duration
	}{{"delay", p.Delay}, {"jitter", p.Jitter}, {"reorderby", p.ReorderBy}} {
		if f.value < 0 || f.value > maxTime {
			return fmt.Errorf("%s is %v: want 0 to %v", f.name, f.value, maxTime)
		}
	}
	for _, f := range []struct {
		name  string
		value int
	}{{"burst", p.Burst}, {"queue bytes", p.QueueBytes}, {"queue packets", p.QueuePackets}} {
		if f.value < 0 || f.value > maxQueue {
			return fmt.Errorf("%s is %d: want 0 to %d", f.name, f.value, maxQueue)
		}
	}
	switch {
	case p.Rate < 0 || p.Rate > maxRate:
		return fmt.Errorf("rate is %d bit/s: want 0 (no limit) to %d", p.Rate, int64(maxRate))
	case p.Jitter > p.Delay:
		return fmt.Errorf("jitter %v is more than the delay of %v", p.Jitter, p.Delay)
	case p.QueueBytes > 0 && p.QueueBytes < MTU:
		return fmt.Errorf("queue of %d bytes holds no full packet of %d", p.QueueBytes, MTU)
	}
	return nil
}

// queueLimit is the limit in force, in bytes and packets.
func (p *Params) queueLimit() (bytes, packets int) {
	bytes, packets = p.QueueBytes, p.QueuePackets
	if bytes == 0 && packets == 0 {
		bytes = max(int(p.Rate/8/20), 32*MTU)
	}
	if bytes == 0 {
		bytes = math.MaxInt
	}
	if packets == 0 {
		packets = math.MaxInt
	}
	return bytes, packets
}

// Set changes the field that one word of the form key=value names:
//
//	rate=50mbit  delay=10ms  jitter=1ms  loss=1%  reorder=0.5%  duplicate=1%
//	reorderby=2ms  queue=64KiB  queue=100p  burst=15000  down=true
//
// Rates are decimal (bit, kbit, mbit, gbit), 0 being no limit; sizes are in
// bytes, with KiB or MiB if given. On an error p is unchanged. Set does not
// check how fields go together; see [Params.Validate].
func (p *Params) Set(word string) error {
	key, value, ok := strings.Cut(word, "=")
	if !ok {
		return fmt.Errorf("%q: want key=value", word)
	}
	q := *p
	var err error
	switch key {
	case "rate":
		q.Rate, err = parseRate(value)
	case "burst":
		q.Burst, err = parseSize(value)
	case "queue":
		q.QueueBytes, q.QueuePackets = 0, 0
		if n, found := strings.CutSuffix(value, "p"); found {
			q.QueuePackets, err = strconv.Atoi(n)
		} else {
			q.QueueBytes, err = parseSize(value)
		}
	case "delay":
		q.Delay, err = time.ParseDuration(value)
	case "jitter":
		q.Jitter, err = time.ParseDuration(value)
	case "reorderby":
		q.ReorderBy, err = time.ParseDuration(value)
	case "loss":
		q.Loss, err = parseProbability(value)
	case "reorder":
		q.Reorder, err = parseProbability(value)
	case "duplicate":
		q.Duplicate, err = parseProbability(value)
	case "down":
		q.Down, err = strconv.ParseBool(value)
	default:
		return fmt.Errorf("%q: no such link parameter", key)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", word, err)
	}
	*p = q
	return nil
}

// String writes p as words that [Params.Set] reads back.
func (p Params) String() string {
	var words []string
	add := func(set bool, format string, value any) {
		if set {
			words = append(words, fmt.Sprintf(format, value))
		}
	}
	percent := func(f float64) string {
		return strconv.FormatFloat(f, 'g', -1, 64)
	}
	add(p.Rate != 0, "rate=%dbit", p.Rate)
	add(p.Burst != 0, "burst=%d", p.Burst)
	add(p.QueueBytes != 0, "queue=%d", p.QueueBytes)
	add(p.QueuePackets != 0, "queue=%dp", p.QueuePackets)
	add(p.Delay != 0, "delay=%v", p.Delay)
	add(p.Jitter != 0, "jitter=%v", p.Jitter)
	add(p.Loss != 0, "loss=%s", percent(p.Loss))
	add(p.Reorder != 0, "reorder=%s", percent(p.Reorder))
	add(p.ReorderBy != 0, "reorderby=%v", p.ReorderBy)
	add(p.Duplicate != 0, "duplicate=%s", percent(p.Duplicate))
	add(p.Down, "down=%v", p.Down)
	return strings.Join(words, " ")
}

func parseRate(s string) (int64, error) {
	if s == "0" {
		return 0, nil
	}
	for _, unit := range []struct {
		suffix string
		scale  float64
	}{{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}, {"bit", 1}} {
		if n, ok := strings.CutSuffix(s, unit.suffix); ok {
			f, err := strconv.ParseFloat(n, 64)
			if err != nil {
				return 0, err
			}
			if f *= unit.scale; !(f >= 1 && f <= maxRate) {
				return 0, fmt.Errorf("want 1bit to %dbit", int64(maxRate))
			}
			return int64(f), nil
		}
	}
	return 0, fmt.Errorf("want a number with bit, kbit, mbit or gbit")
}

func parseSize(s string) (int, error) {
	scale := 1
	if n, ok := strings.CutSuffix(s, "KiB"); ok {
		s, scale = n, 1<<10
	} else if n, ok := strings.CutSuffix(s, "MiB"); ok {
		s, scale = n, 1<<20
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, err
	}
	if n < 0 || n > maxQueue/scale {
		return 0, fmt.Errorf("want 0 to %d bytes", maxQueue)
	}
	return n * scale, nil
}

// parseProbability reads "1%" or "0.01".
func parseProbability(s string) (float64, error) {
	n, isPercent := strings.CutSuffix(s, "%")
	f, err := strconv.ParseFloat(n, 64)
	if err != nil {
		return 0, err
	}
	if isPercent {
		f /= 100
	}
	if !(f >= 0 && f <= 1) {
		return 0, fmt.Errorf("want 0 to 100%%")
	}
	return f, nil
}
