package handover

import "slices"

// An Answered is what to do about a message for which no machine lives. Every
// part of it may be empty.
type Answered struct {
	// Reply goes back to the sender.
	Reply *Message
	// Settle, unless zero, goes to the journal (Settle of the journal).
	Settle MoveID
	// Note is for the log.
	Note string
}

// Answer answers a message of a move for which this node has no live machine:
// rec is the journal's record of the
// message's worker (nil if none), incarnation is this
// node's. The node has recovered its journal ([Recover]) and looked for a live
// Source or Dest of the message's move first; a message for one of those must
// never come here. An OFFER never does either: it makes a Dest.
//
// It only speaks of what is on disk, so it may be asked again and again and by
// anyone in the mesh.
func Answer(rec *Record, m Message, incarnation uint64) Answered {
	reply := func(b Body) Answered {
		return Answered{Reply: &Message{Move: m.Move, Incarnation: incarnation, Ticket: m.Ticket, Worker: m.Worker, Body: b}}
	}
	switch b := m.Body.(type) {
	case Query:
		return reply(status(rec, m.Move, m.Worker, b.Epoch))
	case Commit:
		// No Dest has this ticket any more, so nobody here will ever take it;
		// unless it was taken and this is a late copy.
		return reply(status(rec, m.Move, m.Worker, b.Epoch))
	case FrozenBody:
		return reply(Refuse{Code: CodeTimeout, Reason: "the destination no longer holds this move", Hint: "try again"})
	case Done:
		if rec != nil && slices.Contains(rec.Unsettled, m.Move) {
			return Answered{Settle: m.Move}
		}
	case Accept, Filled:
		// The move was given up and the ABORT got lost. If it was given up by a
		// crash after COMMIT left, this is an old copy, and ABORT does nothing.
		return reply(Abort{Reason: "the source no longer holds this move"})
	case Drained:
		return done(rec, m, reply)
	case Status:
		if b.State == TookButLost || b.State == Took && b.Drained {
			return done(rec, m, reply)
		}
	}
	return Answered{Note: m.Body.Type().String() + " of a move that is over"}
}

// done tells a destination that this source will not ask again. That is so for
// every move that its journal does not hold in doubt: the entry is on disk
// before COMMIT leaves, and off it only once the move's end is.
func done(rec *Record, m Message, reply func(Body) Answered) Answered {
	if rec != nil && rec.Own == OwnMovingOut && rec.Move == m.Move {
		return Answered{Note: m.Body.Type().String() + " of a move in doubt that has no machine"}
	}
	return reply(Done{})
}

// status answers a question about the move that would have brought worker here
// in epoch, from the record of a destination that has no machine for it.
func status(rec *Record, move MoveID, worker string, epoch uint64) Status {
	const never = "it holds nothing of this move; it was given up, or the node restarted"
	if rec == nil || rec.Worker != worker {
		return Status{State: NeverTook, Reason: never}
	}
	s := Status{State: NeverTook, Epoch: rec.Epoch, Reason: never}
	switch {
	case rec.Move == move && rec.Own == OwnDeclined:
		s.Reason = rec.Reason
	case rec.Move == move && rec.Own == OwnTaken:
		// Its Dest ended, and not by taking it back: every page is in.
		return Status{State: Took, Epoch: rec.Epoch, Drained: true}
	case rec.Epoch == epoch && rec.Own == OwnLost:
		return Status{State: TookButLost, Epoch: rec.Epoch, Reason: rec.Reason}
	case slices.Contains(rec.Unsettled, move):
		return Status{State: MovedOn, Epoch: rec.Epoch}
	case rec.Epoch == epoch && (rec.Own == OwnRunning || rec.Own == OwnMovingOut):
		return Status{State: MovedOn, Epoch: rec.Epoch}
	case rec.Epoch > epoch:
		// A later epoch exists only because this one was taken, or because the
		// source took it back; and then the source is not asking.
		return Status{State: MovedOn, Epoch: rec.Epoch}
	}
	return s
}
