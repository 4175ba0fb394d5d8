package output

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

type amount struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

type part struct {
	Peer string `json:"peer"`
}

// sample has a field of every sort that rows have.
type sample struct {
	ID      uint64            `json:"id"`
	Name    string            `json:"user_name"`
	When    time.Time         `json:"when,omitzero"`
	Live    bool              `json:"live"`
	Relayed []string          `json:"relayed"`
	ToPeer  amount            `json:"to_peer"`
	Drops   map[string]uint64 `json:"drops"`
	Parts   []part            `json:"parts" table:"list"`
	Realm   string            `json:"realm" table:"detail"`
	Digest  string            `json:"digest" table:"-"`
}

func samples() []sample {
	return []sample{
		{
			ID: 1, Name: "alice", When: time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC), Live: true,
			Relayed: []string{"192.0.2.1:50000", "[2001:db8::1]:50001"}, ToPeer: amount{3, 300},
			Drops: map[string]uint64{"ttl": 2, "busy": 0}, Parts: []part{{"198.51.100.1"}, {"198.51.100.2"}}, Realm: "r", Digest: "d",
		},
		{ID: 22, Name: `a "b", c`, Drops: map[string]uint64{"ttl": 0, "busy": 0}},
	}
}

var rowsIn = map[Format]string{
	Table: `
ID  USER NAME  WHEN                      LIVE  RELAYED                              TO PEER PACKETS  TO PEER BYTES  DROPS  PARTS
1   alice      2026-01-02T03:04:05.006Z  yes   192.0.2.1:50000 [2001:db8::1]:50001  3                300            ttl=2  2
22  a "b", c   -                         no    -                                    0                0              none   0
`,
	CSV: `
id,user_name,when,live,relayed,to_peer_packets,to_peer_bytes,drops_busy,drops_ttl,parts,realm,digest
1,alice,2026-01-02T03:04:05.006Z,true,192.0.2.1:50000 [2001:db8::1]:50001,3,300,0,2,2,r,d
22,"a ""b"", c",,false,,0,0,0,0,0,,
`,
	JSONL: `
{"id":1,"user_name":"alice","when":"2026-01-02T03:04:05.006Z","live":true,"relayed":["192.0.2.1:50000","[2001:db8::1]:50001"],"to_peer":{"packets":3,"bytes":300},"drops":{"busy":0,"ttl":2},"parts":[{"peer":"198.51.100.1"},{"peer":"198.51.100.2"}],"realm":"r","digest":"d"}
{"id":22,"user_name":"a \"b\", c","live":false,"relayed":null,"to_peer":{"packets":0,"bytes":0},"drops":{"busy":0,"ttl":0},"parts":null,"realm":"","digest":""}
`,
}

func TestRowsInEveryFormat(t *testing.T) {
	for f, want := range rowsIn {
		var out bytes.Buffer
		if err := Rows(&out, f, samples()); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), out.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", f, diff)
		}
	}
}

func TestRowsInJSON(t *testing.T) {
	for _, c := range []struct {
		name string
		rows []part
		want string
	}{
		{"none", nil, "[]\n"},
		{"one", []part{{"a"}}, "[\n  {\n    \"peer\": \"a\"\n  }\n]\n"},
		{"two", []part{{"a"}, {"b"}}, "[\n  {\n    \"peer\": \"a\"\n  },\n  {\n    \"peer\": \"b\"\n  }\n]\n"},
	} {
		var out bytes.Buffer
		if err := Rows(&out, JSON, c.rows); err != nil {
			t.Fatal(err)
		}
		if out.String() != c.want {
			t.Errorf("%s: got %q, want %q", c.name, out.String(), c.want)
		}
	}
}

func TestNoRowsStillHaveAHeader(t *testing.T) {
	for f, want := range map[Format]string{Table: "PEER\n", CSV: "peer\n", JSON: "[]\n", JSONL: ""} {
		var out bytes.Buffer
		if err := Rows[part](&out, f, nil); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("%s: got %q, want %q", f, out.String(), want)
		}
	}
}

func TestObjectInEveryFormat(t *testing.T) {
	one := struct {
		Name   string `json:"user_name"`
		ToPeer amount `json:"to_peer"`
		Parts  []part `json:"parts" table:"list"`
		Realm  string `json:"realm" table:"detail"`
		Digest string `json:"digest" table:"-"`
	}{"alice", amount{3, 300}, []part{{"a"}}, "", "d"}
	for f, want := range map[Format]string{
		Table: "user name        alice\nto peer packets  3\nto peer bytes    300\nrealm            -\n",
		JSON: "{\n  \"user_name\": \"alice\",\n  \"to_peer\": {\n    \"packets\": 3,\n    \"bytes\": 300\n  },\n" +
			"  \"parts\": [\n    {\n      \"peer\": \"a\"\n    }\n  ],\n  \"realm\": \"\",\n  \"digest\": \"d\"\n}\n",
		JSONL: `{"user_name":"alice","to_peer":{"packets":3,"bytes":300},"parts":[{"peer":"a"}],"realm":"","digest":"d"}` + "\n",
		CSV:   "user_name,to_peer_packets,to_peer_bytes,parts,realm,digest\nalice,3,300,1,,d\n",
	} {
		var out bytes.Buffer
		if err := Object(&out, f, one); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("%s: got\n%s\nwant\n%s", f, out.String(), want)
		}
	}
}

func TestSectionIsForTablesOnly(t *testing.T) {
	for f, want := range map[Format]string{Table: "\npeers\nPEER\na\n", JSON: "", JSONL: "", CSV: "", "": ""} {
		var out bytes.Buffer
		if err := Section(&out, f, "peers", []part{{"a"}}); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("%q: got %q, want %q", f, out.String(), want)
		}
	}
	var out bytes.Buffer
	if err := Section[part](&out, Table, "peers", nil); err != nil || out.Len() > 0 {
		t.Errorf("no rows: got %q, %v, want nothing", out.String(), err)
	}
}

// TestTableGrowsAsRowsCome holds that what follows a flush is in line with what was before it, or wider.
func TestTableGrowsAsRowsCome(t *testing.T) {
	var out bytes.Buffer
	w := New(&out, Table)
	row := func(name string) {
		t.Helper()
		if err := errors.Join(w.Row(struct {
			Name string `json:"name"`
			N    int    `json:"n"`
		}{name, 1}), w.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	row("müller")
	row("a")
	row("somebody else")
	row("b")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	const want = "NAME    N\nmüller  1\na       1\nsomebody else  1\nb              1\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestCSVIsFlushedAsAsked(t *testing.T) {
	var out bytes.Buffer
	w := New(&out, CSV)
	if err := errors.Join(w.Row(part{"a"}), w.Flush()); err != nil {
		t.Fatal(err)
	}
	if out.String() != "peer\na\n" {
		t.Errorf("after a flush: got %q", out.String())
	}
}

func TestFieldsKeepTheirOrder(t *testing.T) {
	f := Fields{
		{Name: "z", Value: 1},
		{Name: "tx", Value: "77", Detail: true},
		{Name: "text", Value: `say "a=b"`},
		{Name: "inner", Value: Fields{{Name: "b", Value: true}, {Name: "a", Value: "x"}}},
		{Name: "list", Value: []Fields{{{Name: "n", Value: 1}}, {{Name: "n", Value: 2}}}},
	}
	for f2, want := range map[Format]string{
		JSONL: `{"event":{"z":1,"tx":"77","text":"say \"a=b\"","inner":{"b":true,"a":"x"},"list":[{"n":1},{"n":2}]}}` + "\n",
		Table: "EVENT\n" + `z=1 text="say \"a=b\"" inner={b=yes a=x} list=[{n=1} {n=2}]` + "\n",
		CSV:   "event\n" + `"z=1 tx=77 text=""say \""a=b\"""" inner={b=true a=x} list=[{n=1} {n=2}]"` + "\n",
	} {
		var out bytes.Buffer
		if err := Rows(&out, f2, []struct {
			Event Fields `json:"event"`
		}{{f}}); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("%s: got\n%s\nwant\n%s", f2, out.String(), want)
		}
	}
}

func TestFormatIsOneOfFour(t *testing.T) {
	for _, name := range Formats {
		var f Format
		if err := f.Set(name); err != nil || f.String() != name {
			t.Errorf("set %q: got %q, %v", name, f, err)
		}
	}
	f := JSON
	if err := f.Set("xml"); err == nil || f != JSON {
		t.Errorf("set xml: got %q, %v, want an error and no change", f, err)
	}
}

func TestFormatWithoutATerminalIsLines(t *testing.T) {
	file, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if got := Format("").For(file); got != JSONL {
		t.Errorf("for a file: got %q, want %q", got, JSONL)
	}
	if got := Format("").For(new(bytes.Buffer)); got != JSONL {
		t.Errorf("for a buffer: got %q, want %q", got, JSONL)
	}
	if got := Table.For(file); got != Table {
		t.Errorf("asked for a table: got %q", got)
	}
}

var errFull = errors.New("the disk is full")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }

// TestFailedWriteIsToldInEveryFormat holds that a full disk does not look like a short list.
func TestFailedWriteIsToldInEveryFormat(t *testing.T) {
	for _, f := range []Format{Table, JSON, JSONL, CSV} {
		if err := Rows(full{}, f, samples()); !errors.Is(err, errFull) {
			t.Errorf("rows as %s: got %v, want %v", f, err, errFull)
		}
		if err := Object(full{}, f, samples()[0]); !errors.Is(err, errFull) {
			t.Errorf("object as %s: got %v, want %v", f, err, errFull)
		}
	}
}
