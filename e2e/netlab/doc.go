// Package netlab is a network in one process: nodes that live in network
// namespaces of their own, joined by links whose rate, delay, jitter, loss
// and reordering are emulated in user space and can change while traffic
// flows. It needs no root: [Enter] moves the test binary into fresh user,
// mount and network namespaces.
//
// Each node has one TUN device, and all of them are held by one forwarding
// thread, the emulator. A packet written by a node's kernel goes hop by hop
// over the links of the shortest path to the node that owns its destination
// address, paying each link's price, and is then handed to that node's
// kernel. The kernels, sockets and programs on both sides are real; only the
// wire between them is not.
//
// The emulator rather than the kernel's netem, because netem is missing from
// many kernels and its loss and order cannot be reproduced from a seed.
//
// # The path of a packet over one link
//
//	queue (drop-tail) -> transmitter (rate, burst) -> loss -> delay, jitter, reordering
//
// The transmitter is a token bucket in its virtual-scheduling form (GCRA,
// ITU-T I.371 Annex A): with no burst it is a wire that sends one packet
// after the other, each for size/rate. Only packets that wait for it are
// queued; those that have left it are on the wire and limited by nothing but
// the delay. Loss comes after the transmitter, as it does on radio: a lost
// packet has used its share of the rate.
//
// Packets stay in order in each direction unless reordering is asked for,
// also while jitter is on or the delay is changed. What is on the wire or in
// the queue of a link that is cut is lost.
//
// # What the emulation costs
//
// Measured on the two cores of a virtual machine (kernel 6.18) by the
// benchmarks of this package, which print the figures of the machine they run
// on:
//
//   - A link without parameters adds 14 µs to the round trip of a small UDP
//     packet: 25 µs, where the loopback device takes 12 (BenchmarkEcho).
//   - With a delay the emulator delivers 0.6 µs late in the median, as long as
//     it gets a CPU: it is one thread of many, and when all CPUs are busy it
//     waits its turn, for milliseconds if need be. The ends of a link add the
//     100 to 500 µs that a sleeping CPU of a virtual machine takes to wake up.
//   - 120,000 to 150,000 packets a second get through, whatever their size,
//     at 3.1 to 3.5 µs of CPU time each, the receiving kernel's part included:
//     1.7 Gbit/s of UDP (BenchmarkFlood), 1.2 Gbit/s of TCP (BenchmarkTCP).
//   - Rates of 1 to 200 Mbit/s are kept within 0.2 %, 500 Mbit/s within 3 %
//     (BenchmarkRate).
//
// The emulator polls for up to 200 µs before an event is due, for at most a
// tenth of the time, and sleeps otherwise.
package netlab
