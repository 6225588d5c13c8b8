package placement

import (
	"encoding/json"
	"time"
)

// What is printed gives durations in milliseconds, in fields that end in Ms.

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// MarshalJSON implements json.Marshaler.
func (o MoveOption) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Strategy     Strategy `json:"strategy"`
		Possible     bool     `json:"possible"`
		Meets        bool     `json:"meets"`
		InTime       bool     `json:"inTime"`
		BeforeMs     float64  `json:"beforeMs"`
		BlackoutMs   float64  `json:"blackoutMs"`
		BlackoutAtMs float64  `json:"blackoutAtMs"`
		DrainMs      float64  `json:"drainMs"`
		StallMs      float64  `json:"stallMs"`
		Bytes        int64    `json:"bytes"`
		Rounds       int      `json:"rounds"`
	}{
		o.Strategy, o.Possible, o.Meets, o.InTime, millis(o.Before), millis(o.Blackout), millis(o.BlackoutAt),
		millis(o.Drain), millis(o.Stall), o.Bytes, o.Rounds,
	})
}

// MarshalJSON implements json.Marshaler.
func (p MovePrediction) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Auto    Strategy     `json:"auto"`
		Options []MoveOption `json:"options"`
	}{p.Auto, p.Options[:]})
}

// MarshalJSON implements json.Marshaler. Option and EventMs are there only when
// there is a node To.
func (d Decision) MarshalJSON() ([]byte, error) {
	out := struct {
		Worker     WorkerID     `json:"worker"`
		At         time.Time    `json:"at"`
		Action     Action       `json:"action"`
		Reason     Reason       `json:"reason"`
		Text       string       `json:"text"`
		From       NodeID       `json:"from,omitempty"`
		To         NodeID       `json:"to,omitempty"`
		Next       []NodeID     `json:"next,omitempty"`
		Until      *time.Time   `json:"until,omitempty"`
		Degraded   bool         `json:"degraded,omitempty"`
		Cost       float64      `json:"cost"`
		CostThere  float64      `json:"costThere"`
		Gain       float64      `json:"gain"`
		Move       *MoveOption  `json:"move,omitempty"`
		EventMs    float64      `json:"eventMs,omitempty"`
		Candidates int          `json:"candidates"`
		Passed     int          `json:"passed"`
		Measure    []PathWanted `json:"measure,omitempty"`
	}{
		Worker: d.Worker, At: d.At, Action: d.Action, Reason: d.Reason, Text: d.Reason.Text(), From: d.From, To: d.To, Next: d.Next,
		Degraded: d.Degraded, Cost: d.Cost, CostThere: d.CostThere, Gain: d.Gain, Candidates: d.Candidates, Passed: d.Passed, Measure: d.Measure,
	}
	if !d.Until.IsZero() {
		out.Until = &d.Until
	}
	if d.To != "" {
		out.EventMs = millis(d.Event)
		if d.From != "" && d.Option.Possible {
			out.Move = &d.Option
		}
	}
	return json.Marshal(out)
}
