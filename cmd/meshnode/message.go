package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"meshnode/node/control"
)

// payload takes a message's payload from the arguments after the worker's
// name: words joined by spaces, or standard input for "-".
func (a *app) payload(words []string) ([]byte, error) {
	if len(words) == 1 && words[0] == "-" {
		b, err := io.ReadAll(io.LimitReader(a.stdin, control.MaxPayloadBytes+1))
		if err != nil {
			return nil, usagef("read the payload: %s", err)
		}
		if len(b) > control.MaxPayloadBytes {
			return nil, usagef("payload is over the limit of %s", size(control.MaxPayloadBytes))
		}
		return b, nil
	}
	return []byte(strings.Join(words, " ")), nil
}

// messageArgs wants a worker and any number of words.
func (a *app) messageArgs(cmd *cobra.Command, args []string) error {
	return a.args(workerArg)(cmd, args[:min(1, len(args))])
}

func (a *app) workerCallCommand() *cobra.Command {
	timeout := durationValue{d: requestTimeout}
	var via addrsValue
	cmd := a.outputFlag(&cobra.Command{
		Use:   "call NAME [PAYLOAD|-]",
		Short: "Send a worker a message and print its reply",
		Long: `call sends a worker a message and writes the reply to standard output as it is.
Several words are one payload, joined by spaces; - reads it from standard
input. A worker that reports an error code ends call with exit code 1.`,
		Args:              a.messageArgs,
		ValidArgsFunction: a.completeWorkers,
		RunE: func(cmd *cobra.Command, args []string) error {
			body, err := a.payload(args[1:])
			if err != nil {
				return err
			}
			ctx, cancel := withTimeout(cmd.Context(), timeout.d, "call "+args[0])
			defer cancel()
			begin := time.Now()
			r, err := a.exchange(ctx, via.addrs, args[0], control.Message{Call: true, Payload: body})
			if err != nil {
				return err
			}
			if err := a.printReply(args[0], r, time.Since(begin), false); err != nil {
				return err
			}
			if r.Status != 0 {
				return statusError(args[0], r.Status)
			}
			return nil
		},
	})
	cmd.Flags().Var(&timeout, "timeout", "how long to wait for the reply")
	viaFlag(cmd, &via)
	return cmd
}

func statusError(worker string, status int32) error {
	return &control.Error{Code: control.CodeFailed, Message: fmt.Sprintf("%s returned the error code %d", worker, status)}
}

// printReply writes a reply's bytes as they are, with an end of line where
// lines are wanted or a person is looking.
func (a *app) printReply(worker string, r control.Reply, rtt time.Duration, line bool) error {
	if a.format.value == "json" {
		d := control.CallResult{Worker: worker, Status: r.Status, Bytes: len(r.Payload), RTTMs: control.Millis(rtt)}
		if utf8.Valid(r.Payload) {
			d.Payload = string(r.Payload)
		} else {
			d.PayloadBase64 = base64.StdEncoding.EncodeToString(r.Payload)
		}
		return control.Encode(a.stdout, &d)
	}
	if _, err := a.stdout.Write(r.Payload); err != nil {
		return err
	}
	_, tty := terminal(a.stdout)
	if line || tty && len(r.Payload) > 0 && r.Payload[len(r.Payload)-1] != '\n' {
		_, err := io.WriteString(a.stdout, "\n")
		return err
	}
	return nil
}

func (a *app) workerSendCommand() *cobra.Command {
	timeout := durationValue{d: requestTimeout}
	var via addrsValue
	cmd := &cobra.Command{
		Use:   "send NAME [PAYLOAD|-]",
		Short: "Send a worker a message that has no reply",
		Long: `send gives a worker a message and returns once the worker has handled it. Several
words are one payload, joined by spaces; - reads it from standard input.`,
		Args:              a.messageArgs,
		ValidArgsFunction: a.completeWorkers,
		RunE: func(cmd *cobra.Command, args []string) error {
			body, err := a.payload(args[1:])
			if err != nil {
				return err
			}
			ctx, cancel := withTimeout(cmd.Context(), timeout.d, "send to "+args[0])
			defer cancel()
			_, err = a.exchange(ctx, via.addrs, args[0], control.Message{Payload: body})
			return err
		},
	}
	cmd.Flags().Var(&timeout, "timeout", "how long to wait until it is handled")
	viaFlag(cmd, &via)
	return cmd
}

func (a *app) workerAttachCommand() *cobra.Command {
	var via addrsValue
	cmd := a.outputFlag(&cobra.Command{
		Use:   "attach NAME",
		Short: "Talk to a worker: each line in is a call, each line out its reply",
		Long: `attach sends each line of standard input to a worker as a call and writes each
reply as a line, in the same order, without waiting for one before it sends the
next. It stays with the worker wherever it moves, and ends with standard input,
after the last reply.

A command worker has no replies: each line is one of its input, and what it
writes is written as it comes, from the oldest line in its log, until it ends.
(That needs a node on this machine: with --via it is not shown.)

A client with several --via stays attached while it changes its address, when
the node it is attached to fails, and changes to one that has come nearer.
Nothing is lost and nothing comes twice.`,
		Args:              a.args(workerArg),
		ValidArgsFunction: a.completeWorkers,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(via.addrs) > 0 {
				return a.attachVia(cmd.Context(), via.addrs, args[0])
			}
			c := a.client()
			defer c.Close()
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			open, stop := withTimeout(ctx, requestTimeout, "attach to "+args[0])
			defer stop()
			w, err := c.Worker(open, args[0])
			if err != nil {
				return err
			}
			s, err := c.Session(open, args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			stop()
			if w.Command {
				return a.attachProgram(ctx, c, args[0], s)
			}
			return a.attach(ctx, args[0], s)
		},
	})
	viaFlag(cmd, &via)
	return cmd
}

func (a *app) attach(ctx context.Context, worker string, s lineSession) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Reading standard input cannot be interrupted, so the goroutine that does
	// is the one that is not waited for: the process ends with it.
	input := make(chan error, 1)
	sent := make(chan time.Time, 1<<16)
	go func() { input <- sendLines(ctx, a.stdin, s, true, sent) }()

	failed := 0
	for {
		r, err := s.Recv(ctx)
		switch {
		case errors.Is(err, control.ErrSessionDone):
			if err := <-input; err != nil {
				return err
			}
			if failed > 0 {
				return &control.Error{Code: control.CodeFailed, Message: fmt.Sprintf("%s failed", plural(failed, "call"))}
			}
			return nil
		case err != nil:
			select {
			case inErr := <-input:
				if inErr != nil {
					return inErr
				}
			default:
			}
			return err
		}
		rtt := time.Since(<-sent)
		switch {
		case r.Err != nil:
			failed++
			fmt.Fprintf(a.stderr, "meshnode: %s\n", r.Err)
			continue
		case r.Status != 0:
			failed++
			fmt.Fprintf(a.stderr, "meshnode: %s\n", statusError(worker, r.Status))
		}
		if err := a.printReply(worker, r, rtt, true); err != nil {
			return err
		}
	}
}

// attachProgram passes lines to a command worker and what it writes back, until
// it ends.
func (a *app) attachProgram(ctx context.Context, c *control.Client, worker string, s *control.ClientSession) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sent := make(chan time.Time, 1<<16)
	go func() {
		// Standard input may end before the program does.
		if err := sendLines(ctx, a.stdin, s, false, sent); err != nil {
			cancel(err)
		}
	}()
	go func() {
		for {
			r, err := s.Recv(ctx)
			switch {
			case err != nil:
				return // the log tells how the program ended
			case r.Err != nil:
				fmt.Fprintf(a.stderr, "meshnode: %s\n", r.Err)
			case r.Status != 0:
				fmt.Fprintf(a.stderr, "meshnode: %s\n", freeText(string(r.Payload)))
			}
			<-sent
		}
	}()
	err := c.Logs(ctx, worker, true, func(l control.LogLine) error {
		switch {
		case a.format.value == "json":
			return control.Encode(a.stdout, &l)
		case l.Source == "stdout":
			_, err := fmt.Fprintln(a.stdout, l.Text)
			return err
		case l.Source == "stderr":
			_, err := fmt.Fprintln(a.stderr, l.Text)
			return err
		}
		return nil
	})
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// sendLines sends each line, as a call or not, and ends the session's sending side
// with the last. When each was sent goes to sent.
func sendLines(ctx context.Context, in io.Reader, s lineSession, call bool, sent chan<- time.Time) error {
	sc := bufio.NewScanner(in)
	sc.Buffer(nil, control.MaxPayloadBytes+2) // and its end of line
	for n := 1; sc.Scan(); n++ {
		select {
		case sent <- time.Now():
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := s.Send(ctx, control.Message{Call: call, Payload: sc.Bytes()}); err != nil {
			s.End(ctx)
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	err := sc.Err()
	if errors.Is(err, bufio.ErrTooLong) {
		err = usagef("a line is over the limit of %s", size(control.MaxPayloadBytes))
	}
	return errors.Join(err, s.End(ctx))
}
