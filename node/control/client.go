package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"
)

const (
	dialTimeout = 5 * time.Second
	// maxLine bounds one document of a stream, and any whole answer.
	maxLine = 8 << 20
)

// A Client asks a daemon over its control socket. It is safe for concurrent
// use. Errors are *Error wherever the daemon gave one, and where it could not
// be reached (CodeUnreachable).
type Client struct {
	socket string
	http   *http.Client
}

// NewClient opens nothing.
func NewClient(socket string) *Client {
	c := &Client{socket: socket}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
			DisableCompression: true,
			MaxIdleConns:       4,
			IdleConnTimeout:    30 * time.Second,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unix", c.socket)
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, &Error{
			Code:    CodeUnreachable,
			Message: "no daemon answers on " + c.socket,
			Hint:    "`meshnode up` starts one; --state-dir or --socket name another",
		}
	case errors.Is(err, fs.ErrPermission):
		return nil, &Error{
			Code:    CodeDenied,
			Message: "the control socket " + c.socket + " is another user's",
			Hint:    "run this as the user the daemon runs as",
		}
	}
	return nil, err
}

// send sends a request and returns its answer, or the Error that is one. Closing
// the answer's body is the caller's. The request's body has size bytes, with -1
// as many as it tells itself.
func (c *Client) send(ctx context.Context, method, path string, body io.Reader, size int64, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://meshnode"+path, body)
	if err != nil {
		return nil, err
	}
	if size >= 0 {
		req.ContentLength = size
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, clientError(ctx, err)
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, readError(resp)
}

// clientError turns a transport's failure into what a person can use.
func clientError(ctx context.Context, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // its method and address mean nothing here
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return &Error{Code: CodeUnreachable, Message: "the daemon went away in the middle of the request"}
	}
	return &Error{Code: CodeUnreachable, Message: "ask the daemon: " + err.Error()}
}

// request sends in as the request's document; nil is none.
func (c *Client) request(ctx context.Context, method, path string, in any) (*http.Response, error) {
	if in == nil {
		return c.send(ctx, method, path, nil, -1, nil)
	}
	b, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	return c.send(ctx, method, path, bytes.NewReader(b), -1, http.Header{"Content-Type": {"application/json"}})
}

// do exchanges one document for another. in may be nil.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.request(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return decodeAnswer(ctx, resp, out)
}

// upload sends a body of size bytes, or of unknown size with -1, and reads the
// document that answers it.
func (c *Client) upload(ctx context.Context, path string, body io.Reader, size int64, header http.Header, out any) error {
	resp, err := c.send(ctx, http.MethodPost, path, body, size, header)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return decodeAnswer(ctx, resp, out)
}

func decodeAnswer(ctx context.Context, resp *http.Response, out any) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxLine+1))
	if err != nil {
		return clientError(ctx, err)
	}
	if len(b) > maxLine {
		return tooLarge("the daemon's answer", int64(len(b)), maxLine)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return &Error{Code: CodeFailed, Message: "the daemon's answer: " + err.Error()}
	}
	return nil
}

// stream reads documents line by line and calls each with the kind and the
// bytes of every one, until each reports the last or fails. A stream that ends
// before that is CodeUnreachable unless openEnd.
func (c *Client) stream(ctx context.Context, method, path string, in any, openEnd bool, each func(kind string, doc []byte) (last bool, err error)) error {
	resp, err := c.request(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, maxLine)
	for sc.Scan() {
		var m Meta
		if err := json.Unmarshal(sc.Bytes(), &m); err != nil {
			return &Error{Code: CodeFailed, Message: "the daemon's answer: " + err.Error()}
		}
		if m.Kind == "Error" {
			e := new(Error)
			if err := json.Unmarshal(sc.Bytes(), e); err != nil {
				return &Error{Code: CodeFailed, Message: "the daemon's answer: " + err.Error()}
			}
			return e
		}
		if last, err := each(m.Kind, sc.Bytes()); last || err != nil {
			return err
		}
	}
	if err := sc.Err(); err != nil {
		return clientError(ctx, err)
	}
	if openEnd {
		return nil
	}
	return clientError(ctx, io.ErrUnexpectedEOF)
}

func nodePath(ref, rest string) string   { return "/v1/nodes/" + url.PathEscape(ref) + rest }
func workerPath(ref, rest string) string { return "/v1/workers/" + url.PathEscape(ref) + rest }

// Version describes the daemon's build.
func (c *Client) Version(ctx context.Context) (d Version, err error) {
	return d, c.do(ctx, http.MethodGet, "/v1/version", nil, &d)
}

// Status describes the daemon's node.
func (c *Client) Status(ctx context.Context) (d Status, err error) {
	return d, c.do(ctx, http.MethodGet, "/v1/status", nil, &d)
}

// Configure changes what a node says of itself, and returns it as it is then.
func (c *Client) Configure(ctx context.Context, node string, req NodeSettings) (d Node, err error) {
	if err := checkRef("node", node); err != nil {
		return d, err
	}
	return d, c.do(ctx, http.MethodPost, nodePath(node, "/settings"), req, &d)
}

// Nodes lists the mesh's members.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var d NodeList
	err := c.do(ctx, http.MethodGet, "/v1/nodes", nil, &d)
	return d.Nodes, err
}

// Node describes one member.
func (c *Client) Node(ctx context.Context, ref string) (d Node, err error) {
	if err := checkRef("node", ref); err != nil {
		return d, err
	}
	return d, c.do(ctx, http.MethodGet, nodePath(ref, ""), nil, &d)
}

// Ping measures count round trips and calls each with every one.
func (c *Client) Ping(ctx context.Context, ref string, count int, each func(Ping) error) error {
	if err := checkRef("node", ref); err != nil {
		return err
	}
	path := nodePath(ref, "/ping?count="+strconv.Itoa(count))
	return c.stream(ctx, http.MethodPost, path, nil, true, func(_ string, doc []byte) (bool, error) {
		var p Ping
		if err := json.Unmarshal(doc, &p); err != nil {
			return false, err
		}
		return false, each(p)
	})
}

// CreateToken makes a join token.
func (c *Client) CreateToken(ctx context.Context, req TokenRequest) (d Token, err error) {
	return d, c.do(ctx, http.MethodPost, "/v1/tokens", req, &d)
}

// Join enrols the daemon's node in the mesh of a token.
func (c *Client) Join(ctx context.Context, req JoinRequest) (d JoinResult, err error) {
	return d, c.do(ctx, http.MethodPost, "/v1/join", req, &d)
}

// Leave takes the daemon's node out of its mesh.
func (c *Client) Leave(ctx context.Context) (d LeaveResult, err error) {
	return d, c.do(ctx, http.MethodPost, "/v1/leave", nil, &d)
}

// PlanApp asks where the workers of an app would go.
func (c *Client) PlanApp(ctx context.Context, req PlanRequest) (d Plan, err error) {
	return d, c.do(ctx, http.MethodPost, "/v1/apps/plan", req, &d)
}

// Explain asks why a worker is where it is.
func (c *Client) Explain(ctx context.Context, worker string, req ExplainRequest) (d Explanation, err error) {
	if err := checkRef("worker", worker); err != nil {
		return d, err
	}
	return d, c.do(ctx, http.MethodPost, workerPath(worker, "/explain"), req, &d)
}

// Workers lists the workers of the mesh.
func (c *Client) Workers(ctx context.Context) ([]Worker, error) {
	var d WorkerList
	err := c.do(ctx, http.MethodGet, "/v1/workers", nil, &d)
	return d.Workers, err
}

// RunWorker starts a worker at the daemon's node. module is size bytes, or of
// unknown size with -1.
func (c *Client) RunWorker(ctx context.Context, req RunRequest, module io.Reader, size int64) (d Worker, err error) {
	return c.RunWorkerIn(ctx, req, module, size, nil)
}

// RunWorkerIn is RunWorker for a worker with directories, of which files is the
// archive; the size of the module must be known.
func (c *Client) RunWorkerIn(ctx context.Context, req RunRequest, module io.Reader, size int64, files io.Reader) (d Worker, err error) {
	if size > MaxModuleBytes {
		return d, tooLarge("module", size, MaxModuleBytes)
	}
	if files != nil {
		if size < 0 {
			return d, &Error{Code: CodeInvalid, Message: "a module of unknown size with directories", Hint: "give the module as a file"}
		}
		req.ModuleBytes = size
		module, size = io.MultiReader(io.LimitReader(module, size), files), -1
	}
	run, err := json.Marshal(req)
	if err != nil {
		return d, err
	}
	header := http.Header{"Content-Type": {"application/wasm"}, runHeader: {string(run)}}
	return d, c.upload(ctx, "/v1/workers", module, size, header, &d)
}

// Export writes all of a worker to w, as it is at one moment, and leaves it as
// it is. Only a nil error means that all of it is there.
func (c *Client) Export(ctx context.Context, ref string, w io.Writer) error {
	if err := checkRef("worker", ref); err != nil {
		return err
	}
	resp, err := c.request(ctx, http.MethodGet, workerPath(ref, "/export"), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err = io.Copy(w, resp.Body); err != nil {
		return clientError(ctx, err)
	}
	return nil
}

// Files describes what is at a path of a command worker's files, with all
// entries of a directory. The path "" lists the directories that it has.
func (c *Client) Files(ctx context.Context, ref, path string) (all FileList, err error) {
	if err := checkRef("worker", ref); err != nil {
		return all, err
	}
	for after := ""; ; {
		q := url.Values{"path": {path}, "after": {after}}
		var d FileList
		if err := c.do(ctx, http.MethodGet, workerPath(ref, "/files?"+q.Encode()), nil, &d); err != nil {
			return all, err
		}
		entries := append(all.Entries, d.Entries...)
		all = d
		all.Entries, all.More = entries, false
		if !d.More || len(d.Entries) == 0 {
			return all, nil
		}
		after = d.Entries[len(d.Entries)-1].Name
	}
}

// ReadFile writes one of a command worker's files to w. Only a nil error means
// that all of it is there.
func (c *Client) ReadFile(ctx context.Context, ref, path string, w io.Writer) error {
	if err := checkRef("worker", ref); err != nil {
		return err
	}
	q := url.Values{"path": {path}}
	resp, err := c.request(ctx, http.MethodGet, workerPath(ref, "/file?"+q.Encode()), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err = io.Copy(w, resp.Body); err != nil {
		return clientError(ctx, err)
	}
	return nil
}

// Import makes a worker of what Export has written, at the daemon's node. An
// empty name is the name that the exported one had.
func (c *Client) Import(ctx context.Context, name string, file io.Reader) (d Worker, err error) {
	return d, c.upload(ctx, "/v1/workers/import?name="+url.QueryEscape(name), file, -1, nil, &d)
}

// Worker describes one worker, asked at its home.
func (c *Client) Worker(ctx context.Context, ref string) (d Worker, err error) {
	return c.workerDo(ctx, http.MethodGet, ref, "")
}

// SampleWorker watches what a worker does to its memory for that long, at most
// [MaxSample], and describes it.
func (c *Client) SampleWorker(ctx context.Context, ref string, length time.Duration) (d Worker, err error) {
	return c.workerDo(ctx, http.MethodGet, ref, "?sampleMs="+strconv.FormatFloat(Millis(length), 'f', -1, 64))
}

// Plan says what a move would be like, and changes nothing.
func (c *Client) Plan(ctx context.Context, ref string, req MigrateRequest) (d MovePlan, err error) {
	if err := checkRef("worker", ref); err != nil {
		return d, err
	}
	return d, c.do(ctx, http.MethodPost, workerPath(ref, "/plan"), req, &d)
}

// Pause lets a worker take no more events until Resume.
func (c *Client) Pause(ctx context.Context, ref string) (Worker, error) {
	return c.workerDo(ctx, http.MethodPost, ref, "/pause")
}

// Resume ends a Pause.
func (c *Client) Resume(ctx context.Context, ref string) (Worker, error) {
	return c.workerDo(ctx, http.MethodPost, ref, "/resume")
}

// Stop ends a worker.
func (c *Client) Stop(ctx context.Context, ref string) (Worker, error) {
	return c.workerDo(ctx, http.MethodPost, ref, "/stop")
}

func (c *Client) workerDo(ctx context.Context, method, ref, rest string) (d Worker, err error) {
	if err := checkRef("worker", ref); err != nil {
		return d, err
	}
	return d, c.do(ctx, method, workerPath(ref, rest), nil, &d)
}

// Logs calls each with a worker's log lines, oldest first; with follow, until
// ctx or the worker ends, across its moves.
func (c *Client) Logs(ctx context.Context, ref string, follow bool, each func(LogLine) error) error {
	if err := checkRef("worker", ref); err != nil {
		return err
	}
	path := workerPath(ref, "/logs?follow="+strconv.FormatBool(follow))
	var seen, after uint64 // newest epoch seen; lines up to epoch after are old
	for {
		err := c.stream(ctx, http.MethodGet, path, nil, true, func(_ string, doc []byte) (bool, error) {
			var l LogLine
			if err := json.Unmarshal(doc, &l); err != nil {
				return false, err
			}
			if l.Epoch != 0 && l.Epoch <= after {
				return false, nil
			}
			seen = max(seen, l.Epoch)
			return false, each(l)
		})
		if !follow || !errors.Is(err, &Error{Code: CodeMoved}) {
			return err
		}
		// The next home keeps lines too, and where the worker has been there
		// before, old ones among them.
		after = seen
	}
}

// Migrate moves a worker. It calls progress, which may be nil, for each report
// and returns when the move is done or has failed.
func (c *Client) Migrate(ctx context.Context, ref string, req MigrateRequest, progress func(Progress)) (Migration, error) {
	if err := checkRef("worker", ref); err != nil {
		return Migration{}, err
	}
	return watch[Progress, Migration](ctx, c, workerPath(ref, "/migrate"), req, "Progress", progress, "Migration")
}

// watch asks for something that takes a while, calls progress, unless it is nil,
// with each document of kind step in the answer, and returns the one of kind end.
func watch[P, R any](ctx context.Context, c *Client, path string, in any, step string, progress func(P), end string) (r R, err error) {
	err = c.stream(ctx, http.MethodPost, path, in, false, func(kind string, doc []byte) (bool, error) {
		switch kind {
		case step:
			var p P
			if err := json.Unmarshal(doc, &p); err != nil {
				return false, err
			}
			if progress != nil {
				progress(p)
			}
		case end:
			return true, json.Unmarshal(doc, &r)
		}
		return false, nil // on with it, and past a kind from a newer daemon
	})
	return r, err
}

// Call sends a worker one message and returns its reply. A Reply with Err set
// becomes the error.
func (c *Client) Call(ctx context.Context, ref string, payload []byte) (Reply, error) {
	return c.exchange(ctx, ref, Message{Call: true, Payload: payload})
}

// Send delivers one message to a worker's inbox.
func (c *Client) Send(ctx context.Context, ref string, payload []byte) error {
	_, err := c.exchange(ctx, ref, Message{Payload: payload})
	return err
}

func (c *Client) exchange(ctx context.Context, ref string, m Message) (Reply, error) {
	s, err := c.Session(ctx, ref)
	if err != nil {
		return Reply{}, err
	}
	defer s.Close()
	if err := s.Send(ctx, m); err != nil {
		return Reply{}, err
	}
	r, err := s.Recv(ctx)
	if err == nil && r.Err != nil {
		err = r.Err
	}
	return r, err
}

// checkRef refuses what would lead to another route.
func checkRef(what, ref string) error {
	if ref == "" || ref == "." || ref == ".." || len(ref) > 256 {
		return &Error{Code: CodeInvalid, Message: fmt.Sprintf("%q is no name for a %s", ref, what)}
	}
	return nil
}
