package mesh

import "testing"

// What memberlist sends to one node in particular must go to that node; see
// isPersonal for the format.
func TestPersonalPackets(t *testing.T) {
	const suspect, alive, user = 3, 4, 8
	sum := func(b ...byte) []byte { return append([]byte{mlChecksummed, 1, 2, 3, 4}, b...) }
	for _, c := range []struct {
		name string
		b    []byte
		want bool
	}{
		{"ping", []byte{mlPing, 0x80}, true},
		{"ping with a checksum", sum(mlPing, 0x80), true},
		{"indirect ping", sum(mlIndirectPing, 0x80), true},
		{"ack", sum(mlAck, 0x80), true},
		{"nack", sum(mlNack, 0x80), true},
		{"ping with news behind", sum(mlCompound, 2, 0, 2, 0, 3, mlPing, 0x80, alive, 1, 2), true},
		{"news", sum(alive, 0x80), false},
		{"suspicion", sum(suspect, 0x80), false},
		{"message", sum(user, 1), false},
		{"several news", sum(mlCompound, 2, 0, 2, 0, 3, alive, 0x80, user, 1, 2), false},
		{"empty", nil, true},
		{"compound of nothing", sum(mlCompound, 0), true},
		{"compound cut short", sum(mlCompound, 9, 0, 2), true},
	} {
		if got := isPersonal(c.b); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
