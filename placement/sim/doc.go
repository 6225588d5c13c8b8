// Package sim compares placement policies in a simulated mesh. It is all
// tests: nothing in it ends up in the program.
//
// Users walk over a plane that is covered with edge nodes; each has a worker,
// and enters the mesh at the edge that is nearest. Round trips grow with
// distance, nodes have episodes of congestion and of load from elsewhere, and
// the workers themselves load the nodes they run on. A policy sees what a node
// would see: coordinates with errors, measured round trips with noise, its own
// load, and those of others that are up to two seconds old. Every second the
// simulation computes, from the truth, whether each user's objective is kept.
//
// The files: world_test.go (places, delays, traces), run_test.go (the
// discrete-event simulation), policy_test.go, oracle_test.go, and sim_test.go,
// which compares.
//
// BenchmarkPolicies makes the figures of the design document. The environment
// sets its scale: SIM_NODES (1000; ten workers for each), SIM_SECONDS (600) and
// SIM_SEEDS (1,2). With -bench 'Policies/radio=true' it leaves out the worlds
// whose users' own links are never slow.
package sim
