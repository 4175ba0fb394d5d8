package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"

	"turnstone/store"
	"turnstone/turn"
)

// Signer signs where the log stands.
type Signer interface {
	// Checkpoint is a note that is signed now, and the key to verify it with.
	Checkpoint() (Signed, error)
}

// Signed is a checkpoint and the key it was signed with.
type Signed struct {
	Note []byte `json:"note"`
	Key  string `json:"key"`
}

// proofRequest asks for the proof of events.
type proofRequest struct {
	Events []turn.Seq `json:"events"`
}

// maxProofRequest bounds a request, in bytes.
const maxProofRequest = 64 << 20

// checkpointRoutes adds what is about checkpoints and proofs to mux.
func checkpointRoutes(mux routes, s Signer, l *store.Log) {
	mux.HandleFunc("POST /v1/log/checkpoint", func(w http.ResponseWriter, _ *http.Request) {
		signed, err := s.Checkpoint()
		reply(w, signed, err)
	})
	mux.HandleFunc("GET /v1/log/segments", func(w http.ResponseWriter, _ *http.Request) {
		heads, err := l.SegmentHeads()
		reply(w, heads, err)
	})
	mux.HandleFunc("GET /v1/log/snapshots", func(w http.ResponseWriter, _ *http.Request) {
		list, err := l.Snapshots()
		reply(w, append([]store.Snapshot{}, list...), err)
	})
	mux.HandleFunc("POST /v1/log/proof", func(w http.ResponseWriter, r *http.Request) {
		var q proofRequest
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxProofRequest)).Decode(&q)
		var signed Signed
		if err == nil {
			signed, err = s.Checkpoint()
		}
		var p store.Proof
		if err == nil {
			p, err = l.Prover().ProveAgainst(signed.Note, q.Events...)
		}
		reply(w, p, err)
	})
}

// SegmentHeads are the headers of the segments of the daemon's log.
func (c *Client) SegmentHeads(ctx context.Context) ([]store.SegmentHead, error) {
	return call[[]store.SegmentHead](ctx, c, http.MethodGet, "/v1/log/segments")
}

// Snapshots lists the snapshots of the daemon's log.
func (c *Client) Snapshots(ctx context.Context) ([]store.Snapshot, error) {
	return call[[]store.Snapshot](ctx, c, http.MethodGet, "/v1/log/snapshots")
}

// Checkpoint has the daemon sign where its log stands.
func (c *Client) Checkpoint(ctx context.Context) (Signed, error) {
	return call[Signed](ctx, c, http.MethodPost, "/v1/log/checkpoint")
}

// Prove has the daemon prove events against a checkpoint that it signs for that.
func (c *Client) Prove(ctx context.Context, seqs []turn.Seq) (p store.Proof, err error) {
	b, err := json.Marshal(proofRequest{seqs})
	if err != nil {
		return p, err
	}
	resp, err := c.send(ctx, http.MethodPost, "/v1/log/proof", bytes.NewReader(b))
	if err != nil {
		return p, err
	}
	defer resp.Body.Close()
	return p, json.NewDecoder(resp.Body).Decode(&p)
}
