package admin

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"time"

	"turnstone/turn"
)

// Warden keeps users out.
type Warden interface {
	// UserMeant is the user whom an operator calls name, and the realm, the main one where it is empty, as bans have
	// them. Known says whether there is such a realm.
	UserMeant(realm, name string) (inRealm, username string, known bool)
	// Ban bans a user and ends what the user has. It returns when nothing is relayed for that any more, with how many
	// allocations it were.
	Ban(ctx context.Context, e turn.UserBanned) (turn.Ban, int, error)
	// Unban lifts the bans of a user.
	Unban(ctx context.Context, e turn.UserUnbanned) error
}

// Ban is a ban as it is shown.
type Ban struct {
	Name    string    `json:"name"`
	Realm   string    `json:"realm"`
	Since   time.Time `json:"since"`
	Expires time.Time `json:"expires,omitzero"` // zero: when it is lifted
	Overdue bool      `json:"overdue" table:"detail"`
}

// Banned is what a ban has done.
type Banned struct {
	Name        string    `json:"name"`
	Realm       string    `json:"realm"`
	State       string    `json:"state"`
	Expires     time.Time `json:"expires,omitzero"` // zero: when it is lifted
	Allocations int       `json:"allocations"`      // that it ended
}

// DescribeBan shows b as of m.
func DescribeBan(b turn.Ban, m turn.Moment) Ban {
	out := Ban{Name: b.Username, Realm: b.Realm, Since: b.Since.WallTime(), Overdue: b.Over(m)}
	if !b.Endless() {
		out.Expires = endOf(b.Deadline, m).Truncate(time.Millisecond)
	}
	return out
}

// Bans shows those of s as of m, by user.
func Bans(s *turn.State, m turn.Moment) []Ban {
	out := []Ban{}
	for _, b := range s.Bans() {
		out = append(out, DescribeBan(b, m))
	}
	return out
}

// parseBan is the ban that a request asks for, or lifts.
func parseBan(d Warden, r *http.Request) (e turn.UserBanned, known bool, err error) {
	name := r.FormValue("username")
	if name == "" || len(name) > turn.MaxUsername {
		return e, false, fmt.Errorf("%q is no name of a user: want 1 to %d bytes", name, turn.MaxUsername)
	}
	e.Realm, e.Username, known = d.UserMeant(r.FormValue("realm"), name)
	if text := r.FormValue("for"); text != "" {
		long, err := time.ParseDuration(text)
		if err != nil || long < time.Second || long > math.MaxUint32*time.Second {
			return e, known, fmt.Errorf("%q is no time for which a user can be banned: want a duration from 1s on, such as 24h", text)
		}
		e.Seconds = uint32(long / time.Second)
	}
	return e, known, nil
}

// bans says in the log who is to be banned, or not any more: nothing else that was typed.
func bans(d Warden, what string) func(*http.Request) string {
	return func(r *http.Request) string {
		e, known, err := parseBan(d, r)
		if err != nil || !known {
			return what + " unknown"
		}
		return fmt.Sprintf("%s %s of %s", what, e.Username, e.Realm)
	}
}

func (s *Server) banRoutes(mux routes) {
	d := s.daemon
	mux.HandleFunc("GET /v1/users/banned", func(w http.ResponseWriter, r *http.Request) {
		var out []Ban
		err := s.view(r, func(st *turn.State) { out = Bans(st, s.now()) })
		reply(w, out, err)
	})
	mux.act(d, "POST /v1/users/ban", bans(d, "ban user"), func(w http.ResponseWriter, r *http.Request) {
		e, known, err := parseBan(d, r)
		if err == nil && !known {
			err = fmt.Errorf("there is no realm %q", e.Realm)
		}
		var out Banned
		if err == nil {
			var b turn.Ban
			b, out.Allocations, err = d.Ban(r.Context(), e)
			shown := DescribeBan(b, s.now())
			out.Name, out.Realm, out.State, out.Expires = shown.Name, shown.Realm, "banned", shown.Expires
		}
		reply(w, out, err)
	})
	mux.act(d, "POST /v1/users/unban", bans(d, "unban user"), func(w http.ResponseWriter, r *http.Request) {
		e, _, err := parseBan(d, r)
		if err == nil {
			err = d.Unban(r.Context(), turn.UserUnbanned{Realm: e.Realm, Username: e.Username})
		}
		reply(w, struct{}{}, err)
	})
}

// BanUser bans a user of a realm, of the main one where it is empty, for a time, without end where that is zero.
func (c *Client) BanUser(ctx context.Context, realm, name string, long time.Duration) (Banned, error) {
	q := url.Values{"username": {name}, "realm": {realm}}
	if long != 0 {
		q.Set("for", long.String())
	}
	return call[Banned](ctx, c, http.MethodPost, "/v1/users/ban?"+q.Encode())
}

// UnbanUser lifts the bans of a user.
func (c *Client) UnbanUser(ctx context.Context, realm, name string) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, "/v1/users/unban?"+url.Values{"username": {name}, "realm": {realm}}.Encode())
	return err
}

// Bans lists the bans.
func (c *Client) Bans(ctx context.Context) ([]Ban, error) {
	return call[[]Ban](ctx, c, http.MethodGet, "/v1/users/banned")
}
