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
//
// It is reused from one function to the next.
type liveness struct {
	f     *function
	words int // of one set
	cur   []uint64
	heads []uint64 // what is live at the heads of loops, in the order of headOf
	// headOf is, by construct, one more than the number of its set in heads.
	headOf []uint32
	// after and orElse hold, by depth, what is live behind an open construct and
	// at the head of its second arm.
	after, orElse []uint64
	depth         []uint32 // of each construct that is open; by construct
	open          uint32   // how many are
}

// find notes what is live in f.
func (l *liveness) find(f *function) {
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
		sets := zeroes(f.sets, words*(1+len(f.points)))
		f.sets = sets
		f.entry, sets = sets[:words:words], sets[words:]
		for i := range f.points {
			f.points[i].live, sets = sets[:words:words], sets[words:]
		}
		l.f, l.words, l.cur = f, words, f.entry
		l.heads, l.headOf = l.heads[:0], zeroes(l.headOf, len(f.ctl))
		l.depth = zeroes(l.depth, len(f.ctl))
		l.after, l.orElse = l.after[:0], l.orElse[:0]
		for range 10 {
			if !l.round() {
				return
			}
		}
	}
	all := zeroes(f.sets, words)
	f.sets = all
	for j := range f.locals {
		all[j/64] |= 1 << (j % 64)
	}
	for i := range f.points {
		f.points[i].live = all
	}
	f.entry = all
}

// zeroes returns n zeroes, in b's place if they fit.
func zeroes[T uint32 | uint64](b []T, n int) []T {
	b = slices.Grow(b[:0], n)[:n]
	clear(b)
	return b
}

// label returns what is live where a branch to the construct leads.
func (l *liveness) label(c uint32) []uint64 {
	if l.f.ctl[c].op == opLoop {
		return l.head(c)
	}
	return l.at(l.after, l.depth[c])
}

// at returns one of sets.
func (l *liveness) at(sets []uint64, i uint32) []uint64 {
	return sets[int(i)*l.words:][:l.words]
}

func (l *liveness) head(c uint32) []uint64 {
	if l.headOf[c] == 0 {
		l.heads = l.more(l.heads)
		l.headOf[c] = uint32(len(l.heads) / max(l.words, 1))
	}
	return l.at(l.heads, l.headOf[c]-1)
}

// more appends an empty set.
func (l *liveness) more(sets []uint64) []uint64 {
	n := len(sets) + l.words
	sets = slices.Grow(sets, l.words)[:n]
	clear(sets[n-l.words:])
	return sets
}

// round goes through the function once and says whether a loop's head has
// changed.
func (l *liveness) round() (changed bool) {
	f := l.f
	l.open = 0
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
			d := l.open
			if int(d)*l.words == len(l.after) {
				l.after, l.orElse = l.more(l.after), l.more(l.orElse)
			}
			l.open++
			l.depth[ins.a] = d
			if f.ctl[ins.a].deadEnd {
				clear(l.cur)
			}
			copy(l.at(l.after, d), l.cur)
			copy(l.at(l.orElse, d), l.cur)
		case opElse:
			d := l.depth[ins.a]
			copy(l.at(l.orElse, d), l.cur)
			copy(l.cur, l.at(l.after, d))
		case opBlock, opLoop, opIf:
			d := l.depth[ins.a]
			l.open = d
			switch ins.op {
			case opLoop:
				h := l.head(ins.a)
				if !slices.Equal(h, l.cur) {
					copy(h, l.cur)
					changed = true
				}
			case opIf:
				l.join(l.at(l.orElse, d))
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
