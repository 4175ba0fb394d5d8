// Package crash sees to it that a panic ends the process, and that the next run says why.
package crash

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
)

const (
	fileName = "crash"
	lastName = "crash.last"
)

// Watch has the runtime write what ends the process to a file in dir, beside stderr. It yields what
// the run before left there, which is kept in crash.last; empty for a run that ended in good order.
func Watch(dir string) (last string, err error) {
	file := filepath.Join(dir, fileName)
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the last crash: %w", err)
	}
	if len(b) > 0 {
		if err := os.Rename(file, LastFile(dir)); err != nil {
			return "", fmt.Errorf("keep the last crash: %w", err)
		}
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return string(b), fmt.Errorf("watch for crashes: %w", err)
	}
	defer f.Close() // the runtime has a descriptor of its own
	if err := debug.SetCrashOutput(f, debug.CrashOptions{}); err != nil {
		return string(b), fmt.Errorf("watch for crashes: %w", err)
	}
	return string(b), nil
}

// LastFile is where Watch keeps the crash before.
func LastFile(dir string) string { return filepath.Join(dir, lastName) }

// Headline is the line of a crash that says what happened.
func Headline(text string) string {
	first, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return first
}

// Handler is h, but a panic in it ends the process, as one anywhere else does: net/http would go on.
func Handler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil {
				go panic(fmt.Sprintf("serve %s %s: %v\n%s", r.Method, r.URL.Path, p, debug.Stack()))
				select {}
			}
		}()
		h.ServeHTTP(w, r)
	})
}
