package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"turnstone/internal/testenv"
	"turnstone/turn"
)

// A child appends to a log while strace makes one of its system calls fail. strace counts the calls of
// each thread, so a run without a fault says first which call of the child's thread is which.

const (
	faultRecords = 30 // the child appends
	faultAt      = 12 // is the one whose commit fails
	refusals     = 2  // of Recover, where the disk goes on failing
)

func init() { children["fault"] = faultChild }

// faultChild appends records to the log in args[0], recovers where that fails, and holds what it finds against
// what was confirmed. It tells args[1] what happens.
func faultChild(args []string) error {
	runtime.LockOSThread()
	told, err := os.Create(args[1])
	if err != nil {
		return err
	}
	l, err := Open(args[0], tiny)
	if err != nil {
		return err
	}
	s := l.State()
	gen := newTraffic(11, s, 20)
	confirmed := map[turn.Seq]Hash{}
	for range faultRecords {
		before, err := EncodeState(s)
		if err != nil {
			return err
		}
		r := gen.record(6)
		err = l.Append(r)
		if err == nil {
			seq, chain := l.Head()
			confirmed[seq] = chain
			if _, err := fmt.Fprintf(told, "appended %d\n", seq); err != nil {
				return err
			}
			continue
		}
		if s, err = recoverChild(l, r, before, s, told); err != nil {
			return err
		}
		gen = newTraffic(12, s, 20)
	}
	for seq, want := range confirmed {
		if got, ok, err := l.ChainAt(seq); err != nil || !ok || got != want {
			return fmt.Errorf("the record at %d was confirmed and is not there: %t, %w", seq, ok, err)
		}
	}
	return l.Close()
}

// recoverChild recovers l, whose last append, of r, failed: before it, l had the state before, and after would have
// it.
func recoverChild(l *Log, r turn.Record, before []byte, after *turn.State, told *os.File) (*turn.State, error) {
	if err := l.Append(r); err == nil {
		return nil, errors.New("an append follows one that failed")
	}
	with, err := EncodeState(after)
	if err != nil {
		return nil, err
	}
	fmt.Fprintln(told, "failed")
	s, err := l.Recover()
	for range refusals {
		if err != nil {
			fmt.Fprintln(told, "refused")
			if l.Append(r) == nil {
				return nil, errors.New("an append follows a recovery that failed")
			}
			s, err = l.Recover()
		}
	}
	if err != nil {
		return nil, err
	}
	got, err := EncodeState(s)
	switch {
	case err != nil:
		return nil, err
	case string(got) == string(with):
		fmt.Fprintln(told, "recovered with it")
	case string(got) == string(before):
		fmt.Fprintln(told, "recovered without it")
	default:
		return nil, fmt.Errorf("recovered to %d, with the state of neither %d nor %d", s.Seq(), r.First-1, r.Last())
	}
	return s, nil
}

// call is a system call of the child's.
type call struct {
	thread, name, fd, file string
	rest                   string // of the line
	failed                 bool   // it was made to
}

var callLine = regexp.MustCompile(`^(\d+) +(\w+)\((?:(\d+)<([^>]*)>|AT_FDCWD[^,]*)(.*)$`)

// calls reads what strace wrote.
func calls(t *testing.T, file string) (list []call) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pending := map[string]int{}
	for line := range strings.Lines(string(text)) {
		failed := strings.Contains(line, "(INJECTED)")
		if thread, _, resumed := strings.Cut(line, " <... "); resumed {
			if i, ok := pending[strings.TrimSpace(thread)]; ok {
				list[i].failed = failed
			}
			continue
		}
		if m := callLine.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			pending[m[1]] = len(list)
			list = append(list, call{thread: m[1], name: m[2], fd: m[3], file: filepath.Base(m[4]), rest: m[5], failed: failed})
		}
	}
	return list
}

// runFault runs the child with the faults given, and yields its calls and what it told.
func runFault(t *testing.T, faults ...string) (list []call, told []string, dir string) {
	t.Helper()
	strace := testenv.Tool(t, "strace")
	dir = t.TempDir()
	l := openTest(t, dir, tiny)
	appendTest(t, l, l.State(), at(0), turn.EpochBegan{Log: turn.LogID{9}, Epoch: 1})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	trace, out := filepath.Join(t.TempDir(), "trace"), filepath.Join(t.TempDir(), "told")
	args := []string{"-f", "-y", "-s", "32", "-o", trace, "-e", "signal=none", "-e", "trace=pwrite64,write,fdatasync,fsync,close"}
	for _, f := range faults {
		args = append(args, "-e", "inject="+f)
	}
	cmd := exec.Command(strace, append(args, os.Args[0], dir, out)...)
	cmd.Env = append(os.Environ(), childEnv+"=fault")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the child with %v: %v\n%s", faults, err, b)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return calls(t, trace), strings.Split(strings.TrimSpace(string(text)), "\n"), dir
}

// place is where the commit of a record lies among the calls of the child's thread.
type place struct {
	writes []int // number of each pwrite64 of the commit
	syncs  []int // of each fdatasync
	fsyncs int   // how many came before
}

// placeOf finds the commit that ends with the n-th record told.
func placeOf(t *testing.T, list []call, n int) place {
	t.Helper()
	var p place
	thread, counts := "", map[string]int{}
	for _, c := range list {
		if c.name == "write" && c.file == "told" {
			thread = c.thread
		}
	}
	for _, c := range list {
		if c.thread != thread {
			continue
		}
		counts[c.name]++
		switch {
		case c.name == "write" && c.file == "told":
			if n--; n == 0 {
				return p
			}
			p.writes, p.syncs = nil, nil
		case c.name == "fsync" && n > 0:
			p.fsyncs++
		case c.name == "fdatasync":
			p.syncs = append(p.syncs, counts[c.name])
		case c.name == "pwrite64" && !strings.Contains(c.rest, fmt.Sprintf(", %d, ", zeroStep)):
			p.writes = append(p.writes, counts[c.name])
		}
	}
	t.Fatal("the child ended early")
	return p
}

func TestFailedCommitsAreRecoveredFromDisk(t *testing.T) {
	list, told, _ := runFault(t)
	if len(told) != faultRecords {
		t.Fatalf("without a fault the child appended %d records, want %d: %v", len(told), faultRecords, told)
	}
	p := placeOf(t, list, faultAt)
	if len(p.syncs) != 2 || len(p.writes) < 2 {
		t.Fatalf("a commit makes %d fdatasyncs and %d writes, want 2 and at least 2", len(p.syncs), len(p.writes))
	}
	again := fmt.Sprintf("fsync:error=EIO:when=%d..%d", p.fsyncs+1, p.fsyncs+refusals)
	for name, f := range map[string]struct {
		fault     string
		recovered string
	}{
		"pages-not-synced":  {fmt.Sprintf("fdatasync:error=EIO:when=%d", p.syncs[0]), "recovered without it"},
		"meta-not-synced":   {fmt.Sprintf("fdatasync:error=EIO:when=%d", p.syncs[1]), "recovered with it"},
		"pages-not-written": {fmt.Sprintf("pwrite64:error=ENOSPC:when=%d", p.writes[0]), "recovered without it"},
		"meta-not-written":  {fmt.Sprintf("pwrite64:error=ENOSPC:when=%d", p.writes[len(p.writes)-1]), "recovered without it"},
	} {
		t.Run(name, func(t *testing.T) {
			checkFault(t, 0, f.recovered, f.fault)
			checkFault(t, refusals, f.recovered, f.fault, again)
		})
	}
}

// checkFault runs the child with faults that fail one commit and some attempts to recover.
func checkFault(t *testing.T, refused int, recovered string, faults ...string) {
	t.Helper()
	list, told, dir := runFault(t, faults...)
	want := append([]string{"failed"}, strings.Fields(strings.Repeat("refused ", refused))...)
	want = append(want, recovered)
	var got []string
	for _, line := range told {
		if !strings.HasPrefix(line, "appended") {
			got = append(got, line)
		}
	}
	if strings.Join(got, ", ") != strings.Join(want, ", ") || len(told) != faultRecords-1+len(want) {
		t.Errorf("%v: the child tells %v, want %v among %d lines", faults, told, want, faultRecords-1+len(want))
	}
	failed := 0
	stale := map[string]bool{} // descriptors on which a sync failed
	for _, c := range list {
		switch {
		case c.name == "close":
			delete(stale, c.fd)
		case c.name == "pwrite64" && c.failed, c.name == "fdatasync" && c.failed, c.name == "fsync" && c.failed:
			failed++
			stale[c.fd] = true
		case c.name != "write" && stale[c.fd]:
			t.Errorf("%v: %s on descriptor %s, on which a call failed before", faults, c.name, c.fd)
		}
	}
	if failed != 1+refused {
		t.Errorf("%v: %d calls failed, want %d", faults, failed, 1+refused)
	}
	verifyFile(t, dir)
}
