package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"

	"turnstone/store"
	"turnstone/turn"
)

// A state goes over the socket as a stream (see [readStream]) whose first frame is a stateHead in JSON. Frames with its
// snapshot, if there is one, follow, and then the records from there on, the first that is not within the bound being the
// last one.

// stateHead says what a state is made of.
type stateHead struct {
	At     turn.Seq `json:"at"` // of the snapshot, 0 for none
	Size   int      `json:"size"`
	Passed []string `json:"passed"` // what is wrong with later snapshots
}

// stateFrame is how much of a snapshot is in a frame.
const stateFrame = 1 << 18

// logState streams a snapshot and the records after it, of which the state within a bound is made.
func (s *Server) logState(w http.ResponseWriter, r *http.Request) {
	seq, err := strconv.ParseUint(r.FormValue("seq"), 10, 64)
	wall, err2 := strconv.ParseInt(r.FormValue("wall"), 10, 64)
	if errors.Join(err, err2) != nil {
		http.Error(w, `{"error":"seq and wall are no bound"}`, http.StatusBadRequest)
		return
	}
	b := store.Bound{Seq: turn.Seq(seq), Wall: wall}
	e, err := s.log.SnapshotWithin(b)
	if err != nil {
		reply(w, nil, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := sendState(w, s.log, e, b); err != nil {
		_ = writeFailure(w, err) // the client is gone, or reads it
		return
	}
	_ = writeEnd(w)
}

// logSpan is the sequences that a log holds.
type logSpan struct {
	First turn.Seq `json:"first"`
	Last  turn.Seq `json:"last"`
}

func (s *Server) logSpan(w http.ResponseWriter, _ *http.Request) {
	first, last, err := s.log.Span()
	reply(w, logSpan{first, last}, err)
}

// LogSpan is the sequences of the first and the last event of the daemon's log, 0 for none.
func (c *Client) LogSpan(ctx context.Context) (first, last turn.Seq, err error) {
	span, err := call[logSpan](ctx, c, http.MethodGet, "/v1/log/span")
	return span.First, span.Last, err
}

func sendState(w io.Writer, l *store.Log, e store.Encoded, b store.Bound) error {
	head := stateHead{At: e.At, Size: len(e.Body), Passed: []string{}}
	for _, err := range e.Passed {
		head.Passed = append(head.Passed, err.Error())
	}
	text, err := json.Marshal(head)
	if err != nil {
		return err
	}
	if err := writeFrame(w, text); err != nil {
		return err
	}
	for chunk := range slices.Chunk(e.Body, stateFrame) {
		if err := writeFrame(w, chunk); err != nil {
			return err
		}
	}
	for raw, err := range store.Raw(l, e.At+1) {
		if err != nil {
			return err
		}
		if err := writeFrame(w, raw); err != nil {
			return err
		}
		if !b.HoldsRaw(raw) {
			return nil
		}
	}
	return nil
}

// StateWithin is [store.Reader.StateWithin] of the daemon's log.
func (c *Client) StateWithin(ctx context.Context, b store.Bound, warn func(error)) (*turn.State, *turn.Record, error) {
	resp, err := c.do(ctx, http.MethodGet, fmt.Sprintf("/v1/log/state?seq=%d&wall=%d", b.Seq, b.Wall))
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body := bufio.NewReaderSize(resp.Body, 1<<16)
	e, err := readState(body)
	if err != nil {
		return nil, nil, err
	}
	for _, err := range e.Passed {
		warn(err)
	}
	keys := c.Keys(ctx)
	state, err := e.State(keys)
	if err != nil {
		return nil, nil, err
	}
	next, err := store.FoldWithin(state, store.Decoded(readStream(body), keys), b)
	return state, next, err
}

// Snapshot is the snapshot at, in its stored form, of the daemon's log. Where that is damaged or gone it is an earlier one.
func (c *Client) Snapshot(ctx context.Context, at turn.Seq) (store.Encoded, error) {
	b := store.Through(at)
	resp, err := c.do(ctx, http.MethodGet, fmt.Sprintf("/v1/log/state?seq=%d&wall=%d", b.Seq, b.Wall))
	if err != nil {
		return store.Encoded{}, err
	}
	defer resp.Body.Close()
	return readState(resp.Body)
}

// readState reads what comes before the records.
func readState(r io.Reader) (e store.Encoded, err error) {
	text, err := readFrame(r)
	if err != nil {
		return e, noEOF(err)
	}
	var head stateHead
	if err := json.Unmarshal(text, &head); err != nil {
		return e, fmt.Errorf("read the daemon's answer: %w", err)
	}
	e.At = head.At
	for _, text := range head.Passed {
		e.Passed = append(e.Passed, errors.New(text))
	}
	for len(e.Body) < head.Size {
		chunk, err := readFrame(r)
		if err != nil {
			return e, noEOF(err)
		}
		e.Body = append(e.Body, chunk...)
	}
	return e, nil
}
