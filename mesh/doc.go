// Package mesh knows which nodes are out there and moves bytes between them.
//
// Everything a node says to another travels over one UDP port as QUIC, in
// mutually authenticated TLS 1.3 connections whose certificates were signed by
// the mesh's own certificate authority: gossip in datagrams and streams,
// control and page traffic in streams named by a protocol. Urgent and bulk
// traffic use separate connections, so that a demanded page never stands in
// the queue behind a bulk transfer. A transfer over a path that loses packets
// may use more of them ([Lane]).
//
// A node is named by its key ([NodeID]), never by its address, which may
// change at any time. Membership is kept by gossip (package memberlist);
// liveness of a connection is QUIC's own.
//
// The types of quic-go and memberlist stop in this package.
package mesh
