package suspend

// A Description is all that a host needs to know of a program besides the
// rewritten module, for hosts that are not written in Go: with it and the imports
// of SuspendModule, which do what the methods of Stack do, any runtime can stop a
// program and continue it. It is JSON; lists are as short as they can be, and
// their elements in the order of the fields named.
type Description struct {
	// Version is that of the rewriter.
	Version int `json:"version"`
	// Functions are those that can stop: index, units of results, first point,
	// points, ways, units.
	Functions [][6]uint32 `json:"functions"`
	// Points: function (in Functions), 1 if it is in front of a call, results,
	// region, target, first value, values, units.
	Points [][8]uint32 `json:"points"`
	// Regions: parent (in Regions, or -1), target, depth.
	Regions [][3]int64 `json:"regions"`
	// Units are how many units each value of a frame takes, and Places where it
	// is in the union of its function's frames.
	Units  []uint32 `json:"units"`
	Places []uint32 `json:"places"`
	// Globals and Hidden are what a State has of them: export and type's byte.
	Globals []DescribedGlobal `json:"globals"`
	Hidden  []DescribedGlobal `json:"hidden"`
	Tables  []string          `json:"tables"` // TableExport of each
	// Start is the export of the start function; empty if there is none.
	Start  string `json:"start"`
	Memory string `json:"memory"`
}

// A DescribedGlobal is a mutable global.
type DescribedGlobal struct {
	Export string `json:"export"`
	Type   byte   `json:"type"`
}

// Describe returns the program's description. It shares nothing with it.
func (p *Program) Describe() Description {
	d := Description{
		Version: Version, Places: append([]uint32{}, p.places...),
		Start: p.Info.Start, Memory: p.Info.Memory,
	}
	for _, f := range p.functions {
		results := uint32(0)
		for i := range f.results {
			results += unitsOf(f.results[i])
		}
		d.Functions = append(d.Functions, [6]uint32{f.index, results, f.first, f.points, f.ways, f.units})
	}
	for _, pt := range p.points {
		before := uint32(0)
		if pt.kind == pointBefore {
			before = 1
		}
		d.Points = append(d.Points, [8]uint32{pt.function, before, pt.results, pt.region, pt.target, pt.first, pt.values, pt.units})
	}
	for _, r := range p.regions {
		d.Regions = append(d.Regions, [3]int64{int64(r.parent), int64(r.target), int64(r.depth)})
	}
	for _, t := range p.types {
		d.Units = append(d.Units, unitsOf(t))
	}
	for _, g := range p.Info.Globals {
		d.Globals = append(d.Globals, DescribedGlobal{g.Export, g.Type})
	}
	for _, h := range p.Hidden {
		d.Hidden = append(d.Hidden, DescribedGlobal{h.Export, h.Type})
	}
	for _, t := range p.Tables {
		d.Tables = append(d.Tables, TableExport(t))
	}
	return d
}
