package systemd

import (
	"fmt"
	"io"
	"os"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// priorities are those of the journal (syslog(3)); others are informational.
var priorities = map[zerolog.Level]int{
	zerolog.TraceLevel: 7, zerolog.DebugLevel: 7, zerolog.WarnLevel: 4, zerolog.ErrorLevel: 3, zerolog.FatalLevel: 2, zerolog.PanicLevel: 2,
}

// Journal is f with the priority before each line (sd-daemon(3)), where f is a stream of the journal: there
// journalctl -p tells warnings from the rest. Else it is f.
func Journal(f *os.File) io.Writer {
	var at unix.Stat_t
	if unix.Fstat(int(f.Fd()), &at) != nil || os.Getenv("JOURNAL_STREAM") != fmt.Sprintf("%d:%d", at.Dev, at.Ino) {
		return f
	}
	return journal{f}
}

type journal struct{ io.Writer }

// WriteLevel is for zerolog. Each call has one line.
func (j journal) WriteLevel(level zerolog.Level, line []byte) (int, error) {
	priority, ok := priorities[level]
	if !ok {
		priority = 6
	}
	if _, err := j.Write(append(fmt.Appendf(nil, "<%d>", priority), line...)); err != nil {
		return 0, err
	}
	return len(line), nil
}
