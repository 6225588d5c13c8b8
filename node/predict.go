package node

import (
	"cmp"
	"context"
	"math"
	"time"

	"meshnode/mesh"
	"meshnode/node/control"
	"meshnode/node/handover"
	"meshnode/placement"
	"meshnode/placement/manifest"
)

// strategies are all there are, in the order of control.Strategies, with what
// placement calls them: the one model of a move is there.
var strategies = []struct {
	handover  handover.Strategy
	placement placement.Strategy
}{
	{handover.Hybrid, placement.Hybrid},
	{handover.PostCopy, placement.PostCopy},
	{handover.PreCopy, placement.PreCopy},
	{handover.StopAndCopy, placement.StopAndCopy},
}

// predicted is what placement says of a move by s.
func predicted(in placement.MoveInput, s handover.Strategy) placement.MoveOption {
	p := placement.PredictMove(in)
	for _, k := range strategies {
		if k.handover == s {
			return p.Options[k.placement]
		}
	}
	return *p.Chosen()
}

// prediction is what placement says of in, for one strategy, in the words of the
// control API.
func prediction(in *placement.MoveInput, o placement.MoveOption) control.Prediction {
	return control.Prediction{
		Strategy: o.Strategy.String(), BlackoutMs: control.Millis(o.Blackout), TotalMs: control.Millis(o.Total()),
		Bytes: uint64(o.Bytes), Rounds: o.Rounds, RateAssumed: in.Rate == 0,
		BreaksBlackout: in.Blackout != nil && o.BlackoutAt > in.Blackout.Max.D(),
	}
}

// known is what is known of a move to a node without asking it. The worker's
// memory is left to the caller.
func (n *Node) known(to mesh.NodeID) placement.MoveInput {
	in := placement.MoveInput{Untracked: !n.support.Tracking()}
	in.Rate, in.Model = n.shown(to)
	if m, ok := n.mesh.Member(to); ok {
		in.Paging = m.Record.Paging == "userfaultfd"
	}
	if e, ok := n.rtts.get(to); ok {
		in.RTT = e.RTT
	} else if rtt, ok := n.mesh.Estimate(n.id, to); ok {
		in.RTT.P50 = rtt
	}
	return in
}

// shown is what moves to a node have shown: the rate, in bytes a second, which is
// this node's cap where that is less, 0 if nothing is known, and what they have
// taught.
func (n *Node) shown(to mesh.NodeID) (rate float64, model placement.MoveModel) {
	rate, model = n.paths.known(to)
	if limit := float64(n.cfg.PushRate); limit > 0 && limit < cmp.Or(rate, placement.AssumedRate) {
		rate = limit
	}
	return rate, model
}

// facts is known, with a round trip of this moment; without an answer there is
// none. Of some pings the shortest counts, since what they take longer is
// mostly this machine's doing, or a queue's.
func (n *Node) facts(ctx context.Context, to mesh.NodeID) placement.MoveInput {
	in := n.known(to)
	in.RTT = placement.RTT{}
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	start := time.Now()
	for i := 0; i < planPings && time.Since(start) < planPingTime; i++ {
		p, err := n.mesh.Ping(ctx, to)
		if err != nil {
			break
		}
		rtt := p.RTT
		if p.Min > 0 {
			rtt = min(rtt, p.Smoothed)
		}
		if in.RTT.P50 == 0 || rtt < in.RTT.P50 {
			in.RTT.P50 = rtt
		}
	}
	return in
}

// leftAt estimates how much of a worker's memory a node still holds: the one
// that it came from has all but what was written since, which is taken to be
// spread over all of it. memory is in bytes, dirty in bytes a second.
func (w *worker) leftAt(to mesh.NodeID, memory int64, dirty float64, now time.Time) int64 {
	if len(w.holders) == 0 || w.holders[0] != to || w.arrived.IsZero() || memory <= 0 {
		return 0
	}
	return int64(float64(memory) * math.Exp(-dirty*now.Sub(w.arrived).Seconds()/float64(memory)))
}

// strategy returns what a strategy of the control API comes to for a worker
// that is to move there: for "auto" what the model chooses.
func (n *Node) strategy(name string, w *worker, to mesh.NodeID) handover.Strategy {
	for _, s := range strategies {
		if s.handover.String() == name {
			return s.handover
		}
	}
	in := n.known(to)
	in.Memory, in.Blackout = w.memoryNow(), w.blackoutObjective()
	return chosen(in)
}

// chosen is the strategy that "auto" comes to.
func chosen(in placement.MoveInput) handover.Strategy {
	auto := placement.PredictMove(in).Auto
	for _, s := range strategies {
		if s.placement == auto {
			return s.handover
		}
	}
	panic("strategy " + auto.String() + " is not in the list")
}

// blackoutObjective is how long the worker's manifest lets a move stop it, or nil.
func (w *worker) blackoutObjective() *manifest.Objective {
	app, _, _, _ := w.place.get()
	if app == nil {
		return nil
	}
	return app.Objectives.Blackout
}

// pauseLeft is how long a worker that moves by s may stand still for pages, if all
// of them have to be there before it resumes: what its manifest lets a move stop it
// for, less what such a move takes with none to bring. 0 is no time, or no such
// objective.
func (n *Node) pauseLeft(w *worker, to mesh.NodeID, s handover.Strategy) time.Duration {
	in := n.known(to)
	in.Memory, in.Blackout = w.memoryNow(), w.blackoutObjective()
	if in.Blackout == nil || s != handover.PreCopy && (s != handover.Hybrid || in.Paging) {
		return 0
	}
	in.Cached = in.Memory
	return max(in.Blackout.Max.D()-predicted(in, s).BlackoutAt, 0)
}

// learn takes from a finished move what the path carries, and how the move
// differed from what was predicted.
func (m *moveOut) learn() {
	m.forecast.mu.Lock()
	option := m.forecast.option
	m.forecast.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.result.Outcome != handover.Moved || m.frozen.IsZero() {
		return // the time was spent waiting, or was not watched
	}
	rate := m.carriedLocked()
	if rate > 0 {
		m.n.paths.learn(m.to, rate, m.finished)
	}
	if option != nil && !m.running.IsZero() {
		m.n.paths.learnModel(m.to, option, placement.MoveMeasured{
			Blackout: m.blackoutLocked(), Total: m.finished.Sub(m.started), Bytes: int64(m.sentLocked().Bytes), Rate: rate,
		}, m.finished)
	}
}

// carriedLocked is what the path has carried, in bytes a second: that of the
// rounds, or else that of the drain; 0 if it was too little to tell.
func (m *moveOut) carriedLocked() float64 {
	if m.writes != nil && m.writes.ready() && m.writes.rounds != nil {
		if st := m.writes.rounds.Stats(); st.Rate > 0 && st.Bytes >= rateFrom {
			// The rate is a mean of the latest rounds, by bytes. Whatever it says,
			// the path has carried all that they sent in the time that there was.
			return max(st.Rate, float64(st.Bytes)/m.frozen.Sub(m.started).Seconds())
		}
	}
	if m.pages != nil {
		if bytes := m.pages.Stats().Bytes; bytes >= rateFrom {
			return float64(bytes) / m.finished.Sub(m.frozen).Seconds()
		}
	}
	return 0
}
