package main

import (
	"io"
	"os"
	"time"

	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/systemd"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// newLogger logs JSON lines to w, or a form for people where w is a terminal. The journal is told their priorities.
// The level is that of all loggers, so that a reload can change it.
func newLogger(w io.Writer, r config.Resolved) zerolog.Logger {
	f, isFile := w.(*os.File)
	console := r.LogFormat == "console" || (r.LogFormat == "auto" && isFile && term.IsTerminal(int(f.Fd())))
	switch {
	case isFile && !console:
		w = systemd.Journal(f)
	case console:
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly, NoColor: os.Getenv("NO_COLOR") != ""}
	}
	zerolog.TimeFieldFormat = time.RFC3339Nano
	zerolog.SetGlobalLevel(r.Level)
	return zerolog.New(w).With().Timestamp().Logger()
}

// tuneProcess fits the limits of the process to a relay.
func tuneProcess(log zerolog.Logger) {
	raiseCapabilities(log)
	raiseFileLimit(log)
	tuneMemory(log)
}

// raiseFileLimit makes room for a socket for every allocation, as far as the
// process may.
func raiseFileLimit(log zerolog.Logger) {
	const want = 1 << 20
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil || l.Cur >= want {
		return
	}
	raised := unix.Rlimit{Cur: want, Max: max(want, l.Max)}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) == nil {
		return
	}
	l.Cur = l.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Max < 1<<16 {
		log.Warn().Uint64("files", l.Cur).Msg("few files may be open, and each allocation takes one: raise LimitNOFILE of the service, or ulimit -n")
	}
}
