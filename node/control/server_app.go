package control

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// maxDrain is the longest deadline of a drain.
const maxDrain = 24 * time.Hour

// eventWrite is how long a follower of events may leave one unread.
const eventWrite = 30 * time.Second

// appRoutes are answered by any node.
func (s *Server) appRoutes(route func(string, func(http.ResponseWriter, *http.Request) error)) {
	route("POST /v1/modules", s.postModule)
	route("POST /v1/apps/plan", s.postAppPlan)
	route("GET /v1/apps", s.getApps)
	route("POST /v1/apps", s.postApp)
	route("GET /v1/apps/{name}", s.getApp)
	route("DELETE /v1/apps/{name}", s.deleteApp)
}

// nodeRoutes are answered by the node that they are about.
func (s *Server) nodeRoutes(route func(string, func(http.ResponseWriter, *http.Request) error)) {
	route("POST /v1/nodes/{ref}/settings", s.postSettings)
	route("POST /v1/nodes/{ref}/start", s.postStart)
	route("POST /v1/nodes/{ref}/drain", s.postDrain)
	route("GET /v1/nodes/{ref}/events", s.getEvents)
}

func (s *Server) postModule(w http.ResponseWriter, r *http.Request) error {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(moduleTimeout))
	if r.ContentLength > MaxModuleBytes {
		drain(r.Body, MaxModuleBytes)
		return tooLarge("module", r.ContentLength, MaxModuleBytes)
	}
	body := limitBody("module", r.Body, MaxModuleBytes, func() { _ = rc.SetReadDeadline(time.Time{}) })
	d, err := s.backend.PutModule(r.Context(), body)
	if err != nil {
		drain(r.Body, MaxModuleBytes)
		return err
	}
	return writeDocument(w, &d)
}

func (s *Server) getApps(w http.ResponseWriter, r *http.Request) error {
	apps, err := s.backend.Apps(r.Context())
	if err != nil {
		return err
	}
	return writeDocument(w, &AppList{Apps: orEmpty(apps)})
}

func (s *Server) postApp(w http.ResponseWriter, r *http.Request) error {
	var req ApplyRequest
	if err := readDocument(w, r, &req); err != nil {
		return err
	}
	if err := req.PlanRequest.check(); err != nil {
		return err
	}
	if req.Module != "" {
		if err := checkHash("module", req.Module); err != nil {
			return err
		}
	}
	d, err := s.backend.Apply(r.Context(), req)
	if err != nil {
		return err
	}
	return writeDocument(w, &d)
}

func checkHash(what, h string) error {
	if b, err := hex.DecodeString(h); err != nil || len(b) != 32 {
		return &Error{Code: CodeInvalid, Message: fmt.Sprintf("%s %.80q is no BLAKE3 hash in hexadecimal", what, h)}
	}
	return nil
}

func (s *Server) getApp(w http.ResponseWriter, r *http.Request) error {
	d, err := s.backend.App(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	return writeDocument(w, &d)
}

func (s *Server) deleteApp(w http.ResponseWriter, r *http.Request) error {
	d, err := s.backend.RemoveApp(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	return writeDocument(w, &d)
}

func (s *Server) postStart(w http.ResponseWriter, r *http.Request) error {
	var req StartRequest
	if err := readDocument(w, r, &req); err != nil {
		return err
	}
	if err := CheckWorkerName(req.Worker); err != nil {
		return err
	}
	if err := checkHash("module", req.Module); err != nil {
		return err
	}
	if req.ModuleBytes <= 0 || req.ModuleBytes > MaxModuleBytes {
		return tooLarge("module", req.ModuleBytes, MaxModuleBytes)
	}
	d, err := s.backend.StartWorker(r.Context(), req)
	if err != nil {
		return err
	}
	return writeDocument(w, &d)
}

func (s *Server) postWorkerApp(w http.ResponseWriter, r *http.Request) error {
	var req AppRequest
	if err := readDocument(w, r, &req); err != nil {
		return err
	}
	d, err := s.backend.SetApp(r.Context(), r.PathValue("ref"), req)
	if err != nil {
		return err
	}
	return writeDocument(w, &d)
}

func (s *Server) postDrain(w http.ResponseWriter, r *http.Request) error {
	var req DrainRequest
	if err := readDocument(w, r, &req); err != nil {
		return err
	}
	if !(req.DeadlineMs >= 0 && req.DeadlineMs <= Millis(maxDrain)) {
		return &Error{Code: CodeInvalid, Message: fmt.Sprintf("deadlineMs must be from 0 to %v, %v", Millis(maxDrain), maxDrain)}
	}
	out := newStream(w, r)
	d, err := s.backend.Drain(r.Context(), req, func(p DrainProgress) { _ = out.send(&p) })
	if err == nil {
		err = out.send(&d)
	}
	return out.end(err)
}

func (s *Server) getEvents(w http.ResponseWriter, r *http.Request) error {
	follow := false
	if v := r.URL.Query().Get("follow"); v != "" {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return &Error{Code: CodeInvalid, Message: fmt.Sprintf("follow is %q, want true or false", v)}
		}
		follow = b
	}
	out := newStream(w, r)
	return out.end(s.backend.Events(r.Context(), follow, func(e PlacementEvent) error {
		// One that does not read must not hold a goroutine for ever.
		_ = out.rc.SetWriteDeadline(time.Now().Add(eventWrite))
		return out.send(&e)
	}))
}

// check refuses what no plan can be made from.
func (req *PlanRequest) check() error {
	switch {
	case !(req.RatePerSecond >= 0 && req.RatePerSecond <= 1e6):
		return &Error{Code: CodeInvalid, Message: "ratePerSecond must be from 0 to a million"}
	case !(req.EventMs >= 0 && req.EventMs <= Millis(time.Hour)):
		return &Error{Code: CodeInvalid, Message: "eventMs must be from 0 to an hour"}
	case req.ModuleBytes < 0 || req.ModuleBytes > MaxModuleBytes:
		return tooLarge("module", req.ModuleBytes, MaxModuleBytes)
	case len(req.Users) > 64:
		return &Error{Code: CodeInvalid, Message: fmt.Sprintf("%d nodes at which users enter, at most 64", len(req.Users))}
	}
	return nil
}
