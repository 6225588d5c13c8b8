package mesh

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

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

// The ring goes through all who live, in the order of their ids, and round.
func TestRing(t *testing.T) {
	alive, dead := &memberState{state: Alive}, &memberState{state: Dead}
	for _, c := range []struct {
		name       string
		members    map[NodeID]*memberState
		prev, next NodeID
	}{
		{"alone", map[NodeID]*memberState{"m": alive}, "", ""},
		{"two", map[NodeID]*memberState{"m": alive, "c": alive}, "", "c"},
		{"in the middle", map[NodeID]*memberState{"m": alive, "a": alive, "l": alive, "n": alive, "z": alive}, "l", "n"},
		{"at the end", map[NodeID]*memberState{"m": alive, "a": alive, "b": alive, "l": alive}, "l", "a"},
		{"at the beginning", map[NodeID]*memberState{"m": alive, "n": alive, "y": alive, "z": alive}, "z", "n"},
		{"not the dead", map[NodeID]*memberState{"m": alive, "a": alive, "l": dead, "n": dead, "z": alive}, "a", "z"},
	} {
		m := &Mesh{ms: &Membership{ID: "m"}, members: c.members, ringStale: true}
		for range 2 { // the second time as remembered
			if prev, next := m.ring(); prev != c.prev || next != c.next {
				t.Errorf("%s: %q and %q, want %q and %q", c.name, prev, next, c.prev, c.next)
			}
		}
	}
}

// Of a round's packets of news the first go each way round the ring, unless a
// neighbour cannot be reached; the others, and what is meant for one that fails,
// go to whom memberlist picked, and nobody has two.
func TestNewsGoRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const interval = 200 * time.Millisecond
		tr := &transport{peers: make(map[NodeID]*peer), neighbours: minNeighbours}
		for _, id := range []NodeID{"a", "b", "c", "prev", "next", "failing"} {
			tr.peers[id] = &peer{id: id, failing: id == "failing"}
		}
		prev, next := NodeID("prev"), NodeID("next")
		g := newGossipTransport(tr, interval, func() (NodeID, NodeID) { return prev, next })
		check := func(picked, want string) {
			t.Helper()
			for range 2 {
				time.Sleep(interval)
				var to []string
				for id := range strings.FieldsSeq(picked) {
					to = append(to, string(g.newsTo(NodeID(id))))
				}
				if got := strings.Join(to, " "); got != want {
					t.Errorf("picked %s: went to %s, want %s", picked, got, want)
				}
			}
		}
		check("a b c", "next prev c")
		check("a b next prev c", "next prev a b c")
		check("next prev a", "next prev a")
		check("prev next a", "next prev a")
		check("a next prev b", "next prev a b")
		check("prev a b next c", "next prev b a c")
		check("failing a b c failing", "failing next prev c failing")
		tr.peers["next"].failing = true
		check("a b c", "a prev c")
		tr.peers["next"].failing = false
		prev = ""
		check("next a", "next a")
		next = ""
		check("a b c", "a b c")
	})
}
