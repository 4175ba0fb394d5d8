package store

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"turnstone/internal/testenv"
	"turnstone/turn"
)

// A power cut leaves of what was written since the last sync any part: whole writes, sectors of
// them, or nothing, in any order. The test records what the store writes and syncs, makes
// the states that could be left, and opens each.

const (
	sector  = 512
	ackName = "acks" // the child writes there what Append has confirmed
)

func init() { children["crash"] = crashChild }

// crashChild appends to the log in args[0], and says what is confirmed.
func crashChild(args []string) error {
	dir := args[0]
	acks, err := os.Create(filepath.Join(dir, ackName))
	if err != nil {
		return err
	}
	l, err := Open(dir, tiny)
	if err != nil {
		return err
	}
	s := l.State()
	gen := newTraffic(7, s, 30)
	sealed := s.LastSealed()
	for i := range 160 {
		if err := l.Append(gen.record([]int{1, 3, 8, 40}[i%4])); err != nil {
			return err
		}
		if i%20 == 19 {
			if err := tend(l, s, &sealed); err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintf(acks, "%d\n", s.Seq()); err != nil {
			return err
		}
	}
	return l.Close()
}

// operation is what the child did to the file, or confirmed.
type operation struct {
	write  []byte
	offset int64
	size   int64 // to truncate to, -1 for none
	sync   bool
	ack    turn.Seq
}

var traced = regexp.MustCompile(`^\d+ +(?:<\.\.\. )?(\w+)(?:\((\d+)<([^>]*)>| resumed>)(.*)$`)

// parseTrace reads what strace wrote. A write counts from when it was begun, a sync once it has returned.
func parseTrace(t *testing.T, file string) (ops []operation) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	syncing := false
	for line := range strings.Lines(string(text)) {
		m := traced.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		call, path, rest := m[1], m[3], m[4]
		begun := m[2] != ""
		isLog := strings.HasSuffix(unhexed(t, path), FileName)
		switch {
		case call == "pwrite64" && begun && isLog:
			data, offset := pwriteArguments(t, rest)
			ops = append(ops, operation{write: data, offset: offset, size: -1})
		case call == "write" && begun:
			n, err := strconv.ParseUint(strings.TrimSpace(string(quoted(t, rest))), 10, 64)
			if err != nil {
				t.Fatalf("acknowledgement %q: %v", rest, err)
			}
			ops = append(ops, operation{ack: turn.Seq(n), size: -1})
		case call == "ftruncate" && begun && isLog:
			n, err := strconv.ParseInt(strings.Trim(strings.SplitN(rest, ")", 2)[0], ", "), 10, 64)
			if err != nil {
				t.Fatalf("ftruncate %q: %v", rest, err)
			}
			ops = append(ops, operation{size: n})
		case (call == "fdatasync" || call == "fsync") && begun && isLog && strings.Contains(rest, "unfinished"):
			syncing = true
		case (call == "fdatasync" || call == "fsync") && (begun && isLog || !begun && syncing):
			if !strings.HasSuffix(rest, "= 0") {
				t.Fatalf("a sync that fails: %s", line)
			}
			syncing = false
			ops = append(ops, operation{sync: true, size: -1})
		}
	}
	return ops
}

// quoted is the string in \x form in rest.
func quoted(t *testing.T, rest string) []byte {
	t.Helper()
	_, after, _ := strings.Cut(rest, `"`)
	text, tail, ok := strings.Cut(after, `"`)
	if !ok || strings.HasPrefix(tail, "...") {
		t.Fatalf("a string that strace cut: %.80s", rest)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(text, `\x`, ""))
	if err != nil {
		t.Fatalf("a string of strace's: %v", err)
	}
	return b
}

func unhexed(t *testing.T, path string) string {
	t.Helper()
	if !strings.HasPrefix(path, `\x`) {
		return path
	}
	return string(quoted(t, `"`+path+`"`))
}

func pwriteArguments(t *testing.T, rest string) (data []byte, offset int64) {
	t.Helper()
	data = quoted(t, rest)
	arguments := strings.Split(strings.SplitN(rest[strings.LastIndex(rest, `"`):], ")", 2)[0], ",")
	offset, err := strconv.ParseInt(strings.Fields(arguments[2])[0], 10, 64)
	if err != nil {
		t.Fatalf("pwrite64 at %q: %v", arguments, err)
	}
	return data, offset
}

// traceChild runs the child under strace and yields what it did.
func traceChild(t *testing.T, dir string) []operation {
	t.Helper()
	strace := testenv.Tool(t, "strace")
	out := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command(strace, "-f", "-y", "-xx", "-s", "4194304", "-o", out,
		"-e", "trace=pwrite64,write,fdatasync,fsync,ftruncate", "-P", filepath.Join(dir, FileName), "-P", filepath.Join(dir, ackName),
		os.Args[0], dir)
	cmd.Env = append(os.Environ(), childEnv+"=crash")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the traced child: %v\n%s", err, b)
	}
	return parseTrace(t, out)
}

// disk is a file as a power cut finds it: what is safe, and what has been written since.
type disk struct {
	safe    []byte
	pending []operation
}

func (d *disk) do(o operation) {
	if !o.sync {
		d.pending = append(d.pending, o)
		return
	}
	for _, p := range d.pending {
		d.safe = apply(d.safe, p, func(int) bool { return true })
	}
	d.pending = nil
}

// apply writes those sectors of o to b that kept says.
func apply(b []byte, o operation, kept func(sector int) bool) []byte {
	if o.size >= 0 {
		if !kept(0) {
			return b
		}
		return resize(b, int(o.size))
	}
	for at := 0; at < len(o.write); at += sector {
		if !kept(at / sector) {
			continue
		}
		part := o.write[at:min(at+sector, len(o.write))]
		if end := int(o.offset) + at + len(part); end > len(b) {
			b = resize(b, end)
		}
		copy(b[int(o.offset)+at:], part)
	}
	return b
}

func resize(b []byte, n int) []byte {
	if n <= len(b) {
		return b[:n]
	}
	return append(b, make([]byte, n-len(b))...)
}

// cut is the file that a power cut leaves, by chance.
func (d *disk) cut(random *rand.Rand) []byte {
	b := slices.Clone(d.safe)
	mode := random.IntN(6)
	for _, p := range d.pending {
		b = apply(b, p, arriving(mode, len(p.write)/sector, random))
	}
	return b
}

// arriving says which of a write's sectors arrive.
func arriving(mode, sectors int, random *rand.Rand) func(sector int) bool {
	whole, pages := random.IntN(2) == 0, random.Uint64()
	torn := random.IntN(sectors + 1)
	switch mode {
	case 0: // nothing
		return func(int) bool { return false }
	case 1: // everything
		return func(int) bool { return true }
	case 2: // whole writes
		return func(int) bool { return whole }
	case 3: // blocks of the file system
		return func(sector int) bool { return pages>>(sector/8%64)&1 == 0 }
	case 4: // a beginning
		return func(sector int) bool { return sector < torn }
	}
	return func(int) bool { return random.IntN(2) == 0 }
}

func TestCrashStates(t *testing.T) {
	states := 400
	if os.Getenv("TURNSTONE_SOAK") != "" {
		states = 30_000
	}
	dir := t.TempDir()
	l := openTest(t, dir, tiny)
	appendTest(t, l, l.State(), at(0), turn.EpochBegan{Log: turn.LogID{9}, Epoch: 1})
	first := l.State().Seq()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	d := &disk{safe: readFile(t, dir)}
	ops := traceChild(t, dir)
	wholeRun(t, dir, ops)
	prefixes := prefixesOf(t, dir)

	random := rand.New(rand.NewPCG(1, 2))
	points := make([]int, states)
	for i := range points {
		points[i] = random.IntN(len(ops))
	}
	slices.Sort(points)
	acked, at := first, 0
	beyond := 0
	for n, p := range points {
		for ; at < p; at++ {
			if ops[at].ack != 0 {
				acked = ops[at].ack
				continue
			}
			d.do(ops[at])
		}
		seq := openCut(t, d.cut(random), prefixes, acked, n%16 == 0)
		if seq > acked {
			beyond++
		}
		if t.Failed() {
			return
		}
	}
	if beyond == 0 {
		t.Error("no state held more than was acknowledged: the states are too tame to prove anything")
	}
}

// prefix is a log up to the end of a record.
type prefix struct {
	state string
	chain Hash
}

// prefixesOf folds the log in dir, and yields what it was at the end of each record.
func prefixesOf(t *testing.T, dir string) map[turn.Seq]prefix {
	t.Helper()
	r, err := OpenReader(filepath.Join(dir, FileName))
	if err != nil {
		t.Fatal(err)
	}
	s, out := turn.NewState(), map[turn.Seq]prefix{}
	for raw, err := range Raw(r, 1) {
		if err != nil {
			t.Fatal(err)
		}
		rec, err := Decode(raw, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Fold(rec); err != nil {
			t.Fatal(err)
		}
		out[s.Seq()] = prefix{encoded(t, s), sha256.Sum256(raw)}
	}
	return out
}

// openCut opens what a power cut left: it must be a prefix with all that was acknowledged. Where it is to
// go on, all of it is verified too, and appended to.
func openCut(t *testing.T, b []byte, prefixes map[turn.Seq]prefix, acked turn.Seq, goOn bool) turn.Seq {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), "cut-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	writeFile(t, dir, b)
	if goOn {
		verifyFile(t, dir)
	}
	l, err := Open(dir, tiny)
	if err != nil {
		t.Errorf("open after a cut, %d acknowledged: %v", acked, err)
		return 0
	}
	defer l.Close()
	s := l.State()
	seq, chain := l.Head()
	switch want, ok := prefixes[seq]; {
	case !ok || seq != s.Seq():
		t.Errorf("the log ends at %d, within a record, with the state of %d", seq, s.Seq())
	case chain != want.chain:
		t.Errorf("the log ends at %d with other records than it had", seq)
	case encoded(t, s) != want.state:
		t.Errorf("the log ends at %d with another state than the records up to there have", seq)
	case seq < acked:
		t.Errorf("the log ends at %d, and %d was acknowledged", seq, acked)
	}
	if goOn {
		appendTest(t, l, s, s.Moment(), turn.ServerStopped{Signal: "terminated"})
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		verifyFile(t, dir)
	}
	return seq
}

// wholeRun makes sure that the child made enough syncs, began segments and took snapshots.
func wholeRun(t *testing.T, dir string, ops []operation) {
	t.Helper()
	syncs := 0
	for _, o := range ops {
		if o.sync {
			syncs++
		}
	}
	r, err := OpenReader(filepath.Join(dir, FileName))
	if err != nil {
		t.Fatal(err)
	}
	st, err := r.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if syncs < 300 || st.Records < 160 || len(st.Segments) < 3 || len(st.Snapshots) == 0 {
		t.Fatalf("the trace shows %d syncs, the log has %d records in %d segments and %d snapshots: it is not whole",
			syncs, st.Records, len(st.Segments), len(st.Snapshots))
	}
}
