package manifest

import "fmt"

// check reports what breaks the rules between fields, and fills in the one
// default that depends on another field. Rules that JSON Schema can express
// are repeated in rules of schema.go.
func check(a *App, report func(path, reason, accepted string)) {
	if (a.Module.Path == "") == (a.Module.Hash == "") {
		report("module", "names the module twice or not at all", "exactly one of path, hash")
	}
	for _, o := range []struct {
		name string
		o    *Objective
	}{{"blackout", a.Objectives.Blackout}, {"event", a.Objectives.Event}, {"converge", a.Objectives.Converge}} {
		if o.o != nil {
			checkObjective("objectives."+o.name, o.o, report)
		}
	}
	seen := map[string]bool{}
	for i := range a.Objectives.RTT {
		o := &a.Objectives.RTT[i]
		path := fmt.Sprintf("objectives.rtt[%d]", i)
		checkObjective(path, &o.Objective, report)
		if seen[o.To] {
			report(path+".to", "a second objective for "+o.To, "one for each other end")
		}
		if o.To == "app/"+a.Name {
			report(path+".to", "is the app itself", "users, or app/ and another app's name")
		}
		seen[o.To] = true
	}
	checkPredicate("placement.require", &a.Placement.Require, report)
	for i := range a.Placement.Prefer {
		path := fmt.Sprintf("placement.prefer[%d]", i)
		p := &a.Placement.Prefer[i].Predicate
		if p.Empty() {
			report(path, "prefers nothing in particular", "at least one of tier, arch, nodes, cores, memory, accelerators, labels")
		}
		checkPredicate(path, p, report)
	}
	ifs := map[string]bool{}
	for i, f := range a.Placement.Interfaces {
		if ifs[f.Name] {
			report(fmt.Sprintf("placement.interfaces[%d].name", i), f.Name+" is listed twice", "each interface once")
		}
		ifs[f.Name] = true
	}
	overs := map[string]bool{}
	for i, s := range a.Placement.Spread {
		if overs[s.Over] {
			report(fmt.Sprintf("placement.spread[%d].over", i), s.Over+" is listed twice", "each once")
		}
		overs[s.Over] = true
	}
	for i, f := range a.Fallback {
		if (f.Node == "") == (f.Tier == "") {
			report(fmt.Sprintf("fallback[%d]", i), "names both a node and a tier, or neither", "exactly one of node, tier")
		}
	}
	if a.OnDisconnect.Action == DisconnectFallback && len(a.Fallback) == 0 {
		report("onDisconnect.action", "is fallback, and there is no fallback list", "run, pause; or a fallback list")
	}
	if a.OnDisconnect.Checkpoint > 0 && a.OnDisconnect.Action != DisconnectFallback {
		report("onDisconnect.checkpoint", "has nobody to keep checkpoints: the action is "+string(a.OnDisconnect.Action), "action: fallback; or leave it out")
	}
}

func checkObjective(path string, o *Objective, report func(path, reason, accepted string)) {
	switch {
	case o.Mode == Hard && o.Weight != 0:
		report(path+".weight", "a hard objective has no weight", "leave it out, or mode: soft")
	case o.Mode == Soft && o.Weight == 0:
		o.Weight = 1
	}
}

func checkPredicate(path string, p *Predicate, report func(path, reason, accepted string)) {
	for i, l := range p.Labels {
		n := 0
		for _, given := range [...]bool{len(l.In) > 0, len(l.NotIn) > 0, l.Exists} {
			if given {
				n++
			}
		}
		if n != 1 {
			report(fmt.Sprintf("%s.labels[%d]", path, i), "asks for nothing, or for more than one thing", "exactly one of in, notIn, exists: true")
		}
	}
}

// Empty says whether p has no terms.
func (p *Predicate) Empty() bool {
	return len(p.Tier) == 0 && len(p.Arch) == 0 && len(p.Nodes) == 0 && p.Cores == 0 && p.Memory == 0 &&
		len(p.Accelerators) == 0 && len(p.Labels) == 0
}
