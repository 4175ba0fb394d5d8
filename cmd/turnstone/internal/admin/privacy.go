package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"turnstone/store"
)

// Privacy is what a daemon does for those who are in its log.
type Privacy interface {
	// Forget erases keys of segments; with plan it only says of which.
	Forget(ctx context.Context, which store.Which, plan bool, by string) ([]store.Forgettable, error)
	// CalledAs is how a user of that name may be called in the log.
	CalledAs(username string) []string
}

func privacyRoutes(mux routes, d Privacy, log *store.Log) {
	mux.HandleFunc("GET /v1/log/keys/{segment}", func(w http.ResponseWriter, r *http.Request) {
		segment, err := strconv.ParseUint(r.PathValue("segment"), 10, 64)
		var key segmentKey
		if err == nil {
			key.Key, err = log.Keys().Export(segment)
		}
		reply(w, key, err)
	})
	mux.HandleFunc("POST /v1/log/forget", func(w http.ResponseWriter, r *http.Request) {
		which, err := parseWhich(r.FormValue("segment"), r.FormValue("before"))
		var list []store.Forgettable
		if err == nil {
			list, err = d.Forget(r.Context(), which, r.FormValue("plan") == "true", peerOf(r.Context()).String())
		}
		reply(w, list, err)
	})
	mux.HandleFunc("POST /v1/users/called", func(w http.ResponseWriter, r *http.Request) {
		reply(w, d.CalledAs(r.FormValue("username")), nil)
	})
}

// segmentKey is the key of an encrypted segment; it is nil where there is none. It is handed out since the records of the
// log are streamed as they are stored, so that they can be verified, and whoever is let in here may read them.
type segmentKey struct {
	Key []byte `json:"key"`
}

func parseWhich(segment, before string) (w store.Which, err error) {
	if segment != "" {
		w.Segment, err = strconv.ParseUint(segment, 10, 64)
		if err == nil && w.Segment == 0 {
			err = errors.New("segments are numbered from 1")
		}
		return w, err
	}
	w.Before, err = time.Parse(time.RFC3339Nano, before)
	return w, err
}

// Keys are the keys of the daemon's log, which are asked for one by one.
func (c *Client) Keys(ctx context.Context) *store.Keyring {
	return store.LoadingKeyring("the daemon's keys", func(segment uint64) ([]byte, error) {
		key, err := call[segmentKey](ctx, c, http.MethodGet, fmt.Sprintf("/v1/log/keys/%d", segment))
		return key.Key, err
	})
}

// Forget has the daemon erase keys of segments; with plan it only says of which.
func (c *Client) Forget(ctx context.Context, which store.Which, plan bool) ([]store.Forgettable, error) {
	q := url.Values{"plan": {strconv.FormatBool(plan)}}
	if which.Segment != 0 {
		q.Set("segment", strconv.FormatUint(which.Segment, 10))
	} else {
		q.Set("before", which.Before.UTC().Format(time.RFC3339Nano))
	}
	return call[[]store.Forgettable](ctx, c, http.MethodPost, "/v1/log/forget?"+q.Encode())
}

// CalledAs asks how a user of that name may be called in the log.
func (c *Client) CalledAs(ctx context.Context, username string) ([]string, error) {
	return call[[]string](ctx, c, http.MethodPost, "/v1/users/called?"+url.Values{"username": {username}}.Encode())
}
