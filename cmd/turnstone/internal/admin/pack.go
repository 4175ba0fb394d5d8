package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"turnstone/store"
	"turnstone/turn"
)

// logPack streams a pack of the log (see [store.WritePack]), which says itself why it ends early. Where it is a
// backup, what stands beside the log goes along.
func (s *Server) logPack(w http.ResponseWriter, r *http.Request) {
	from, err := strconv.ParseUint(r.FormValue("from"), 10, 64)
	to, err2 := strconv.ParseUint(r.FormValue("to"), 10, 64)
	if errors.Join(err, err2) != nil {
		http.Error(w, `{"error":"from and to are no sequences"}`, http.StatusBadRequest)
		return
	}
	o := store.PackOptions{
		From: turn.Seq(from), To: turn.Seq(to), FileOnly: r.FormValue("file-only") == "true", Keys: r.FormValue("keys") == "true",
	}
	if r.FormValue("files") == "true" {
		o.Dir = s.log.Dir()
	}
	w.Header().Set("Content-Type", "application/cbor-seq")
	_, _ = store.WritePack(r.Context(), w, s.log, o) // the client is gone, or reads it
}

// Pack streams a pack of the daemon's log. Of the options, Dir is the daemon's own, where it is not empty.
func (c *Client) Pack(ctx context.Context, o store.PackOptions) (io.ReadCloser, error) {
	resp, err := c.do(ctx, http.MethodGet, fmt.Sprintf("/v1/log/pack?from=%d&to=%d&file-only=%t&files=%t&keys=%t", o.From, o.To, o.FileOnly, o.Dir != "", o.Keys))
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}
