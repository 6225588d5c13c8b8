// Package manifest is the file in which an app says what it needs: which
// module it runs, what latency its users can bear, where it may be placed, how
// willingly it moves, and who takes it when its node goes away.
//
//	apiVersion: meshnode/v1alpha1
//	kind: App
//	name: physics
//	module: {path: physics.wasm}
//	objectives:
//	  event: {max: 30ms, quantile: p99, window: 10s}
//	placement:
//	  require: {tier: [device, edge]}
//	fallback:
//	  - {tier: cloud}
//
// Everything follows from the types in app.go. Their struct tags say how a
// field is called, what it accepts, what it is when left out and what it is
// for, and the same tags are read three times: by the decoder ([Parse]), by
// the encoder that shows all defaults ([App.Effective]) and by the generator
// of the JSON Schema ([Schema]). So the three cannot disagree. What a tag
// cannot say, rules between fields, is in check.go.
//
// A manifest is a small, strict dialect of YAML: no anchors, aliases, tags or
// merge keys, one document, unknown and repeated keys refused, durations,
// sizes and percentages with their units. Every problem is reported, not only
// the first, each with its line, the reason, and what would be accepted.
package manifest
