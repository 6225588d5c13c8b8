package suspend

import "slices"

// maxLiveBits bounds the work of finding out what is live in one function:
// branches and points times locals. Beyond it everything counts as live, which
// costs space in the frames and nothing else.
const maxLiveBits = 1 << 26

// liveness finds, for each suspend point, the locals whose value can still be
// read: the others need not be saved, and come back as zero.
//
// It goes through the code backwards. A branch back to a loop's head needs what
// is live there, which is known only once the loop has been gone through; so
// all is done again until the sets at the heads, which start empty, have
// stopped growing. For code as compilers make it, two or three rounds do.
type liveness struct {
	f     *function
	words int
	cur   []uint64
	heads map[uint32][]uint64 // by construct: at the head of a loop
	// after and orElse hold, by depth, what is live behind an open construct and
	// at the head of its second arm.
	after, orElse [][]uint64
	open          []uint32
	depth         []uint32 // of each construct that is open; by construct
}

func (f *function) liveness() {
	words := (len(f.locals) + 63) / 64
	cost := 0
	for _, ins := range f.code {
		switch ins.op {
		case opBlock, opLoop, opIf, opElse, opEnd, opBr, opBrIf, opBrTable, opReturn, opReturnCall, opReturnCallIn:
			cost++
		}
	}
	cost += len(f.targets) + len(f.points)
	if cost*words*64 <= maxLiveBits {
		sets := make([]uint64, words*len(f.points))
		for i := range f.points {
			f.points[i].live, sets = sets[:words:words], sets[words:]
		}
		l := &liveness{f: f, words: words, cur: make([]uint64, words), heads: map[uint32][]uint64{}, depth: make([]uint32, len(f.ctl))}
		for range 10 {
			if !l.round() {
				f.entry = l.cur
				return
			}
		}
	}
	all := make([]uint64, words)
	for j := range f.locals {
		all[j/64] |= 1 << (j % 64)
	}
	for i := range f.points {
		f.points[i].live = all
	}
	f.entry = all
}

// label returns what is live where a branch to the construct leads.
func (l *liveness) label(c uint32) []uint64 {
	if l.f.ctl[c].op == opLoop {
		return l.head(c)
	}
	return l.after[l.depth[c]]
}

func (l *liveness) head(c uint32) []uint64 {
	h := l.heads[c]
	if h == nil {
		h = make([]uint64, l.words)
		l.heads[c] = h
	}
	return h
}

// round goes through the function once and says whether a loop's head has
// changed.
func (l *liveness) round() (changed bool) {
	f := l.f
	l.open = l.open[:0]
	clear(l.cur)
	point := len(f.points) - 1
	for i := len(f.code) - 1; i >= 0; i-- {
		for point >= 0 && f.points[point].at == i && f.points[point].kind == pointCall {
			copy(f.points[point].live, l.cur)
			point--
		}
		ins := &f.code[i]
		switch ins.op {
		case opEnd:
			d := len(l.open)
			if d == len(l.after) {
				l.after = append(l.after, make([]uint64, l.words))
				l.orElse = append(l.orElse, make([]uint64, l.words))
			}
			l.open = append(l.open, ins.a)
			l.depth[ins.a] = uint32(d)
			if f.ctl[ins.a].deadEnd {
				clear(l.cur)
			}
			copy(l.after[d], l.cur)
			copy(l.orElse[d], l.cur)
		case opElse:
			d := l.depth[ins.a]
			copy(l.orElse[d], l.cur)
			copy(l.cur, l.after[d])
		case opBlock, opLoop, opIf:
			d := l.depth[ins.a]
			l.open = l.open[:d]
			switch ins.op {
			case opLoop:
				h := l.head(ins.a)
				if !slices.Equal(h, l.cur) {
					copy(h, l.cur)
					changed = true
				}
			case opIf:
				l.join(l.orElse[d])
			}
		case opBr:
			copy(l.cur, l.label(ins.a))
		case opBrIf:
			l.join(l.label(ins.a))
		case opBrTable:
			clear(l.cur)
			n := f.targets[ins.a]
			for _, c := range f.targets[ins.a+1 : ins.a+2+n] {
				l.join(l.label(c))
			}
		case opReturn, opReturnCall, opReturnCallIn, opUnreachable:
			clear(l.cur)
		case opLocalGet:
			l.cur[ins.a/64] |= 1 << (ins.a % 64)
		case opLocalSet, opLocalTee:
			l.cur[ins.a/64] &^= 1 << (ins.a % 64)
		}
		for point >= 0 && f.points[point].at == i {
			copy(f.points[point].live, l.cur)
			point--
		}
	}
	return changed
}

func (l *liveness) join(set []uint64) {
	for i, w := range set {
		l.cur[i] |= w
	}
}
