// Package e2e tests meshnode from outside: scripts that drive the built
// command on nodes of a network lab, and a test of what the packages may
// import.
//
// The scripts are in testdata/script. They are testscript scripts
// (github.com/rogpeppe/go-internal/testscript), run in parallel, each in a lab
// of its own (package netlab). Beside testscript's own commands they have:
//
//	node NAME [tier=TIER]
//		Makes a node. The commands that name one make it too; what is
//		left to say here is its tier (device if not said). The
//		environment variable ADDR_NAME holds its address, - in the name
//		becoming _.
//	link A B [key=value...]
//		Joins two nodes. Parameters are those of netlab's Params.Set, for
//		either direction: rate=50mbit delay=10ms jitter=1ms loss=1%
//		reorder=1% duplicate=1% queue=64KiB|100p burst=15000.
//	setlink A B key=value...
//		Changes some parameters of a link while it is in use.
//	oneway A B key=value...
//		The same for the direction from A to B alone; down=true cuts it.
//	cut A [B], heal A [B]
//		Cuts and heals one link, or all of a node's. Nothing goes round a
//		cut.
//	readdress NAME
//		Gives a node another address.
//	linkstats A B
//		Prints what happened on a link, from A to B, to stdout.
//
//	start NAME [join=OTHER] [token=OTHER] [tier=TIER] [flag...]
//		Runs `meshnode up` on a node, in the state directory $WORK/NAME,
//		with the node's name and the flags, and waits until it answers.
//		With join it gets a token first, from the node it joins or that
//		which token names. ! start wants it to end by itself instead,
//		with an error that is then in stderr.
//	shutdown NAME...
//		Ends it with SIGTERM, or several at once, and wants it to exit with 0.
//	crash NAME
//		Ends it with SIGKILL. (The names kill and stop are testscript's.)
//	restart NAME [flag...]
//		Starts it again, after a shutdown if it still runs, with the flags
//		it had, or with those given.
//	at NAME COMMAND...
//		Runs a command on a node, as exec does: it can be negated, put in
//		the background with & or &name& (letters and digits), and its output looked at with
//		stdout and stderr. meshnode finds the node's daemon.
//	fails CODE NAME COMMAND...
//		Like at, and wants that exit code.
//	waitfor [TIMEOUT] NAME COMMAND... -- REGEXP
//		Runs a command on a node until its standard output matches. With
//		!, until it does not. Without the timeout it gives up after two
//		minutes.
//	logged NAME REGEXP
//		Waits until the log of a node's daemon, $WORK/NAME.log, matches.
//
//	forge TOKENFILE FORGEDFILE
//		Writes a join token with a wrong secret.
//
// and, to be run by at:
//
//	load [-n N] [-window W] [-every D] [-via ADDR]... WORKER
//		A client of the counter app: N calls of `add 1` (without -n: until
//		SIGINT, which `kill -INT name` sends) through one
//		`meshnode worker attach`, W of them under way at a time, D apart.
//		Fails unless the replies are in order, each one more than the one
//		before, and the counter has grown by the number of calls. Prints
//		the calls and the longest gap between two replies. With -via it is
//		a client of the nodes at those addresses.
//	udp echo|ping ...
//		Plain packets, for tests of the lab itself.
//
// The conditions [netns] (labs are available; without them every script is
// skipped, with the reason), [clang] (clang builds WebAssembly for WASI), [qemu]
// (qemu-user-static emulates other processors) and
// [race] (meshnode has the race detector in it) exist. $APPS is the directory
// with the example apps built: counter.wasm and so on.
//
// # Environment
//
// MESHNODE_BIN is a meshnode to be tested in place of one built for the
// purpose; E2E_RACE=1 builds it with the race detector; NETLAB_SEED repeats
// the random decisions of an earlier run. The daemons' logs are printed when a
// script fails, and with -v.
//
// [BenchmarkTable] measures a corner of the table of moves, unless
// E2E_TABLE=full asks for all of it, hours; E2E_TABLE_MEMORY, E2E_TABLE_DIRTY
// and E2E_TABLE_STRATEGY are lists that take the place of its own, as
// 16MiB,512MiB; E2E_TABLE_REPEAT says how often to measure each cell; and
// E2E_TABLE_OUT is a directory for the results of each link, as JSON and drawn.
package e2e
