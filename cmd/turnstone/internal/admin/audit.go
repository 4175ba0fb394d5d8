package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"turnstone/audit"
	"turnstone/turn"
)

// Auditor answers who relayed to whom.
type Auditor interface {
	Audit(ctx context.Context, f audit.Filter, limit int, p audit.Progress, found audit.Found) (audit.Summary, error)
}

// audited is one element of the stream of answers: the last one is the summary.
type audited struct {
	Answer  *audit.Answer  `json:"answer,omitempty"`
	Done    turn.Seq       `json:"done,omitempty"` // of All events: the index is being brought up to date
	All     turn.Seq       `json:"all,omitempty"`
	Summary *audit.Summary `json:"summary,omitempty"`
}

// audit streams the answers to the filter in the query, as they are found.
func (s *Server) audit(w http.ResponseWriter, r *http.Request) {
	var f audit.Filter
	err := json.Unmarshal([]byte(r.FormValue("filter")), &f)
	limit, bad := strconv.Atoi(r.FormValue("limit"))
	if err = errors.Join(err, bad); err != nil {
		reply(w, nil, fmt.Errorf("read the filter: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	send := func(v audited) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return writeFrame(w, b)
	}
	told := func(done, all turn.Seq) {
		_ = send(audited{Done: done, All: all}) // the client is gone: the next answer finds out
		_ = http.NewResponseController(w).Flush()
	}
	sum, err := s.daemon.Audit(r.Context(), f, limit, told, func(a audit.Answer) (bool, error) { return true, send(audited{Answer: &a}) })
	if err == nil {
		err = send(audited{Summary: &sum})
	}
	if err != nil {
		_ = writeFailure(w, err) // the client is gone, or reads it
		return
	}
	_ = writeEnd(w)
}

// Audit asks the daemon who relayed to whom.
func (c *Client) Audit(ctx context.Context, f audit.Filter, limit int, p audit.Progress, found audit.Found) (sum audit.Summary, err error) {
	b, err := json.Marshal(f)
	if err != nil {
		return sum, err
	}
	resp, err := c.do(ctx, http.MethodGet, "/v1/audit?"+url.Values{"filter": {string(b)}, "limit": {strconv.Itoa(limit)}}.Encode())
	if err != nil {
		return sum, err
	}
	defer resp.Body.Close()
	for raw, err := range readStream(resp.Body) {
		var v audited
		if err == nil {
			err = json.Unmarshal(raw, &v)
		}
		if err != nil {
			return sum, err
		}
		switch {
		case v.Summary != nil:
			sum = *v.Summary
		case v.Answer == nil:
			p(v.Done, v.All)
		default:
			if more, err := found(*v.Answer); err != nil || !more {
				return sum, err
			}
		}
	}
	return sum, nil
}
