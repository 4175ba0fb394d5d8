package store

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/netip"
	"os"
	"strings"
	"testing"

	"turnstone/turn"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// The goldens are the stored forms that logs in the field hold. -update adds those that are missing
// and never changes one.
var update = flag.Bool("update", false, "add the golden bytes that are missing")

const (
	eventGoldens  = "testdata/events.txt"
	recordGoldens = "testdata/records.txt"
)

var comparing = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}), cmpopts.EquateEmpty()}

// goldens reads lines of a name and hexadecimal bytes.
func goldens(t *testing.T, file string) map[string][]byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil && (!*update || !os.IsNotExist(err)) {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for line := range strings.Lines(string(text)) {
		name, digits, _ := strings.Cut(strings.TrimSpace(line), " ")
		b, err := hex.DecodeString(digits)
		if err != nil || out[name] != nil {
			t.Fatalf("%s: the line of %s is damaged: %v", file, name, err)
		}
		out[name] = b
	}
	return out
}

func addGolden(t *testing.T, file, name string, b []byte) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%s %x\n", name, b); err != nil {
		t.Fatal(err)
	}
}

func TestEventsKeepTheirGoldenForm(t *testing.T) {
	want := goldens(t, eventGoldens)
	for _, s := range samples {
		golden, there := want[s.name]
		delete(want, s.name)
		got, err := EncodeEvent(nil, s.event)
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
			continue
		}
		if !there && *update {
			addGolden(t, eventGoldens, s.name, got)
			continue
		}
		if !bytes.Equal(got, golden) {
			t.Errorf("%s is encoded as %x, want %x", s.name, got, golden)
		}
		e, err := DecodeEvent(golden)
		if err != nil {
			t.Errorf("decode %s: %v", s.name, err)
		} else if diff := cmp.Diff(s.event, e, comparing); diff != "" {
			t.Errorf("%s is decoded differently (-want +got):\n%s", s.name, diff)
		}
	}
	for name := range want {
		t.Errorf("the golden %s has no sample any more: stored forms are kept for ever", name)
	}
}

// kindsOfTurn reads the kinds there are from the source of turn.
func kindsOfTurn(t *testing.T) map[string]bool {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../turn/event.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			if typ, ok := v.Type.(*ast.Ident); ok && typ.Name == "Kind" {
				for _, name := range v.Names {
					kinds[strings.TrimPrefix(name.Name, "Kind")] = true
				}
			}
		}
		return true
	})
	return kinds
}

func TestEveryKindHasGoldenAndDecoder(t *testing.T) {
	kinds := kindsOfTurn(t)
	if len(kinds) < 24 {
		t.Fatalf("found %d kinds in turn, want at least 24", len(kinds))
	}
	want := goldens(t, eventGoldens)
	for name := range kinds {
		if want[name] == nil {
			t.Errorf("%s has no golden", name)
		}
	}
	if len(decoders) != len(kinds) {
		t.Errorf("there are %d decoders for %d kinds", len(decoders), len(kinds))
	}
	for _, s := range samples {
		if decoders[s.event.Kind()] == nil {
			t.Errorf("%s has no decoder", s.name)
		}
	}
}

func TestRecordsKeepTheirGoldenForm(t *testing.T) {
	want := goldens(t, recordGoldens)
	c := chain{}
	var first, all []turn.Event
	first = append(first, turn.EpochBegan{Log: turn.LogID{1}, Epoch: 1})
	for _, s := range samples[:goldenSamples] {
		all = append(all, s.event)
	}
	for i, events := range [][]turn.Event{first, all} {
		name := fmt.Sprintf("record%d", i+1)
		r := turn.Record{First: c.next(), Moment: at(1000 * (i + 1)), Events: events}
		got, err := c.encode(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		golden, there := want[name]
		if !there && *update {
			addGolden(t, recordGoldens, name, got)
			continue
		}
		if !bytes.Equal(got, golden) {
			t.Errorf("%s is encoded as\n%x, want\n%x", name, got, golden)
		}
		decoded, err := Decode(golden, nil)
		if err != nil {
			t.Errorf("decode %s: %v", name, err)
		} else if diff := cmp.Diff(r, decoded, comparing); diff != "" {
			t.Errorf("%s is decoded differently (-want +got):\n%s", name, diff)
		}
	}
}

func TestEveryKindIsDocumented(t *testing.T) {
	const file = "../docs/log-format.md"
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for k, decode := range decoders {
		e, err := decode([]byte{0xa0}) // no field
		if err != nil {
			t.Fatal(err)
		}
		if line := fmt.Sprintf("| %d | %s |", k, strings.TrimPrefix(fmt.Sprintf("%T", e), "turn.")); !strings.Contains(string(doc), line) {
			t.Errorf("%s lacks the line %s", file, line)
		}
	}
}
