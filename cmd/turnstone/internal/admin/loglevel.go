package admin

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Levels are those of the daemon's own log lines, the most talkative first.
var Levels = []string{"trace", "debug", "info", "warn", "error"}

// LogLevel is what the daemon logs.
type LogLevel struct {
	Level  string `json:"level"`
	Before string `json:"before"`
}

// Leveller changes what a daemon logs.
type Leveller interface {
	// SetLogLevel puts one of Levels in force until the next reload or restart.
	SetLogLevel(level string) LogLevel
}

func levelRoutes(mux routes, l Leveller, o Operators) {
	level := func(r *http.Request) (string, error) {
		if v := r.FormValue("level"); slices.Contains(Levels, v) {
			return v, nil
		}
		return "unknown", fmt.Errorf("%q is none of %s", r.FormValue("level"), strings.Join(Levels, ", "))
	}
	what := func(r *http.Request) string {
		v, _ := level(r) // a wrong one is refused below
		return "log level " + v
	}
	mux.look(o, "POST /v1/log-level", what, func(w http.ResponseWriter, r *http.Request) {
		v, err := level(r)
		var out LogLevel
		if err == nil {
			out = l.SetLogLevel(v)
		}
		reply(w, out, err)
	})
}

// SetLogLevel has the daemon log more or less.
func (c *Client) SetLogLevel(ctx context.Context, level string) (LogLevel, error) {
	return call[LogLevel](ctx, c, http.MethodPost, "/v1/log-level?"+url.Values{"level": {level}}.Encode())
}
