package crash

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
)

// crashDir, where it is set, has the test binary serve a request that panics, with its crash written there.
const crashDir = "TURNSTONE_TEST_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		panicInHandler(dir)
	}
	os.Exit(m.Run())
}

func panicInHandler(dir string) {
	if _, err := Watch(dir); err != nil {
		panic(err)
	}
	server := httptest.NewServer(Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("a bug in a handler") })))
	if resp, err := http.Get(server.URL + "/here"); err == nil {
		resp.Body.Close()
	}
	os.Exit(0) // it went on
}

// watched watches dir, and has nothing watched when the test ends.
func watched(t *testing.T, dir string) (last string) {
	t.Helper()
	last, err := Watch(dir)
	t.Cleanup(func() {
		if err := debug.SetCrashOutput(nil, debug.CrashOptions{}); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return last
}

func TestRunInGoodOrderLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	for run := range 2 {
		if last := watched(t, dir); last != "" {
			t.Errorf("run %d: got the crash %q, want none", run+1, last)
		}
	}
	if _, err := os.Stat(LastFile(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("crash.last: got %v, want none", err)
	}
	info, err := os.Stat(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode of the crash file: got %o, want 600: a trace may hold what a request held", got)
	}
}

func TestCrashIsToldOnceAndKept(t *testing.T) {
	dir := t.TempDir()
	const trace = "panic: a bug\n\ngoroutine 7 [running]:\n"
	if err := os.WriteFile(filepath.Join(dir, fileName), []byte(trace), 0o600); err != nil {
		t.Fatal(err)
	}
	if last := watched(t, dir); last != trace {
		t.Errorf("first run after it: got %q, want %q", last, trace)
	}
	if last := watched(t, dir); last != "" {
		t.Errorf("second run after it: got %q, want nothing", last)
	}
	kept, err := os.ReadFile(LastFile(dir))
	if err != nil || string(kept) != trace {
		t.Errorf("crash.last: got %q, %v, want the trace", kept, err)
	}
}

func TestWatchWithoutADirectory(t *testing.T) {
	if _, err := Watch(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want %v", err, os.ErrNotExist)
	}
}

func TestHeadline(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "",
		"panic: a bug":                "panic: a bug",
		"\npanic: a bug\n\ngoroutine": "panic: a bug",
		"fatal error: concurrent map writes\n\ngoroutine 1": "fatal error: concurrent map writes",
	} {
		if got := Headline(text); got != want {
			t.Errorf("headline of %q: got %q, want %q", text, got, want)
		}
	}
}

func TestHandlerPassesOn(t *testing.T) {
	h := Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Error(w, r.URL.Path, http.StatusTeapot) }))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/here", nil))
	if w.Code != http.StatusTeapot || w.Body.String() != "/here\n" {
		t.Errorf("got %d %q, want what the handler said", w.Code, w.Body.String())
	}
}

// TestPanicInAHandlerEndsTheProcess runs the test binary again, to panic in it.
func TestPanicInAHandlerEndsTheProcess(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	stderr, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Fatalf("got %v, want exit code 2, with\n%s", err, stderr)
	}
	last := watched(t, dir)
	if got, want := Headline(last), "panic: serve GET /here: a bug in a handler"; !strings.HasPrefix(got, want) {
		t.Errorf("headline: got %q, want %q", got, want)
	}
	if !strings.Contains(last, "crash.panicInHandler") {
		t.Errorf("the trace does not show where it was:\n%s", last)
	}
}
