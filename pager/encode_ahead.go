package pager

// An ahead makes bulk frames ready while the one before is being written, so
// that naming and compressing pages go on beside the network. What comes next
// is a guess: a demand may take pages of it, or the order may change. A frame
// made for another run than the one to be sent is thrown away, and with it
// only time.
//
// The goroutine that pushes calls ask and take; run does the work.
type ahead struct {
	patch patchScope // of the stream
	work  chan aheadWork
	ready chan *framer
	asked Run     // what is being made, or lies ready; empty if nothing
	spare *framer // belongs to who pushes while nothing is asked
}

type aheadWork struct {
	run   Run
	codec codec
	into  *framer
}

func newAhead(patch patchScope, accepts Encodings) *ahead {
	return &ahead{patch: patch, work: make(chan aheadWork, 1), ready: make(chan *framer, 1), spare: newFramer(accepts)}
}

// run makes frames until stop is called.
func (a *ahead) run(s *Source) {
	for w := range a.work {
		s.describe(w.into, w.run, a.patch)
		w.into.pack(w.codec)
		a.ready <- w.into
	}
}

func (a *ahead) stop() { close(a.work) }

// ask has a frame made for a run, unless another is being made. It does not
// wait.
func (a *ahead) ask(r Run, c codec) {
	if a.asked.Count > 0 {
		select {
		case a.spare = <-a.ready: // made for nothing
		default:
			return
		}
	}
	a.asked = r
	a.work <- aheadWork{r, c, a.spare}
	a.spare = nil
}

// take returns the frame for a run if it was asked for, made or in the making.
// It belongs to the caller, who gives the one used before in return.
func (a *ahead) take(r Run, used *framer) (*framer, bool) {
	if a.asked != r {
		return used, false
	}
	a.asked = Run{}
	f := <-a.ready
	a.spare = used
	return f, true
}
