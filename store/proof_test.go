package store

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"turnstone/turn"
)

// people is the form of the tests.
func people(e turn.Event) any { return e }

// proved is a signed proof of some events of a log, as it is written, and the key.
func proved(t testing.TB) (proof, key string) {
	t.Helper()
	l := openTest(t, t.TempDir(), tiny)
	s := l.State()
	appendTest(t, l, s, at(0), turn.EpochBegan{Log: turn.LogID{9}, Epoch: 1})
	gen := newTraffic(26, s, 40)
	for range 60 {
		must(t, l.Append(gen.record(16)))
	}
	c, fresh, err := l.Checkpointer()
	must(t, err)
	defer c.Close()
	if !fresh {
		t.Error("the key of a new log is not new")
	}
	note, err := c.Sign()
	must(t, err)
	p, err := l.Prover().ProveAgainst(note, 1, 7, 300)
	must(t, err)
	var b strings.Builder
	must(t, WriteProof(&b, p, people))
	return b.String(), c.Public()
}

func TestProofsAreVerifiedElsewhere(t *testing.T) {
	proof, key := proved(t)
	p, err := VerifyProof(strings.NewReader(proof), people, key)
	must(t, err)
	if len(p.Events) != 3 || p.Events[1].Seq != 7 || p.Checkpoint.Log != (turn.LogID{9}) {
		t.Errorf("verified %d events of %v, the second of which is %d, want 3 and 7", len(p.Events), p.Checkpoint.Log, p.Events[1].Seq)
	}
}

// another is a value that is not v.
func another(v any) any {
	switch v := v.(type) {
	case string:
		if b, err := base64.StdEncoding.DecodeString(v); err == nil && len(b) > 0 {
			b[len(b)/2] ^= 1
			return base64.StdEncoding.EncodeToString(b)
		}
		b := []byte(v)
		b[len(b)-1] ^= 1
		return string(b)
	case float64:
		return v + 1
	case bool:
		return !v
	case nil:
		return 1
	}
	return nil
}

// changes calls f for every value in v, with a function that puts another in its place, and one that puts it back.
func changes(v any, path string, f func(path string, change, back func())) {
	change := func(at string, old any, set func(any)) {
		switch old.(type) {
		case map[string]any, []any:
			changes(old, at, f)
		default:
			f(at, func() { set(another(old)) }, func() { set(old) })
		}
	}
	switch v := v.(type) {
	case map[string]any:
		for k, old := range v {
			change(path+"."+k, old, func(x any) { v[k] = x })
		}
	case []any:
		for i, old := range v {
			change(path+"[]", old, func(x any) { v[i] = x })
		}
	}
}

func TestNoValueOfAProofMayBeAnother(t *testing.T) {
	proof, key := proved(t)
	var doc map[string]any
	must(t, json.Unmarshal([]byte(proof), &doc))
	changed := 0
	changes(doc, "", func(path string, change, back func()) {
		change()
		b, err := json.Marshal(doc)
		must(t, err)
		if _, err := VerifyProof(strings.NewReader(string(b)), people, key); err == nil {
			t.Errorf("verified with another %s", path)
		}
		back()
		changed++
	})
	if changed < 60 {
		t.Errorf("changed %d values: too few to prove anything", changed)
	}
}

func TestProofsOfNobodyAreRefused(t *testing.T) {
	proof, key := proved(t)
	_, otherKey := proved(t)
	var doc map[string]any
	must(t, json.Unmarshal([]byte(proof), &doc))
	with := func(name string, v any) string {
		other := map[string]any{}
		for k, v := range doc {
			other[k] = v
		}
		other[name] = v
		b, err := json.Marshal(other)
		must(t, err)
		return string(b)
	}
	events := doc["events"].([]any)
	for name, c := range map[string]struct{ proof, key, want string }{
		"another key":   {proof, otherKey, "not the one that is trusted"},
		"no key":        {proof, "", "malformed verifier id"},
		"not JSON":      {"proof", key, "read proof"},
		"more behind":   {proof + "{}", key, "something follows"},
		"unknown field": {with("comment", "trust me"), key, "unknown field"},
		"format":        {with("format", "turnstone-proof-2"), key, "has the format"},
		"no events":     {with("events", []any{}), key, "has no events"},
		"unsigned":      {with("checkpoint", strings.SplitN(doc["checkpoint"].(string), "\n\n", 2)[0]+"\n"), key, "malformed note"},
		"swapped":       {with("events", []any{swapped(events[0], events[1], "seq"), events[1]}), key, "does not lead to the root"},
	} {
		if _, err := VerifyProof(strings.NewReader(c.proof), people, c.key); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want an error with %q", name, err, c.want)
		}
	}
}

// swapped is a with b's value of a field.
func swapped(a, b any, field string) any {
	out := map[string]any{}
	for k, v := range a.(map[string]any) {
		out[k] = v
	}
	out[field] = b.(map[string]any)[field]
	return out
}
