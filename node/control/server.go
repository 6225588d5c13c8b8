package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/http/httputil"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	headerTimeout = 10 * time.Second
	// documentTimeout bounds the arrival of a JSON body or of a message.
	documentTimeout = 30 * time.Second
	// moduleTimeout bounds the arrival of a module.
	moduleTimeout = 2 * time.Minute
	idleTimeout   = 2 * time.Minute
	// maxMoves is how often a request follows a worker that has moved away
	// between being located and being asked.
	maxMoves = 4
	// shutdownGrace is what requests under way get to end by themselves once
	// Serve's context is done; their own contexts are done at once.
	shutdownGrace = 3 * time.Second
)

// ServerConfig says what a Server serves.
type ServerConfig struct {
	Backend Backend
	Log     *slog.Logger // nil for none
	Version Version      // the zero value for BuildVersion()
}

// A Server answers the control API.
type Server struct {
	backend Backend
	log     *slog.Logger
	version Version

	requests inflight
}

// inflight counts requests, sessions included, which http.Server forgets once
// they are hijacked.
type inflight struct {
	mu     sync.Mutex
	n      int
	ending bool
	none   chan struct{} // closed at n == 0 once ending
}

// begin reports false where no request may begin any more.
func (f *inflight) begin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ending {
		return false
	}
	f.n++
	return true
}

func (f *inflight) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n--; f.n == 0 && f.ending {
		close(f.none)
	}
}

// drain lets nothing begin and waits for what has.
func (f *inflight) drain() {
	f.mu.Lock()
	if f.ending {
		f.mu.Unlock()
		return
	}
	f.ending, f.none = true, make(chan struct{})
	if f.n == 0 {
		close(f.none)
	}
	f.mu.Unlock()
	<-f.none
}

// NewServer starts nothing.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{backend: cfg.Backend, log: cfg.Log, version: cfg.Version}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.version.Version == "" {
		s.version = BuildVersion()
	}
	return s
}

// errStopping is what requests under way end with when their server does.
var errStopping = &Error{Code: CodeUnreachable, Message: "the daemon is stopping"}

// Serve answers on l until ctx is done, then ends every request and session,
// waits for them, and closes l. It returns nil after ctx is done. A Server
// serves once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	base, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(errStopping)
	srv := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		cancel(errStopping)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		_ = srv.Shutdown(grace)
	})
	err := srv.Serve(l)
	if stop() {
		cancel(errStopping) // the listener broke by itself
	} else {
		<-stopped
	}
	srv.Close()
	s.requests.drain()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("control API: %w", err)
}

// Handler answers local clients: everything.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	route := func(pattern string, h func(http.ResponseWriter, *http.Request) error) {
		mux.Handle(pattern, s.wrap(h))
	}
	route("GET /v1/version", s.getVersion)
	route("GET /v1/status", s.getStatus)
	route("GET /v1/nodes", s.getNodes)
	route("GET /v1/nodes/{ref}", s.getNode)
	route("POST /v1/nodes/{ref}/ping", s.postPing)
	s.nodeRoutes(func(pattern string, h func(http.ResponseWriter, *http.Request) error) {
		route(pattern, func(w http.ResponseWriter, r *http.Request) error { return s.atNode(w, r, h) })
	})
	route("POST /v1/tokens", s.postToken)
	route("POST /v1/join", s.postJoin)
	route("POST /v1/leave", s.postLeave)
	s.appRoutes(route)
	route("GET /v1/workers", s.getWorkers)
	route("POST /v1/workers", s.postWorker)
	route("POST /v1/workers/import", s.postImport)
	route("POST /v1/workers/{ref}/call", s.postCall)
	route("POST /v1/workers/{ref}/send", s.postSend)
	route("POST /v1/workers/{ref}/session", s.postSession)
	s.workerRoutes(func(pattern string, h func(http.ResponseWriter, *http.Request) error) {
		route(pattern, func(w http.ResponseWriter, r *http.Request) error { return s.atHome(w, r, h) })
	})
	mux.Handle("/", s.wrap(s.noRoute))
	return mux
}

// PeerHandler answers other nodes of the mesh: only the routes of single
// workers, and only for workers at home here, and those of this node itself. A
// worker whose home is elsewhere is CodeMoved with that home, so that requests
// cannot run in circles: a peer's request is never passed on.
func (s *Server) PeerHandler() http.Handler {
	mux := http.NewServeMux()
	s.workerRoutes(func(pattern string, h func(http.ResponseWriter, *http.Request) error) {
		mux.Handle(pattern, s.wrap(func(w http.ResponseWriter, r *http.Request) error {
			loc, err := s.backend.Locate(r.Context(), r.PathValue("ref"))
			if err != nil {
				return err
			}
			if !loc.Local {
				return Moved(loc.Home)
			}
			return h(w, r)
		}))
	})
	s.nodeRoutes(func(pattern string, h func(http.ResponseWriter, *http.Request) error) {
		mux.Handle(pattern, s.wrap(func(w http.ResponseWriter, r *http.Request) error {
			loc, err := s.backend.LocateNode(r.Context(), r.PathValue("ref"))
			if err != nil {
				return err
			}
			if !loc.Local {
				return Moved(loc.Home)
			}
			return h(w, r)
		}))
	})
	mux.Handle("/", s.wrap(func(w http.ResponseWriter, r *http.Request) error {
		return &Error{Code: CodeDenied, Message: fmt.Sprintf("%s %s is not open to other nodes", r.Method, r.URL.Path)}
	}))
	return mux
}

// workerRoutes are answered at a worker's home.
func (s *Server) workerRoutes(route func(string, func(http.ResponseWriter, *http.Request) error)) {
	route("GET /v1/workers/{ref}", s.getWorker)
	route("GET /v1/workers/{ref}/logs", s.getLogs)
	route("GET /v1/workers/{ref}/export", s.getExport)
	route("GET /v1/workers/{ref}/files", s.getFiles)
	route("GET /v1/workers/{ref}/file", s.getFile)
	route("POST /v1/workers/{ref}/migrate", s.postMigrate)
	route("POST /v1/workers/{ref}/explain", s.postExplain)
	route("POST /v1/workers/{ref}/plan", s.postPlan)
	route("POST /v1/workers/{ref}/pause", s.workerVerb(s.backend.Pause))
	route("POST /v1/workers/{ref}/resume", s.workerVerb(s.backend.Resume))
	route("POST /v1/workers/{ref}/stop", s.workerVerb(s.backend.Stop))
	route("POST /v1/workers/{ref}/app", s.postWorkerApp)
	route("POST /v1/workers/{ref}/pin", s.workerVerb(s.backend.Pin))
	route("POST /v1/workers/{ref}/unpin", s.workerVerb(s.backend.Unpin))
}

// wrap turns what a handler returns into an answer. A panic of ours costs one
// request, not the daemon with its workers.
func (s *Server) wrap(h func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if p == http.ErrAbortHandler {
				panic(p)
			}
			s.log.Error("control request panicked", "method", r.Method, "path", r.URL.Path,
				"panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			panic(http.ErrAbortHandler)
		}()
		if !s.requests.begin() {
			writeError(w, errStopping)
			return
		}
		defer s.requests.end()
		err := h(w, r)
		if err == nil {
			return
		}
		e := requestError(r.Context(), err)
		s.log.Debug("control request refused", "method", r.Method, "path", r.URL.Path, "code", e.Code, "err", e.Message)
		writeError(w, e)
	})
}

// requestError is err as the client shall see it.
func requestError(ctx context.Context, err error) *Error {
	if errors.Is(err, context.Canceled) && context.Cause(ctx) == errStopping {
		return errStopping
	}
	return AsError(err)
}

func writeError(w http.ResponseWriter, e *Error) {
	c := *e
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(c.HTTPStatus())
	_ = Encode(w, &c) // the client has gone
}

func writeDocument(w http.ResponseWriter, d Document) error {
	w.Header().Set("Content-Type", "application/json")
	_ = Encode(w, d) // the client has gone
	return nil
}

func (s *Server) noRoute(_ http.ResponseWriter, r *http.Request) error {
	return &Error{
		Code:    CodeNotFound,
		Message: fmt.Sprintf("the control API has no %s %s", r.Method, r.URL.Path),
		Hint:    "the client may be of another version than the daemon: compare `meshnode version` and `meshnode status`",
	}
}

// readDocument decodes a JSON body into v. An absent body leaves v as it is;
// unknown fields and anything after the document are errors.
func readDocument(w http.ResponseWriter, r *http.Request, v any) error {
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t != "" && t != "application/json" {
		return &Error{Code: CodeInvalid, Message: fmt.Sprintf("the body is %s, want application/json", t)}
	}
	body, err := readBody(w, r, "request", maxDocumentBytes)
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return &Error{Code: CodeInvalid, Message: "the body: " + strings.TrimPrefix(err.Error(), "json: ")}
	}
	if _, err := dec.Token(); err != io.EOF {
		return &Error{Code: CodeInvalid, Message: "the body goes on after its document"}
	}
	return nil
}

// readBody reads a whole body of at most limit bytes, in bounded time.
func readBody(w http.ResponseWriter, r *http.Request, what string, limit int64) ([]byte, error) {
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(documentTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return nil, err
	}
	if r.ContentLength > limit {
		drain(r.Body, 4*limit)
		return nil, tooLarge(what, r.ContentLength, limit)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return nil, &Error{Code: CodeInvalid, Message: "read the " + what + ": " + err.Error()}
	}
	if int64(len(body)) > limit {
		drain(r.Body, 4*limit)
		return nil, tooLarge(what, 0, limit)
	}
	_ = rc.SetReadDeadline(time.Time{})
	return body, nil
}

// drain reads what is left of a body that is refused, within bounds: a client
// that finds its connection closed while it writes may never read why.
func drain(body io.Reader, limit int64) { _, _ = io.CopyN(io.Discard, body, limit) }

func (s *Server) getVersion(w http.ResponseWriter, _ *http.Request) error {
	v := s.version
	return writeDocument(w, &v)
}

func (s *Server) getStatus(w http.ResponseWriter, r *http.Request) error {
	d, err := s.backend.Status(r.Context())
	if err != nil {
		return err
	}
	return writeDocument(w, &d)
}

func (s *Server) getNodes(w http.ResponseWriter, r *http.Request) error {
	nodes, err := s.backend.Nodes(r.Context())
	if err != nil {
		return err
	}
	return writeDocument(w, &NodeList{Nodes: orEmpty(nodes)})
}

func (s *Server) getNode(w http.ResponseWriter, r *http.Request) error {
	d, err := s.backend.Node(r.Context(), r.PathValue("ref"))
	if err != nil {
		return err
	}
	return writeDocument(w, &d)
}

func (s *Server) postPing(w http.ResponseWriter, r *http.Request) error {
	count := 1
	if v := r.URL.Query().Get("count"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 1_000_000 {
			return &Error{Code: CodeInvalid, Message: fmt.Sprintf("count is %q, want a number from 1 to 1000000", v)}
		}
		count = n
	}
	out := newStream(w, r)
	return out.end(s.backend.Ping(r.Context(), r.PathValue("ref"), count, func(p Ping) error { return out.send(&p) }))
}

// atNode answers with h where the request is about this node and passes it on
// to the one it is about otherwise.
func (s *Server) atNode(w http.ResponseWriter, r *http.Request, h func(http.ResponseWriter, *http.Request) error) error {
	loc, err := s.backend.LocateNode(r.Context(), r.PathValue("ref"))
	if err != nil {
		return err
	}
	if loc.Local {
		return h(w, r)
	}
	body, err := readBody(w, r, "request", maxDocumentBytes)
	if err != nil {
		return err
	}
	return s.proxy(w, r, loc, body)
}

func (s *Server) postSettings(w http.ResponseWriter, r *http.Request) error {
	var req NodeSettings
	if err := readDocument(w, r, &req); err != nil {
		return err
	}
	if req.Cordoned == nil && len(req.Labels) == 0 {
		return &Error{Code: CodeInvalid, Message: "settings that change nothing"}
	}
	d, err := s.backend.Configure(r.Context(), req)
	if err != nil {
		return err
	}
	return writeDocument(w, &d)
}

func (s *Server) postAppPlan(w http.ResponseWriter, r *http.Request) error {
	var req PlanRequest
	if err := readDocument(w, r, &req); err != nil {
		return err
	}
	if err := req.check(); err != nil {
		return err
	}
	d, err := s.backend.PlanApp(r.Context(), req)
	if err != nil {
		return err
	}
	return writeDocument(w, &d)
}

func (s *Server) postExplain(w http.ResponseWriter, r *http.Request) error {
	var req ExplainRequest
	if err := readDocument(w, r, &req); err != nil {
		return err
	}
	d, err := s.backend.Explain(r.Context(), r.PathValue("ref"), req)
	if err != nil {
		return err
	}
	return writeDocument(w, &d)
}

func (s *Server) postToken(w http.ResponseWriter, r *http.Request) error {
	var req TokenRequest
	if err := readDocument(w, r, &req); err != nil {
		return err
	}
	switch {
	case req.TTLMs < 0 || req.TTLMs > Millis(366*24*time.Hour):
		return &Error{Code: CodeInvalid, Message: "ttlMs must be between 0 and a year"}
	case req.Uses < 0:
		return &Error{Code: CodeInvalid, Message: "uses must not be negative"}
	}
	if req.Tier != "" {
		if err := oneOf("tier", req.Tier, TokenTiers); err != nil {
			return err
		}
	}
	d, err := s.backend.CreateToken(r.Context(), req)
	if err != nil {
		return err
	}
	return writeDocument(w, &d)
}

func (s *Server) postJoin(w http.ResponseWriter, r *http.Request) error {
	var req JoinRequest
	if err := readDocument(w, r, &req); err != nil {
		return err
	}
	if req.Token == "" {
		return &Error{Code: CodeInvalid, Message: "a join needs a token", Hint: "`meshnode token create` makes one on the node that founded the mesh"}
	}
	d, err := s.backend.Join(r.Context(), req)
	if err != nil {
		return err
	}
	return writeDocument(w, &d)
}

func (s *Server) postLeave(w http.ResponseWriter, r *http.Request) error {
	d, err := s.backend.Leave(r.Context())
	if err != nil {
		return err
	}
	return writeDocument(w, &d)
}

func (s *Server) getWorkers(w http.ResponseWriter, r *http.Request) error {
	workers, err := s.backend.Workers(r.Context())
	if err != nil {
		return err
	}
	return writeDocument(w, &WorkerList{Workers: orEmpty(workers)})
}

// runHeader carries the RunRequest as JSON, so that the body is the module and
// nothing else.
const runHeader = "Meshnode-Run"

func (s *Server) postWorker(w http.ResponseWriter, r *http.Request) error {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(moduleTimeout))
	d, err := s.runWorker(r, func() { _ = rc.SetReadDeadline(time.Time{}) })
	if err != nil {
		drain(r.Body, MaxModuleBytes)
		return err
	}
	return writeDocument(w, &d)
}

// runWorker calls done once it has read all of the body.
func (s *Server) runWorker(r *http.Request, done func()) (d Worker, err error) {
	var req RunRequest
	dec := json.NewDecoder(strings.NewReader(r.Header.Get(runHeader)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		return d, &Error{Code: CodeInvalid, Message: "header " + runHeader + " holds no run request: " + err.Error()}
	}
	if err := CheckWorkerName(req.Name); err != nil {
		return d, err
	}
	for _, kv := range req.Env {
		if k, _, ok := strings.Cut(kv, "="); !ok || k == "" {
			return d, &Error{Code: CodeInvalid, Message: fmt.Sprintf("environment entry %q is not KEY=VALUE", kv)}
		}
	}
	if len(req.Dirs) == 0 {
		if r.ContentLength > MaxModuleBytes {
			return d, tooLarge("module", r.ContentLength, MaxModuleBytes)
		}
		module := limitBody("module", r.Body, MaxModuleBytes, done)
		return s.backend.RunWorker(r.Context(), req, module, nil)
	}
	switch {
	case req.FilesLimit < 0:
		return d, &Error{Code: CodeInvalid, Message: fmt.Sprintf("filesLimit is %d, want a number of bytes", req.FilesLimit)}
	case req.FilesLimit == 0:
		req.FilesLimit = DefaultFilesLimit
	}
	if req.ModuleBytes <= 0 || req.ModuleBytes > MaxModuleBytes {
		return d, &Error{Code: CodeInvalid, Message: fmt.Sprintf("moduleBytes is %d, want 1 to %d", req.ModuleBytes, MaxModuleBytes)}
	}
	files := limitBody("archive of the directories", r.Body, MaxArchiveBytes(req.FilesLimit), done)
	return s.backend.RunWorker(r.Context(), req, io.LimitReader(r.Body, req.ModuleBytes), files)
}

// limitedBody reads at most left bytes and refuses more by name.
type limitedBody struct {
	what string
	r    io.Reader
	max  int64
	left int64
	done func() // called at the end of r
}

func limitBody(what string, r io.Reader, max int64, done func()) *limitedBody {
	return &limitedBody{what: what, r: r, max: max, left: max, done: done}
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, tooLarge(b.what, 0, b.max)
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	if b.left < 0 {
		return n - 1, tooLarge(b.what, 0, b.max)
	}
	if err == io.EOF {
		b.done()
	}
	return n, err
}

// getExport sends a worker whole. An end of the answer that is none is for the
// file to tell, which says how it ends.
func (s *Server) getExport(w http.ResponseWriter, r *http.Request) error {
	file, err := s.backend.Export(r.Context(), r.PathValue("ref"))
	if err != nil {
		return err
	}
	defer file.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	if _, err := io.Copy(w, file); err != nil {
		panic(http.ErrAbortHandler) // the client has gone, or is to learn that there is more
	}
	return nil
}

func (s *Server) getFiles(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	d, err := s.backend.Files(r.Context(), r.PathValue("ref"), q.Get("path"), q.Get("after"))
	if err != nil {
		return err
	}
	return writeDocument(w, &d)
}

// getFile sends a file as it is while it is read: what the worker changes
// meanwhile may be in it or not.
func (s *Server) getFile(w http.ResponseWriter, r *http.Request) error {
	name := r.URL.Query().Get("path")
	for at := int64(0); ; {
		b, err := s.backend.ReadFile(r.Context(), r.PathValue("ref"), name, at)
		switch {
		case err != nil && at == 0:
			return err
		case err != nil:
			panic(http.ErrAbortHandler) // the client is to learn that there is more
		case at == 0:
			w.Header().Set("Content-Type", "application/octet-stream")
		}
		if len(b) == 0 {
			return nil
		}
		if _, err := w.Write(b); err != nil {
			panic(http.ErrAbortHandler) // the client has gone
		}
		at += int64(len(b))
	}
}

func (s *Server) postImport(w http.ResponseWriter, r *http.Request) error {
	name := r.URL.Query().Get("name")
	if name != "" {
		if err := CheckWorkerName(name); err != nil {
			return err
		}
	}
	d, err := s.backend.Import(r.Context(), name, r.Body)
	if err != nil {
		drain(r.Body, MaxModuleBytes)
		return err
	}
	return writeDocument(w, &d)
}

func (s *Server) getWorker(w http.ResponseWriter, r *http.Request) error {
	ref := r.PathValue("ref")
	var d Worker
	var err error
	if v := r.URL.Query().Get("sampleMs"); v != "" {
		ms, perr := strconv.ParseFloat(v, 64)
		if perr != nil || !(ms > 0 && ms <= Millis(MaxSample)) {
			return &Error{Code: CodeInvalid, Message: fmt.Sprintf("sampleMs is %q, want more than 0 and at most %v", v, Millis(MaxSample))}
		}
		d, err = s.backend.Sample(r.Context(), ref, time.Duration(ms*float64(time.Millisecond)))
	} else {
		d, err = s.backend.Worker(r.Context(), ref)
	}
	if err != nil {
		return err
	}
	return writeDocument(w, &d)
}

func (s *Server) workerVerb(do func(context.Context, string) (Worker, error)) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		d, err := do(r.Context(), r.PathValue("ref"))
		if err != nil {
			return err
		}
		return writeDocument(w, &d)
	}
}

func (s *Server) getLogs(w http.ResponseWriter, r *http.Request) error {
	follow := false
	if v := r.URL.Query().Get("follow"); v != "" {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return &Error{Code: CodeInvalid, Message: fmt.Sprintf("follow is %q, want true or false", v)}
		}
		follow = b
	}
	out := newStream(w, r)
	return out.end(s.backend.Logs(r.Context(), r.PathValue("ref"), follow, func(l LogLine) error { return out.send(&l) }))
}

// readMigrate reads what is asked of a move.
func readMigrate(w http.ResponseWriter, r *http.Request) (req MigrateRequest, err error) {
	if err := readDocument(w, r, &req); err != nil {
		return req, err
	}
	if req.To == "" {
		return req, &Error{Code: CodeInvalid, Message: "a move needs a destination", Hint: "`meshnode node ls` lists the nodes"}
	}
	if req.Strategy == "" {
		req.Strategy = Strategies[0]
	}
	if err := oneOf("strategy", req.Strategy, Strategies); err != nil {
		return req, err
	}
	if req.TimeoutMs < 0 {
		return req, &Error{Code: CodeInvalid, Message: "timeoutMs must not be negative"}
	}
	if req.RoundsLimitMs < 0 || req.RoundsLimitMs > MaxRoundsLimitMs {
		return req, &Error{
			Code: CodeInvalid, Message: fmt.Sprintf("a limit of %.0f ms for the rounds is out of range; it goes to %d ms", req.RoundsLimitMs, MaxRoundsLimitMs),
		}
	}
	if req.Priority < 0 || req.Priority > MaxPriority {
		return req, &Error{
			Code: CodeInvalid, Message: fmt.Sprintf("priority %d is out of range; it goes from 1 to %d", req.Priority, MaxPriority),
		}
	}
	return req, nil
}

func (s *Server) postPlan(w http.ResponseWriter, r *http.Request) error {
	req, err := readMigrate(w, r)
	if err != nil {
		return err
	}
	d, err := s.backend.Plan(r.Context(), r.PathValue("ref"), req)
	if err != nil {
		return err
	}
	return writeDocument(w, &d)
}

func (s *Server) postMigrate(w http.ResponseWriter, r *http.Request) error {
	req, err := readMigrate(w, r)
	if err != nil {
		return err
	}
	out := newStream(w, r)
	m, err := s.backend.Migrate(r.Context(), r.PathValue("ref"), req, func(p Progress) { _ = out.send(&p) })
	if err == nil {
		err = out.send(&m)
	}
	return out.end(err)
}

// A stream is an answer of many documents, one per line, each sent at once.
// The last one is an Error where something went wrong after the first.
type stream struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	ctx context.Context // of the request

	mu      sync.Mutex
	started bool
	err     error
}

func newStream(w http.ResponseWriter, r *http.Request) *stream {
	return &stream{w: w, rc: http.NewResponseController(w), ctx: r.Context()}
}

// send writes one document. Safe for concurrent use.
func (st *stream) send(d Document) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.err != nil {
		return st.err
	}
	st.startLocked()
	if st.err = Encode(st.w, d); st.err == nil {
		st.err = st.rc.Flush()
	}
	return st.err
}

func (st *stream) startLocked() {
	if !st.started {
		st.started = true
		st.w.Header().Set("Content-Type", "application/x-ndjson")
	}
}

// end closes the stream with err, which becomes a plain error answer when
// nothing has been sent yet.
func (st *stream) end(err error) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.started {
		if err == nil {
			st.startLocked()
		}
		return err
	}
	if err != nil && st.err == nil {
		c := *requestError(st.ctx, err)
		_ = Encode(st.w, &c)
	}
	return nil
}

// atHome answers with h where the worker is at home here and passes the
// request on to its home otherwise.
func (s *Server) atHome(w http.ResponseWriter, r *http.Request, h func(http.ResponseWriter, *http.Request) error) error {
	loc, err := s.backend.Locate(r.Context(), r.PathValue("ref"))
	if err != nil {
		return err
	}
	// The body is read first: it is small, a transport may send it twice, and
	// a client must not hold up another node.
	body, err := readBody(w, r, "request", maxDocumentBytes)
	if err != nil {
		return err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength = int64(len(body))
	if loc.Local {
		err := h(w, r)
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeMoved || e.Home == "" {
			return err
		}
		// Nothing has been sent: the worker left since it was located.
		r.Body = io.NopCloser(bytes.NewReader(body))
		loc.Local, loc.Home = false, e.Home
	}
	return s.proxy(w, r, loc, body)
}

// proxy passes a request on to the node at loc: about its worker, or about the
// node itself where no worker is named.
func (s *Server) proxy(w http.ResponseWriter, r *http.Request, loc Location, body []byte) error {
	collection, name, whom := "/v1/workers/", loc.Worker, "the worker's home "
	if name == "" {
		collection, name, whom = "/v1/nodes/", loc.Home, "node "
	}
	var failed error
	p := &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			// By id: the name may mean something else by the time it arrives.
			rest := strings.TrimPrefix(pr.In.URL.Path, collection+pr.In.PathValue("ref"))
			pr.Out.URL.Scheme, pr.Out.URL.Host = "http", loc.Home
			pr.Out.URL.Path, pr.Out.URL.RawPath = collection+name+rest, ""
			pr.Out.Host = loc.Home
		},
		Transport:     &followTransport{backend: s.backend, home: loc.Home, body: body},
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ErrorHandler:  func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err },
	}
	p.ServeHTTP(w, r)
	if failed == nil {
		return nil
	}
	var e *Error
	switch {
	case errors.As(failed, &e), errors.Is(failed, context.DeadlineExceeded):
		return failed
	}
	return &Error{
		Code:    CodeUnreachable,
		Message: fmt.Sprintf("ask %s%s: %v", whom, loc.Home, failed),
		Hint:    "`meshnode ping " + loc.Home + "` tells whether there is a way to it",
	}
}

// followTransport sends a request to a worker's home, and again to its next
// home where the worker has moved on.
type followTransport struct {
	backend Backend
	home    string
	body    []byte
}

func (t *followTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	home := t.home
	for range maxMoves {
		out := r.Clone(r.Context())
		out.URL.Host, out.Host = home, home
		out.Body, out.GetBody, out.ContentLength = http.NoBody, nil, 0
		if len(t.body) > 0 {
			out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(t.body)), nil }
			out.Body, _ = out.GetBody()
			out.ContentLength = int64(len(t.body))
		}
		resp, err := t.backend.Peer(home).RoundTrip(out)
		if err != nil || resp.StatusCode != http.StatusMisdirectedRequest {
			return resp, err
		}
		e := readError(resp)
		resp.Body.Close()
		if e.Code != CodeMoved || e.Home == "" || e.Home == home {
			return nil, &Error{Code: CodeUnreachable, Message: fmt.Sprintf("node %s does not know the worker it should have", home)}
		}
		home = e.Home
	}
	return nil, &Error{
		Code:    CodeUnreachable,
		Message: fmt.Sprintf("the worker moved on %d times while it was asked", maxMoves),
		Hint:    "try again",
	}
}

// readError reads the Error of a refused request.
func readError(resp *http.Response) *Error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDocumentBytes))
	var e Error
	if err == nil && json.Unmarshal(body, &e) == nil && e.Code != "" && e.Kind == "Error" {
		return &e
	}
	return &Error{Code: CodeFailed, Message: "the daemon answered " + resp.Status}
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// CheckWorkerName refuses what cannot be a worker's name.
func CheckWorkerName(name string) error {
	ok := len(name) >= 1 && len(name) <= 63 && name[0] != '-'
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		ok = c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-'
	}
	if ok {
		return nil
	}
	return &Error{
		Code:    CodeInvalid,
		Message: fmt.Sprintf("%q is no name for a worker", name),
		Hint:    "names are 1 to 63 lower-case letters, digits and dashes, and begin with no dash",
	}
}

func oneOf(what, got string, accepted []string) error {
	for _, a := range accepted {
		if got == a {
			return nil
		}
	}
	return &Error{Code: CodeInvalid, Message: fmt.Sprintf("%s is %q, want %s", what, got, strings.Join(accepted, ", "))}
}
