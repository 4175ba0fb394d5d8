// Package doctor finds what on a host keeps a relay from working, or from working well, and says what to do
// about it. Gather collects facts; Diagnose, which is pure, judges them.
package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// Result is how a check came out.
type Result string

// Results. Whatever only costs speed is a warning.
const (
	OK   Result = "ok"
	Warn Result = "warn"
	Fail Result = "fail" // it does not work as configured
	Skip Result = "skip" // it cannot be told, or does not matter here
)

// Row is what one check found.
type Row struct {
	Check     string `json:"check"`
	Interface string `json:"interface"` // empty: the host
	Result    Result `json:"result"`
	Seen      string `json:"seen"`
	Remedy    string `json:"remedy" table:"-"` // empty where there is nothing to do
}

// Known is a fact, or why it is not known.
type Known[T any] struct {
	Value T
	Err   error
}

func known[T any](v T, err error) Known[T] { return Known[T]{v, err} }

// errNothing says that a fact does not exist on this host.
var errNothing = errors.New("there is none")

// Diagnose judges facts. The rows are in an order of their own: the daemon, BPF, interfaces, network, process,
// certificates, data.
func Diagnose(f *Facts) []Row {
	var rows []Row
	for _, check := range []func(*Facts) []Row{
		checkDaemon, checkNamespaces, checkBPF, checkInterfaces, checkPassedUp,
		checkListeners, checkOutside, checkPorts, checkFirewall, checkReversePath, checkBuffers,
		checkFiles, checkClock, checkCertificates, checkDisk, checkAccess, checkPrivate,
	} {
		rows = append(rows, check(f)...)
	}
	return rows
}

// Failed says whether a check failed.
func Failed(rows []Row) bool {
	return slices.ContainsFunc(rows, func(r Row) bool { return r.Result == Fail })
}

func ok(check, format string, args ...any) Row {
	return Row{Check: check, Result: OK, Seen: fmt.Sprintf(format, args...)}
}

// skip is for what cannot be told, and says why. Where this user may not look, it takes what needs names.
func skip(check string, why error, needs ...string) Row {
	r := Row{Check: check, Result: Skip, Seen: "cannot tell: " + reason(why, needs...)}
	if errors.Is(why, fs.ErrPermission) {
		r.Remedy = "run turnstone doctor as root"
	}
	return r
}

// reason is err in few words.
func reason(err error, needs ...string) string {
	switch {
	case !errors.Is(err, fs.ErrPermission):
		return err.Error()
	case len(needs) > 0:
		return "it takes " + strings.Join(needs, " and ")
	}
	return "this user may not look"
}

func (r Row) as(result Result, remedy string, args ...any) Row {
	r.Result = result
	if len(args) > 0 {
		remedy = fmt.Sprintf(remedy, args...)
	}
	r.Remedy = remedy
	return r
}

func (r Row) on(name string) Row {
	r.Interface = name
	return r
}

// count is a number of things for people.
func count(n int, thing string) string {
	switch {
	case n == 1:
		return "1 " + thing
	case strings.HasSuffix(thing, "s"):
		thing += "e"
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
