package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"turnstone/turn"

	"golang.org/x/mod/sumdb/tlog"
)

// Proof is events of a log, each with the proof that it is in the tree of a checkpoint.
type Proof struct {
	Checkpoint Checkpoint
	Note       []byte // the checkpoint, signed
	Events     []Proven
}

// ProveAgainst is the proof of the events with these sequences against a signed checkpoint of the log, which is not checked
// for who signed it.
func (p *Prover) ProveAgainst(signed []byte, seqs ...turn.Seq) (Proof, error) {
	c, err := ParseCheckpoint(signed)
	if err != nil {
		return Proof{}, err
	}
	root, err := p.Root(c.Size)
	if err != nil {
		return Proof{}, err
	}
	if root != c.Root {
		return Proof{}, fmt.Errorf("the checkpoint of event %d is not of this log", c.Size)
	}
	events, err := p.Prove(c.Size, seqs...)
	return Proof{Checkpoint: c, Note: signed, Events: events}, err
}

// Disclose puts into p what shows each sealed event, and no other, to who has no keys.
func (p *Proof) Disclose(keys *Keyring) (err error) {
	for i := range p.Events {
		e := &p.Events[i]
		if e.Shown, err = keys.Disclosure(e.Stored, e.Seq); err != nil {
			return fmt.Errorf("event %d: %w", e.Seq, err)
		}
	}
	return nil
}

// Form is an event in a form for people: a value that goes into JSON.
type Form func(turn.Event) any

// proofFormat is what a file of proofs says that it is.
const proofFormat = "turnstone-proof-1"

// proofFile is a proof as it is written: one JSON document.
type proofFile struct {
	Format     string       `json:"format"`
	Log        string       `json:"log"`
	Checkpoint string       `json:"checkpoint"` // the signed note
	Events     []proofEvent `json:"events"`
}

// proofEvent is an event of it. Seq, boot, uptime, wall and stored make the leaf; the rest says the same to people.
type proofEvent struct {
	Seq    turn.Seq        `json:"seq"`
	Time   time.Time       `json:"time"`
	Kind   string          `json:"kind"`
	Event  json.RawMessage `json:"event"`
	Boot   string          `json:"boot"`
	Uptime int64           `json:"uptime,string"` // nanoseconds, as text: many readers of JSON round large numbers
	Wall   int64           `json:"wall,string"`   // nanoseconds since 1970
	Stored []byte          `json:"stored"`
	Shown  []byte          `json:"disclosure,omitempty"` // of this event, where its log is encrypted
	Path   []tlog.Hash     `json:"proof"`
}

// readable fills in what p says to people.
func (f *proofEvent) readable(p *Proven, form Form) error {
	e, err := p.Event()
	if err != nil {
		return fmt.Errorf("event %d: %w", p.Seq, err)
	}
	f.Time, f.Kind = p.Moment.WallTime(), strings.TrimPrefix(fmt.Sprintf("%T", e), "turn.")
	f.Event, err = json.Marshal(form(e))
	return err
}

// WriteProof writes p as a JSON document, which [VerifyProof] reads.
func WriteProof(w io.Writer, p Proof, form Form) error {
	f := proofFile{Format: proofFormat, Log: p.Checkpoint.Log.String(), Checkpoint: string(p.Note), Events: []proofEvent{}}
	for i := range p.Events {
		e := &p.Events[i]
		one := proofEvent{Seq: e.Seq, Boot: e.Moment.Boot.String(), Uptime: int64(e.Moment.Uptime), Wall: e.Moment.Wall, Stored: e.Stored, Shown: e.Shown, Path: []tlog.Hash{}}
		for _, h := range e.Path {
			one.Path = append(one.Path, tlog.Hash(h))
		}
		if err := one.readable(e, form); err != nil {
			return fmt.Errorf("write proof: %w", err)
		}
		f.Events = append(f.Events, one)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(f)
}

// VerifyProof reads a proof and believes nothing in it but what follows from the keys: that one of them signed the checkpoint, that
// each event's bytes lead to its root, and that what is said to people is what the bytes say. The error names all that does
// not hold; the events that do are in the proof.
func VerifyProof(r io.Reader, form Form, keys ...string) (Proof, error) {
	var f proofFile
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return Proof{}, fmt.Errorf("read proof: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Proof{}, errors.New("read proof: something follows it")
	}
	if f.Format != proofFormat {
		return Proof{}, fmt.Errorf("read proof: it has the format %q, known is %q", f.Format, proofFormat)
	}
	p := Proof{Note: []byte(f.Checkpoint)}
	var err error
	if p.Checkpoint, err = OpenCheckpoint(p.Note, keys...); err != nil {
		return p, err
	}
	if f.Log != p.Checkpoint.Log.String() {
		return p, fmt.Errorf("the proof says that it is of log %s, its checkpoint is of %v", f.Log, p.Checkpoint.Log)
	}
	if len(f.Events) == 0 {
		return p, errors.New("the proof has no events")
	}
	var problems []error
	for i := range f.Events {
		e, err := f.Events[i].verify(&p.Checkpoint, form)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		p.Events = append(p.Events, e)
	}
	return p, errors.Join(problems...)
}

func (f *proofEvent) verify(c *Checkpoint, form Form) (Proven, error) {
	p := Proven{Seq: f.Seq, Moment: turn.Moment{Uptime: time.Duration(f.Uptime), Wall: f.Wall}, Stored: f.Stored, Shown: f.Shown}
	if err := unhex(p.Moment.Boot[:], f.Boot); err != nil {
		return p, fmt.Errorf("event %d: boot: %w", f.Seq, err)
	}
	for _, h := range f.Path {
		p.Path = append(p.Path, Hash(h))
	}
	if err := p.Check(c.Size, c.Root); err != nil {
		return p, err
	}
	var said bytes.Buffer
	if err := json.Compact(&said, f.Event); err != nil {
		return p, fmt.Errorf("event %d: %w", f.Seq, err)
	}
	var own proofEvent
	if err := own.readable(&p, form); err != nil {
		return p, err
	}
	if !f.Time.Equal(own.Time) || f.Kind != own.Kind || !bytes.Equal(said.Bytes(), own.Event) {
		return p, fmt.Errorf("event %d: the proof says %s %s at %s, its bytes say %s %s at %s",
			f.Seq, f.Kind, said.Bytes(), f.Time.Format(time.RFC3339Nano), own.Kind, own.Event, own.Time.Format(time.RFC3339Nano))
	}
	return p, nil
}
