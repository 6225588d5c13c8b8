package suspend

import "slices"

// maxStraight is the number of instructions that may run, at most, between two
// suspend points where no loop or recursion is involved. At a nanosecond each it
// is far below what anyone notices.
const maxStraight = 200_000

// A plan says which functions can stop in their middle. A function needs no
// suspend points if it has no loop, is not part of a recursion, calls nothing
// that can stop, and is done after maxStraight instructions.
type plan struct {
	suspend []bool // by function
	again   []bool // by function: it can be called while it runs
	types   []bool // by type: some function of the type that a table can hold suspends
	block   []bool // by imported function: it can block
}

func (p *plan) suspends(f uint32) bool         { return p.suspend[f] }
func (p *plan) suspendsIndirect(t uint32) bool { return p.types[t] }
func (p *plan) blocks(f uint32) bool           { return int(f) < len(p.block) && p.block[f] }

// A callGraph has a node for each function and, behind those, one for each
// type, which stands for all functions of that type that a table can hold:
// without it a module of n indirect calls and n functions would have n² edges.
type callGraph struct {
	edges []uint32 // callees, all nodes' one behind another
	first []uint32 // where those of each node begin, and the end
	seed  []bool   // nodes that suspend by themselves
	size  []uint32 // instructions
}

// suspending returns which nodes can suspend: the seeds, those on a cycle, those
// that reach either, and those that can run for long; and which are on a cycle.
//
// It is Tarjan's algorithm with a stack of its own (R. Tarjan, "Depth-First
// Search and Linear Graph Algorithms", 1972): components come out callees
// first, so one look at the callees settles each.
func (g *callGraph) suspending() (suspend, again []bool) {
	n := len(g.first) - 1
	const none = ^uint32(0)
	var (
		weight  = make([]uint32, n)
		number  = make([]uint32, n) // order of discovery, from 1
		low     = make([]uint32, n)
		next    = make([]uint32, n)
		onStack = make([]bool, n)
		stack   []uint32 // of the components not yet complete
		path    []uint32 // of the search
		counter uint32
	)
	suspend, again = append(suspend, g.seed...), make([]bool, n)
	for root := range uint32(n) {
		if number[root] != 0 {
			continue
		}
		path = append(path, root)
		for len(path) > 0 {
			v := path[len(path)-1]
			if number[v] == 0 {
				counter++
				number[v], low[v] = counter, counter
				next[v] = g.first[v]
				stack = append(stack, v)
				onStack[v] = true
			}
			child := none
			for ; next[v] < g.first[v+1]; next[v]++ {
				w := g.edges[next[v]]
				if number[w] == 0 {
					child = w
					break
				}
				if onStack[w] {
					low[v] = min(low[v], low[w])
				}
			}
			if child != none {
				path = append(path, child)
				continue
			}
			path = path[:len(path)-1]
			if low[v] != number[v] {
				p := path[len(path)-1]
				low[p] = min(low[p], low[v])
				continue
			}
			// v is the root of a component, which is on the stack from v up.
			at := len(stack) - 1
			for stack[at] != v {
				at--
			}
			component := stack[at:]
			stack = stack[:at]
			any := len(component) > 1
			for _, w := range component {
				onStack[w] = false
				again[w] = len(component) > 1 || slices.Contains(g.edges[g.first[w]:g.first[w+1]], w)
				any = any || g.suspend(w, suspend, weight)
			}
			for _, w := range component {
				suspend[w] = any
			}
		}
	}
	return suspend, again
}

// suspend says whether node v suspends, if it is in no cycle but with itself.
// All its callees are settled.
func (g *callGraph) suspend(v uint32, suspend []bool, weight []uint32) bool {
	if suspend[v] {
		return true
	}
	// A callee that suspends has polls of its own, so only others count. What
	// is called may be the same function many times over: each call counts.
	total := uint64(g.size[v])
	for _, w := range g.edges[g.first[v]:g.first[v+1]] {
		if w == v || suspend[w] {
			return true
		}
		total += uint64(weight[w])
	}
	weight[v] = uint32(min(total, 1<<30))
	return total > maxStraight
}

// makePlan reads all bodies once, for who calls whom.
func (m *rewriter) makePlan() {
	functions := len(m.functions)
	g := callGraph{
		first: make([]uint32, 0, functions+len(m.types)+1),
		seed:  make([]bool, functions+len(m.types)),
		size:  make([]uint32, functions+len(m.types)),
	}
	p := &plan{block: make([]bool, m.imported)}
	for i := range p.block {
		p.block[i] = m.blocks(uint32(i))
		g.seed[i] = p.block[i]
		g.first = append(g.first, 0)
	}
	// A value of the type may be in a frame even where nothing makes one, behind
	// code that is never reached.
	for _, t := range m.types {
		m.refs = m.refs || slices.Contains(t.params, typFuncref) || slices.Contains(t.results, typFuncref)
	}
	for f := range m.decoded(nil) {
		g.first = append(g.first, uint32(len(g.edges)))
		g.seed[f.index] = f.loops || m.anywhere.Everywhere
		g.size[f.index] = uint32(f.size)
		g.edges = append(g.edges, f.calls...)
		for _, t := range f.indirect {
			g.edges = append(g.edges, uint32(functions)+m.sameType[t])
		}
		for _, ins := range f.code {
			if ins.op == opRefFunc {
				m.taken[m.referred(ins.a)] = true
			}
		}
		m.refs = m.refs || f.refs
		m.drops = m.drops || f.drops
	}
	if m.straight {
		p.suspend, p.again, p.types = make([]bool, functions), make([]bool, functions), make([]bool, len(m.types))
		m.plan = p
		return
	}
	// Types come behind functions: those that are equal share one node.
	members := make([][]uint32, len(m.types))
	for i, taken := range m.taken {
		if taken {
			t := m.sameType[m.functions[i]]
			members[t] = append(members[t], uint32(i))
		}
	}
	for t := range m.types {
		g.first = append(g.first, uint32(len(g.edges)))
		// The largest callee is what an indirect call costs at most; counting
		// all of them is on the safe side.
		g.edges = append(g.edges, members[t]...)
	}
	g.first = append(g.first, uint32(len(g.edges)))
	s, again := g.suspending()
	p.suspend, p.again = s[:functions], again[:functions]
	p.types = make([]bool, len(m.types))
	for t := range m.types {
		p.types[t] = s[uint32(functions)+m.sameType[t]]
	}
	m.plan = p
}

// canBlock says whether an imported function may be unable to finish, so that
// the worker can be asked to stop in front of it. See Stack.Block.
func canBlock(module, name string) bool {
	if module != WASIModule {
		return false
	}
	switch name {
	case "fd_read", "fd_write", "fd_pread", "fd_pwrite", "fd_filestat_set_size", "poll_oneoff", "sched_yield",
		"sock_accept", "sock_recv", "sock_send":
		return true
	}
	return false
}
