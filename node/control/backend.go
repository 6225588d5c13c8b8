package control

import (
	"context"
	"io"
	"net/http"
	"time"
)

// A Backend does what the server is asked for. The node implements it.
//
// A ref names a node or a worker by its name, its id, or a beginning of its
// id of at least four characters that only it has. An unknown ref is an *Error
// with CodeNotFound, an ambiguous one with CodeInvalid; Match builds both.
// Errors that are no *Error reach the client as CodeFailed, or CodeTimeout for
// an exceeded deadline. Contexts end when the client goes away. All methods
// are safe for concurrent use.
type Backend interface {
	Status(ctx context.Context) (Status, error)

	// Nodes lists every member known, those dead or left included.
	Nodes(ctx context.Context) ([]Node, error)
	// Node describes one, its capability document included.
	Node(ctx context.Context, ref string) (Node, error)
	// Ping measures count round trips one after another, a second apart, and
	// calls each with every one. An error of each ends it and is returned.
	Ping(ctx context.Context, ref string, count int, each func(Ping) error) error

	// LocateNode says which node a ref means; Location.Worker is empty.
	LocateNode(ctx context.Context, ref string) (Location, error)
	// Configure changes what this node says of itself.
	Configure(ctx context.Context, req NodeSettings) (Node, error)

	// CreateToken makes a join token; CodeDenied where this node is not the
	// mesh's authority, with a hint that names the one that is.
	CreateToken(ctx context.Context, req TokenRequest) (Token, error)
	// Join enrols this node in another mesh, Leave takes it out of its own.
	Join(ctx context.Context, req JoinRequest) (JoinResult, error)
	Leave(ctx context.Context) (LeaveResult, error)

	// PlanApp says where the workers of an app would go, and changes nothing. A bad
	// manifest is an *Error with CodeInvalid.
	PlanApp(ctx context.Context, req PlanRequest) (Plan, error)

	// PutModule keeps a module, of at most MaxModuleBytes: reading beyond is an
	// *Error with CodeTooLarge, to be returned as it is.
	PutModule(ctx context.Context, module io.Reader) (Module, error)
	// Apply lets an app run as its manifest says: it starts the workers that are
	// missing, where they fit best, and gives those that run the manifest. If a
	// missing worker fits nowhere nothing is done, and the *Error with
	// CodeConflict says why.
	Apply(ctx context.Context, req ApplyRequest) (Applied, error)
	// Apps lists the apps that have workers, App describes one and RemoveApp
	// stops its workers.
	Apps(ctx context.Context) ([]App, error)
	App(ctx context.Context, name string) (App, error)
	RemoveApp(ctx context.Context, name string) (App, error)
	// StartWorker starts a worker of an app here.
	StartWorker(ctx context.Context, req StartRequest) (Worker, error)
	// Drain closes this node and moves its workers elsewhere. It calls progress
	// on its own goroutine and never after it has returned.
	Drain(ctx context.Context, req DrainRequest, progress func(DrainProgress)) (DrainResult, error)
	// Events calls each with what this node has decided lately, oldest first, and
	// with follow goes on until the context ends, or the follower is too slow. An
	// error of each ends it and is returned.
	Events(ctx context.Context, follow bool, each func(PlacementEvent) error) error

	// Workers lists the workers known in the whole mesh.
	Workers(ctx context.Context) ([]Worker, error)
	// RunWorker starts a worker here and returns once it runs or has failed to.
	// The module is at most MaxModuleBytes: reading beyond is an *Error with
	// CodeTooLarge, to be returned as it is. files is the archive of the worker's
	// directories, nil if it has none, to be read after the module; the same holds
	// for it and MaxArchiveBytes.
	RunWorker(ctx context.Context, req RunRequest, module, files io.Reader) (Worker, error)

	// Import makes a worker of what Export yielded, at this or another node, and
	// runs it here. It is another worker than the one that was exported. An empty
	// name is the name which that one had.
	Import(ctx context.Context, name string, file io.Reader) (Worker, error)

	// Locate says where a worker is at home.
	Locate(ctx context.Context, ref string) (Location, error)
	// Peer returns the way to another node's PeerHandler; see PeerTransport.
	Peer(node string) http.RoundTripper

	// The methods below are called only for workers that Locate calls local.
	// Where the worker has left since, they return Moved(home).

	Worker(ctx context.Context, ref string) (Worker, error)
	// Logs calls each with the lines kept, oldest first, and with follow goes
	// on until the context or the worker ends. When the worker moves away,
	// following ends with Moved(home). An error of each ends it and is
	// returned.
	Logs(ctx context.Context, ref string, follow bool, each func(LogLine) error) error
	// Migrate moves a worker and returns when its memory is drained (or the
	// move has failed, with the worker running here again). When ctx ends
	// before the commit the move is given up; after it, Migrate returns and
	// the move goes on. It calls progress on its own goroutine, at every change
	// of phase and at most 20 times a second in between, and never after it
	// has returned.
	Migrate(ctx context.Context, ref string, req MigrateRequest, progress func(Progress)) (Migration, error)
	// Explain says why the worker is here and not elsewhere.
	Explain(ctx context.Context, ref string, req ExplainRequest) (Explanation, error)
	// Sample watches what a worker does to its memory for that long and
	// describes it, Activity included.
	Sample(ctx context.Context, ref string, length time.Duration) (Worker, error)
	// Plan says what Migrate would be like, and changes nothing.
	Plan(ctx context.Context, ref string, req MigrateRequest) (MovePlan, error)
	// Export yields all of the worker, as it was at one moment, and leaves it as
	// it is. The caller closes it.
	Export(ctx context.Context, ref string) (io.ReadCloser, error)
	// Files describes what is at a path of a command worker's files, and lists
	// the entries of a directory whose names come behind after, as many as it
	// likes. The path "" lists the directories that the worker has.
	Files(ctx context.Context, ref, path, after string) (FileList, error)
	// ReadFile returns a part of a file; none is its end.
	ReadFile(ctx context.Context, ref, path string, offset int64) ([]byte, error)
	Pause(ctx context.Context, ref string) (Worker, error)
	Resume(ctx context.Context, ref string) (Worker, error)
	Stop(ctx context.Context, ref string) (Worker, error)
	// SetApp gives the worker a manifest. What cannot change while it runs is
	// CodeConflict.
	SetApp(ctx context.Context, ref string, req AppRequest) (Worker, error)
	// Pin keeps the worker from moving by itself, also to other nodes it is moved
	// to, until Unpin.
	Pin(ctx context.Context, ref string) (Worker, error)
	Unpin(ctx context.Context, ref string) (Worker, error)

	// Session opens a new sender to a worker anywhere in the mesh; it follows
	// the worker across moves. Never proxied: it lives where its client is.
	Session(ctx context.Context, ref string) (Session, error)
}

// A Location is where a worker is at home.
type Location struct {
	Worker string // id
	Home   string // node id
	Local  bool   // Home is the node that answers
}

// A Message goes to a worker.
type Message struct {
	// Call says that the handler's reply is wanted. Otherwise the message is a
	// send: answered with an empty Reply once the worker has handled it.
	Call    bool
	Payload []byte // at most MaxPayloadBytes
}

// A Reply is the outcome of one Message.
type Reply struct {
	Payload []byte
	Status  int32  // what the handler returned: 0, or an application error code
	Err     *Error // the worker could not handle it: it trapped, was stopped, is lost
}

// A Session is one sender's ordered exchange with a worker: messages are
// delivered once and in order, across any number of moves, and each gets
// exactly one Reply, in the order of the messages.
//
// One goroutine may call Send while another calls Recv.
type Session interface {
	// Send hands a message over. It blocks while too many are unanswered
	// (back-pressure), and does not wait for the reply. The payload is the
	// session's from then on.
	Send(ctx context.Context, m Message) error
	// Recv returns the next reply, blocking until it is there. An error means
	// the session is over, with unanswered messages in an unknown state.
	Recv(ctx context.Context) (Reply, error)
	// Close ends the session without waiting for replies.
	Close() error
}
