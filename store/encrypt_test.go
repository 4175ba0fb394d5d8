package store

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"turnstone/migrations"
	"turnstone/turn"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// tinySealed is tiny for encrypted logs.
func tinySealed() Options {
	o := tiny
	o.Encrypt = true
	return o
}

// fixedKeys is a keyring with the same key for every segment.
func fixedKeys() *Keyring {
	return LoadingKeyring("nowhere", func(uint64) ([]byte, error) { return bytes.Repeat([]byte{7}, keySize), nil })
}

const sealedGoldens = "testdata/sealed.txt"

func TestSealedEventsKeepTheirGoldenForm(t *testing.T) {
	want := goldens(t, sealedGoldens)
	keys := fixedKeys()
	key, err := keys.of(300)
	must(t, err)
	for i, s := range samples {
		seq := turn.Seq(1000 + i)
		plain, err := EncodeEvent(nil, s.event)
		must(t, err)
		nonce := bytes.Repeat([]byte{byte(i)}, nonceSize)
		sealing := sealing{key: key, nonces: nonce}
		got := sealing.event(nil, plain, seq)
		golden, there := want[s.name]
		delete(want, s.name)
		if i < goldenSamples && !there && *update {
			addGolden(t, sealedGoldens, s.name, got)
			continue
		}
		if i >= goldenSamples {
			golden = got
		}
		if !bytes.Equal(got, golden) {
			t.Errorf("%s is sealed as %x, want %x", s.name, got, golden)
		}
		if open := inTheOpen[s.event.Kind()]; open != bytes.Equal(got, plain) {
			t.Errorf("%s: in the open is %t, and sealed it is %x", s.name, open, got)
		}
		e, err := decodeEvent(golden, seq, nil, keys)
		if err != nil {
			t.Errorf("decode %s: %v", s.name, err)
		} else if diff := cmp.Diff(s.event, e, comparing); diff != "" {
			t.Errorf("%s is decoded differently (-want +got):\n%s", s.name, diff)
		}
		own, err := keys.Disclosure(golden, seq)
		must(t, err)
		e, err = DecodeDisclosed(golden, seq, own)
		if diff := cmp.Diff(s.event, e, comparing); err != nil || diff != "" {
			t.Errorf("%s disclosed: %v (-want +got):\n%s", s.name, err, diff)
		}
	}
	for name := range want {
		t.Errorf("the golden %s has no sample any more: stored forms are kept for ever", name)
	}
}

func TestTheDisclosureOfOneEventShowsNoOther(t *testing.T) {
	keys := fixedKeys()
	key, err := keys.of(1)
	must(t, err)
	s := newSealing(key, 2)
	var stored [2][]byte
	for i := range stored {
		plain, err := EncodeEvent(nil, created(i+1))
		must(t, err)
		stored[i] = s.event(nil, plain, turn.Seq(i+1))
	}
	own, err := keys.Disclosure(stored[0], 1)
	must(t, err)
	if _, err := DecodeDisclosed(stored[0], 1, own); err != nil {
		t.Errorf("its own: %v", err)
	}
	if e, err := DecodeDisclosed(stored[1], 2, own); err == nil {
		t.Errorf("another one is read as %v", e)
	}
}

func TestKindsInTheOpenAreAboutNoClient(t *testing.T) {
	for _, s := range samples {
		b, err := EncodeEvent(nil, s.event)
		must(t, err)
		telling := formOf(b) == formPlain
		for _, secret := range [][]byte{addr4.AsSlice(), addr6.AsSlice(), []byte("alice"), []byte("example.org")} {
			if !telling && bytes.Contains(b, secret) {
				t.Errorf("%s is stored in the open and holds %q", s.name, secret)
			}
		}
	}
}

func TestFoldOfEncryptedIsFoldOfPlain(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dirs := [2]string{t.TempDir(), t.TempDir()}
		options := [2]Options{tiny, tinySealed()}
		var logs [2]*Log
		for i := range logs {
			logs[i] = open(rt, dirs[i], options[i])
		}
		gen := newTraffic(rapid.Uint64().Draw(rt, "seed"), logs[0].State(), 30)
		for range rapid.IntRange(1, 80).Draw(rt, "records") {
			r := gen.record(rapid.SampledFrom([]int{1, 8, 64}).Draw(rt, "events"))
			for _, l := range logs {
				if err := l.Append(r); err != nil {
					rt.Fatal(err)
				}
			}
			if rapid.IntRange(0, 9).Draw(rt, "change") == 0 { // the encrypted one is plain for a while
				if err := logs[1].Close(); err != nil {
					rt.Fatal(err)
				}
				options[1].Encrypt = !options[1].Encrypt
				logs[1] = open(rt, dirs[1], options[1])
			}
		}
		var states [2]string
		for i, l := range logs {
			s, err := StateAt(l.Records(1), func(turn.Record) bool { return true })
			if err != nil {
				rt.Fatal(err)
			}
			states[i] = encoded(t, s)
			if err := l.Close(); err != nil {
				rt.Fatal(err)
			}
			verifyFile(rt, dirs[i])
		}
		if states[0] != states[1] {
			rt.Fatal("the fold of the encrypted log is not that of the plain one")
		}
		eachSegment(t, dirs[1], func(n uint64, forms form) {
			if forms&formPlain != 0 && forms&formSealed != 0 {
				rt.Fatalf("segment %d is plain and encrypted", n)
			}
		})
	})
}

// eachSegment tells of every segment of a closed log in what forms its events are.
func eachSegment(t testing.TB, dir string, f func(n uint64, forms form)) {
	t.Helper()
	edit(t, dir, func(tx *bbolt.Tx) error {
		segments := tx.Bucket(migrations.Segments)
		return segments.ForEachBucket(func(k []byte) error {
			var forms form
			c := segments.Bucket(k).Cursor()
			for at, v := c.Seek(key(0)); at != nil; at, v = c.Next() {
				e, err := parseEnvelope(v)
				if err != nil {
					return err
				}
				for _, one := range e.events {
					forms |= formOf(one)
				}
			}
			f(number(k), forms)
			return nil
		})
	})
}

// filledSealed is an encrypted log of many segments with snapshots, closed, and the state it ends in.
func filledSealed(t testing.TB, seed uint64, records int) (string, *turn.State) {
	t.Helper()
	dir := t.TempDir()
	l, err := Open(dir, tinySealed())
	must2(t, err)
	s := l.State()
	gen := newTraffic(seed, s, 40)
	var sealed uint64
	for i := range records {
		must2(t, l.Append(gen.record(8)))
		if i%64 == 63 {
			must2(t, tend(l, s, &sealed))
		}
	}
	must2(t, l.Close())
	return dir, s
}

// must2 is must in a benchmark or a fuzz test too.
func must2(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestEncryptedFileHoldsNoNameAndNoAddress(t *testing.T) {
	dir, s := filledSealed(t, 21, 400)
	plain, _ := filled(t, 21, 400)
	file, clear := readFile(t, dir), readFile(t, plain)
	var looked int
	for a := range s.Allocations() {
		for _, x := range [][]byte{[]byte(a.Username), a.FiveTuple.Client.Addr().AsSlice(), binaryOf(t, a.FiveTuple.Client), []byte(a.FiveTuple.Client.Addr().String())} {
			if len(x) < 4 {
				continue
			}
			looked++
			if bytes.Contains(file, x) {
				t.Fatalf("the file holds %q", x)
			}
		}
		if !bytes.Contains(clear, binaryOf(t, a.FiveTuple.Client)) {
			t.Fatalf("the plain file does not hold %v: this test sees nothing", a.FiveTuple.Client)
		}
	}
	if looked < 20 {
		t.Errorf("looked for %d things", looked)
	}
}

func binaryOf(t testing.TB, a netip.AddrPort) []byte {
	t.Helper()
	b, err := a.MarshalBinary()
	must2(t, err)
	return b
}

func TestNoncesAreUsedOnce(t *testing.T) {
	dir, _ := filledSealed(t, 22, 300)
	r, err := OpenReader(filepath.Join(dir, FileName))
	must(t, err)
	seen := map[string]bool{}
	for raw, err := range Raw(r, 1) {
		must(t, err)
		v, err := parseEnvelope(raw)
		must(t, err)
		for _, e := range v.events {
			if formOf(e) != formSealed {
				continue
			}
			c := cursor{b: e}
			c.head(majorArray)
			c.head(majorUint)
			p, err := parseSealed(c.b)
			must(t, err)
			id := fmt.Sprintf("%d %x", p.segment, p.nonce)
			if seen[id] {
				t.Fatalf("the nonce %s is used twice", id)
			}
			seen[id] = true
		}
	}
	if len(seen) < 1000 {
		t.Errorf("saw %d nonces", len(seen))
	}
}

func TestMovedAndChangedEventsDoNotOpen(t *testing.T) {
	keys := fixedKeys()
	key, err := keys.of(5)
	must(t, err)
	plain, err := EncodeEvent(nil, turn.AllocationExpired{Allocation: 3})
	must(t, err)
	s := newSealing(key, 1)
	stored := s.event(nil, plain, 9)
	if _, err := decodeEvent(stored, 9, nil, keys); err != nil {
		t.Fatal(err)
	}
	var damage *CorruptError
	if _, err := decodeEvent(stored, 10, nil, keys); !errors.As(err, &damage) {
		t.Errorf("at another sequence: got %v, want a *CorruptError", err)
	}
	for i := range stored {
		changed := bytes.Clone(stored)
		changed[i] ^= 1
		if e, err := decodeEvent(changed, 9, nil, keys); err == nil {
			t.Errorf("byte %d changed: decoded as %v", i, e)
		}
	}
	blob, err := keys.Seal(5, "here", []byte("what"))
	must(t, err)
	if got, err := keys.Open("here", blob); err != nil || string(got) != "what" {
		t.Errorf("open: got %q (%v)", got, err)
	}
	if _, err := keys.Open("there", blob); !errors.As(err, &damage) {
		t.Errorf("open in another context: got %v, want a *CorruptError", err)
	}
	for i := range blob {
		changed := bytes.Clone(blob)
		changed[i] ^= 1
		if _, err := keys.Open("here", changed); err == nil {
			t.Errorf("byte %d of what was sealed changed, and it opens", i)
		}
	}
}

func TestTokensTakeTheKey(t *testing.T) {
	keys := fixedKeys()
	one, err := keys.Token(1, "user", []byte("alice"))
	must(t, err)
	again, err := keys.Token(1, "user", []byte("alice"))
	must(t, err)
	field, err := keys.Token(1, "peer", []byte("alice"))
	must(t, err)
	if one != again || one == field {
		t.Errorf("tokens %x, %x and of another field %x", one, again, field)
	}
	none := LoadingKeyring("nowhere", func(uint64) ([]byte, error) { return nil, nil })
	var missing *KeyError
	if _, err := none.Token(1, "user", []byte("alice")); !errors.As(err, &missing) {
		t.Errorf("without a key: got %v, want a *KeyError", err)
	}
}

func TestKeysAreThereBeforeTheirSegments(t *testing.T) {
	dir := t.TempDir()
	l := openTest(t, dir, tinySealed())
	s := l.State()
	var sealed uint64
	for range 40 {
		fill(t, l, s, 4, 8)
		must(t, tend(l, s, &sealed))
		must(t, l.drawAhead())
		l.write.Lock()
		n := l.segment.number
		l.write.Unlock()
		for _, n := range []uint64{n, n + 1} {
			info, err := os.Stat(filepath.Join(dir, keysName, segmentKeys, fmt.Sprint(n)))
			if err != nil {
				t.Fatalf("the key of segment %d: %v", n, err)
			}
			if info.Mode().Perm() != 0o600 || info.Size() != keySize {
				t.Errorf("the key of segment %d has mode %v and %d bytes", n, info.Mode(), info.Size())
			}
		}
	}
	if sealed < 3 {
		t.Errorf("%d segments were sealed", sealed)
	}
}

func TestMissingKeySaysWhatCannotBeRead(t *testing.T) {
	dir, s := filledSealed(t, 23, 400)
	must(t, os.Remove(filepath.Join(dir, keysName, segmentKeys, "2")))
	file := filepath.Join(dir, FileName)
	r, err := OpenReader(file)
	must(t, err)
	var missing *KeyError
	last := turn.Seq(0)
	for rec, err := range r.Records(1) {
		if err != nil {
			if !errors.As(err, &missing) {
				t.Fatalf("got %v, want a *KeyError", err)
			}
			break
		}
		last = rec.Last()
	}
	if missing == nil || missing.Segment != 2 || missing.Seq != last+1 || !strings.Contains(missing.Error(), keysName) {
		t.Errorf("after %d: got %+v, want the key of segment 2 to be missing for the next event", last, missing)
	}
	report, err := r.Verify()
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	if report.Last != s.Seq() || report.Unread == 0 || report.ReadFrom == 0 || report.Unread != uint64(report.ReadFrom-missing.Seq) {
		t.Errorf("verify: got %+v, want the events from %d to the next snapshot unread", report, missing.Seq)
	}
	l := openTest(t, dir, tinySealed())
	if encoded(t, l.State()) != encoded(t, s) {
		t.Error("the state is not had from the newest snapshot")
	}
}

func TestLogWithoutTheKeyItTakesIsNotDamaged(t *testing.T) {
	dir, _ := filledSealed(t, 24, 400)
	must(t, os.RemoveAll(filepath.Join(dir, keysName)))
	var damage *CorruptError
	var missing *KeyError
	_, err := Open(dir, tinySealed())
	if !errors.As(err, &missing) || errors.As(err, &damage) {
		t.Errorf("open: got %v, want a *KeyError and no damage", err)
	}
	r, err := OpenReader(filepath.Join(dir, FileName))
	must(t, err)
	report, err := r.Verify()
	if err != nil || report.Unread < uint64(report.Last)-8 || report.ReadFrom != report.Last+1 { // the first record is in the open
		t.Errorf("verify: got %+v (%v), want it to hold and all to be unread", report, err)
	}
}

// FuzzOpenEvent holds that what is no sealed event is refused without a panic.
func FuzzOpenEvent(f *testing.F) {
	keys := fixedKeys()
	key, err := keys.of(300)
	must2(f, err)
	for i, s := range samples {
		plain, err := EncodeEvent(nil, s.event)
		must2(f, err)
		sealing := newSealing(key, 1)
		f.Add(sealing.event(nil, plain, turn.Seq(i)), uint64(i))
	}
	f.Fuzz(func(t *testing.T, b []byte, seq uint64) {
		e, err := decodeEvent(b, turn.Seq(seq), nil, keys)
		own, keyErr := keys.Disclosure(b, turn.Seq(seq))
		if err != nil {
			return
		}
		if keyErr != nil {
			t.Fatalf("%x is read, but: %v", b, keyErr)
		}
		disclosed, err := DecodeDisclosed(b, turn.Seq(seq), own)
		if diff := cmp.Diff(e, disclosed, comparing); err != nil || diff != "" {
			t.Fatalf("disclosed: %v\n%s", err, diff)
		}
	})
}

func TestProofOfASealedEventDisclosesThatOneAlone(t *testing.T) {
	dir := t.TempDir()
	l := openTest(t, dir, tinySealed())
	s := l.State()
	fill(t, l, s, 20, 8)
	c, _, err := l.Checkpointer()
	must(t, err)
	defer c.Close()
	note, err := c.Sign()
	must(t, err)
	p, err := l.Prover().ProveAgainst(note, 1, 7)
	must(t, err)
	var b strings.Builder
	var missing *KeyError
	if err := WriteProof(&b, p, people); !errors.As(err, &missing) {
		t.Errorf("a proof of what nobody can read: got %v, want a *KeyError", err)
	}
	must(t, p.Disclose(l.Keys()))
	b.Reset()
	must(t, WriteProof(&b, p, people))
	read, err := VerifyProof(strings.NewReader(b.String()), people, c.Public())
	must(t, err)
	e, err := read.Events[1].Event()
	must(t, err)
	if diff := cmp.Diff(turn.Event(bound(3, 0x4000)), e, comparing); diff != "" {
		t.Errorf("event 7 is proved to be another (-want +got):\n%s", diff)
	}
	secret, err := l.Keys().Export(1)
	must(t, err)
	if strings.Contains(b.String(), base64.StdEncoding.EncodeToString(secret)) {
		t.Error("the proof holds the key of the segment")
	}
	own := base64.StdEncoding.EncodeToString(p.Events[1].Shown)
	other := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{3}, keySize))
	if _, err := VerifyProof(strings.NewReader(strings.Replace(b.String(), own, other, 1)), people, c.Public()); err == nil {
		t.Error("a proof with another key holds")
	}
}

// cpu is the time that this process has had of the CPUs: others may use the machine too.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var used unix.Rusage
	must2(t, unix.Getrusage(unix.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// BenchmarkEncode is what Append does but for the disk.
func BenchmarkEncode(b *testing.B) {
	for _, encrypt := range []bool{false, true} {
		b.Run(fmt.Sprintf("encrypt=%t", encrypt), func(b *testing.B) {
			var key *segmentKey
			if encrypt {
				var err error
				key, err = fixedKeys().of(1)
				must2(b, err)
			}
			var c chain
			events, size := 0, 0
			var list []turn.Event
			for i := range 32 {
				list = append(list, created(i+1), bound(i+1, 0x4000))
			}
			began := cpu(b)
			for b.Loop() {
				raw, err := c.encode(turn.Record{First: c.next(), Moment: at(1), Events: list}, key)
				must2(b, err)
				events, size = events+len(list), size+len(raw)
			}
			b.ReportMetric(float64(cpu(b)-began)/float64(events), "cpu-ns/event")
			b.ReportMetric(float64(size)/float64(events), "B/event")
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, encrypt := range []bool{false, true} {
		b.Run(fmt.Sprintf("encrypt=%t", encrypt), func(b *testing.B) {
			keys := fixedKeys()
			var key *segmentKey
			if encrypt {
				var err error
				key, err = keys.of(1)
				must2(b, err)
			}
			var c chain
			var list []turn.Event
			for i := range 32 {
				list = append(list, created(i+1), bound(i+1, 0x4000))
			}
			raw, err := c.encode(turn.Record{First: 1, Moment: at(1), Events: list}, key)
			must2(b, err)
			known := &names{}
			events := 0
			began := cpu(b)
			for b.Loop() {
				_, err := decodeRecord(raw, known, keys)
				must2(b, err)
				events += len(list)
			}
			b.ReportMetric(float64(cpu(b)-began)/float64(events), "cpu-ns/event")
		})
	}
}
