// Package control is the API through which a node is told what to do: HTTP and
// JSON over a unix socket in the node's state directory. The meshnode command
// is one client of it (see [Client]), anything that speaks HTTP can be another:
//
//	curl --unix-socket /var/lib/meshnode/control.sock http://meshnode/v1/workers
//
// Whoever can open the socket can do everything: it has mode 0600, in a
// directory of mode 0700, and there is no other authentication. The API is
// never served on the network. What nodes ask of each other for their clients
// travels over the mesh and is restricted to the routes marked with a star
// (see [Server.PeerHandler]).
//
// # Documents
//
// Every answer is a document with "apiVersion": "meshnode/v1alpha1" and a
// "kind", or for routes marked as a stream several, one a line
// (application/x-ndjson), each sent as soon as it is known. Under one
// apiVersion fields are only ever added: clients ignore those they do not
// know. Requests are stricter: unknown fields are refused. Names that end in
// Ms are milliseconds, in Bytes bytes; times are RFC 3339.
//
// A request that does not succeed is answered with an [Error], whose code says
// what kind of failure it is and goes with a fixed HTTP status and exit code
// of the command:
//
//	code         status  exit  meaning
//	invalid      400     2     makes no sense; nothing was tried
//	too-large    413     2     beyond a limit that the message names
//	denied       403     7     not permitted
//	not-found    404     4     no such node, worker or route
//	conflict     409     1     makes sense, but not in the present state
//	failed       500     1     tried and failed
//	unreachable  502     5     no daemon, or no way to the other node
//	timeout      504     6     not done in time; it may still happen
//	moved        421     5     between nodes: ask the node named in "home"
//
// A stream that fails after its first line ends with an Error as its last.
//
// # Routes
//
// NODE and WORKER are a name, an id, or the beginning of an id that only one
// has, at least four characters of it.
//
//	GET  /v1/version                     Version: of the daemon
//	GET  /v1/status                      Status: of this node
//	GET  /v1/nodes                       NodeList
//	GET  /v1/nodes/NODE                  Node
//	POST /v1/nodes/NODE/ping?count=N     stream of Ping
//	POST /v1/nodes/NODE/settings       * NodeSettings; Node
//	POST /v1/nodes/NODE/start          * StartRequest; Worker: of an app, started there
//	POST /v1/nodes/NODE/drain          * DrainRequest; stream of DrainProgress
//	                                     that ends with a DrainResult
//	GET  /v1/nodes/NODE/events         * stream of PlacementEvent, what the node has
//	                                     decided; ?follow=true goes on
//	POST /v1/tokens        TokenRequest  Token
//	POST /v1/join          JoinRequest   JoinResult
//	POST /v1/leave                       LeaveResult; the daemon ends
//	POST /v1/modules       module        Module: kept here for an app
//	POST /v1/apps/plan     PlanRequest   Plan: where an app's workers would go
//	GET  /v1/apps                        AppList: those that have workers
//	POST /v1/apps          ApplyRequest  Applied
//	GET  /v1/apps/NAME                   App
//	DELETE /v1/apps/NAME                 App: as it was; its workers end
//	GET  /v1/workers                     WorkerList: of the whole mesh
//	POST /v1/workers       module        Worker: started here. The header
//	                                     Meshnode-Run holds a RunRequest
//	GET  /v1/workers/WORKER            * Worker; with ?sampleMs=N it is watched
//	                                     that long first, for its activity
//	GET  /v1/workers/WORKER/logs       * stream of LogLine; ?follow=true goes on
//	POST /v1/workers/WORKER/migrate    * MigrateRequest; stream of Progress that
//	                                     ends with a Migration
//	POST /v1/workers/WORKER/explain    * ExplainRequest; Explanation
//	GET  /v1/workers/WORKER/files      * ?path=P; FileList: what is there of a
//	                                     command's files, and behind &after=NAME
//	GET  /v1/workers/WORKER/file       * ?path=P; the bytes of one of them
//	POST /v1/workers/WORKER/plan       * MigrateRequest; MovePlan: what that
//	                                     would be like
//	POST /v1/workers/WORKER/app        * AppRequest; Worker: it has another manifest
//	POST /v1/workers/WORKER/pin        * Worker: it moves no more by itself
//	POST /v1/workers/WORKER/unpin      * Worker
//	POST /v1/workers/WORKER/pause      * Worker
//	POST /v1/workers/WORKER/resume     * Worker
//	POST /v1/workers/WORKER/stop       * Worker
//	POST /v1/workers/WORKER/call         raw payload; raw reply, with the
//	                                     handler's result in Meshnode-Status
//	POST /v1/workers/WORKER/send         raw payload; 204 once the worker has handled it
//	POST /v1/workers/WORKER/session      Upgrade: meshnode-session/1
//
// The routes with a star are answered by the worker's home, or by the node that
// is named. Any node takes them and passes them on, and follows the worker should it move meanwhile.
//
// # Sessions
//
// A session is one sender's ordered exchange with a worker, for as long as the
// connection lasts and wherever the worker moves. After the 101 answer both
// sides send frames, drawn in frame.go: the client calls and sends, the node
// one reply for each, in their order. Many can be under way at a time; once
// the worker's window is full the node stops reading, and the socket's own
// flow control stops the client. Payloads are at most [MaxPayloadBytes].
package control
