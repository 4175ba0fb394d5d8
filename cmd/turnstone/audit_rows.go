package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"turnstone/audit"
	"turnstone/cmd/turnstone/internal/output"
	"turnstone/turn"
)

// auditRow is one binding of an allocation that was found. What is about the allocation stands in each of its rows.
type auditRow struct {
	Allocation turn.AllocationID `json:"allocation"`
	Username   string            `json:"username"`
	Realm      string            `json:"realm" table:"-"`
	Client     string            `json:"client"`
	Server     string            `json:"server" table:"-"`
	Protocol   string            `json:"protocol" table:"-"`
	Relayed    string            `json:"relayed"`
	External   string            `json:"external" table:"-"`
	Transport  string            `json:"transport" table:"-"`
	Began      time.Time         `json:"began" table:"-"` // the allocation
	Over       time.Time         `json:"over" table:"-"`
	Ended      string            `json:"allocation_ended" table:"-"`
	Binding    string            `json:"binding"`
	Channel    string            `json:"channel" table:"-"`
	Peer       string            `json:"peer"`
	From       time.Time         `json:"from"`
	To         time.Time         `json:"to"`
	Why        string            `json:"ended"`
	ToPeer     amounts           `json:"to_peer"`
	ToClient   amounts           `json:"to_client"`
	Userspace  pathAmounts       `json:"userspace" table:"-"`
	Kernel     pathAmounts       `json:"kernel" table:"-"`
	Events     string            `json:"events"`
}

type amounts struct {
	Packets amount `json:"packets"`
	Bytes   amount `json:"bytes"`
}

type pathAmounts struct {
	ToPeer   amounts `json:"to_peer"`
	ToClient amounts `json:"to_client"`
}

// amount is a number, or nothing where it is not counted.
type amount struct {
	n     uint64
	known bool
}

func (a amount) String() string {
	if !a.known {
		return ""
	}
	return strconv.FormatUint(a.n, 10)
}

func (a *amounts) add(c turn.Count) {
	a.Packets = amount{a.Packets.n + c.Packets, true}
	a.Bytes = amount{a.Bytes.n + c.Bytes, true}
}

// refusedRow is what was refused of one sort in about a minute, or a client that was sent elsewhere.
type refusedRow struct {
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	Client   string    `json:"client"`
	Username string    `json:"username"`
	Realm    string    `json:"realm" table:"-"`
	Method   string    `json:"method"`
	Code     uint16    `json:"code"`
	Peer     string    `json:"peer"`
	Servers  []string  `json:"servers" table:"-"`
	Count    uint64    `json:"count"`
	Event    turn.Seq  `json:"event"`
}

// auditWriter writes answers: as they are in JSON, else a row for each binding.
type auditWriter struct {
	out    io.Writer
	format output.Format
	filter audit.Filter
	rows   *output.Writer
	none   bool
}

func newAuditWriter(out io.Writer, f output.Format, filter audit.Filter) *auditWriter {
	return &auditWriter{out: out, format: f.For(out), filter: filter, rows: output.New(out, f), none: true}
}

func (w *auditWriter) answer(a audit.Answer) error {
	w.none = false
	switch {
	case w.format == output.JSON || w.format == output.JSONL:
		return w.rows.Row(a)
	case w.filter.Refused:
		return w.rows.Row(refusedRow{
			From: a.From, To: a.To, Client: a.Client, Username: a.Username, Realm: a.Realm, Method: a.Method, Code: a.Code, Peer: a.Peer,
			Servers: a.Servers, Count: a.Count, Event: a.Began,
		})
	case w.format == output.Table && w.filter.Allocation != 0:
		return w.whole(a)
	}
	for _, r := range flat(a, w.filter) {
		if err := w.rows.Row(r); err != nil {
			return err
		}
	}
	return nil
}

// close ends the output. Where there was nothing a table and CSV have their header, if all went well.
func (w *auditWriter) close(good bool) error {
	switch {
	case !w.none || !good:
		return w.rows.Close()
	case w.filter.Refused:
		return output.Rows[refusedRow](w.out, w.format, nil)
	}
	return output.Rows[auditRow](w.out, w.format, nil)
}

// flat is a row for each binding of a that was asked for; for all of them, or one without, where none was.
func flat(a audit.Answer, f audit.Filter) []auditRow {
	base := auditRow{
		Allocation: a.Allocation, Username: a.Username, Realm: a.Realm, Transport: a.Transport, Began: a.From, Over: a.To, Ended: a.Ended,
	}
	c := a.ClientOf(f)
	base.Client, base.Server, base.Protocol = c.Client, c.Server, c.Protocol
	v := a.RelayedOf(f)
	base.Relayed, base.External = v.Address, v.External
	if w := v.External; w != "" && f.Relayed.IsValid() && strings.HasPrefix(w, f.Relayed.Addr().String()) {
		base.Relayed = w // as it was asked for
	}
	var rows []auditRow
	for _, b := range a.Bindings {
		if (f.Peer.IsValid() || f.Channel != 0) && !b.Matched {
			continue
		}
		rows = append(rows, base.of(b))
		if last := &rows[len(rows)-1]; last.Why == audit.WhyAllocation.String() {
			last.Why = a.Ended + " (allocation)"
		}
	}
	if len(rows) == 0 {
		base.From, base.To, base.Why, base.Events = a.From, a.To, a.Ended, sequences(a.Began, a.Over)
		rows = append(rows, base)
	}
	return rows
}

// of is r with what is about a binding of it.
func (r auditRow) of(b audit.Bound) auditRow {
	r.Binding, r.Peer = b.Binding, b.Peer
	if b.Channel != 0 {
		r.Binding, r.Channel = b.Channel.String(), b.Channel.String()
	}
	var proof []turn.Seq
	for i, p := range b.Periods {
		if i == 0 {
			r.From = p.From
		}
		r.To, r.Why = p.To, p.Ended
		proof = append(proof, p.Began, p.DataEvent, p.Over)
	}
	for _, u := range b.Usage {
		r.ToPeer.add(u.ToPeer)
		r.ToClient.add(u.ToClient)
		path := &r.Userspace
		if u.Path == turn.PathKernel {
			path = &r.Kernel
		}
		path.ToPeer.add(u.ToPeer)
		path.ToClient.add(u.ToClient)
		proof = append(proof, u.Event)
	}
	r.Events = sequences(proof...)
	return r
}

// sequences are the events that prove a row, those that are not in the log left out.
func sequences(list ...turn.Seq) string {
	var out []string
	for _, s := range list {
		if s != 0 {
			out = append(out, strconv.FormatUint(uint64(s), 10))
		}
	}
	return strings.Join(out, " ")
}

// allocationAnswer is an allocation in a table of its own.
type allocationAnswer struct {
	Allocation turn.AllocationID `json:"allocation"`
	Username   string            `json:"username"`
	Realm      string            `json:"realm"`
	Token      bool              `json:"access_token"`
	Transport  string            `json:"transport"`
	Epoch      uint64            `json:"epoch"`
	From       time.Time         `json:"from"`
	To         time.Time         `json:"to"`
	Ended      string            `json:"ended"`
	Events     string            `json:"events"`
}

type placeRow struct {
	Client   string    `json:"client"`
	Server   string    `json:"server"`
	Protocol string    `json:"protocol"`
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	Ended    string    `json:"ended"`
	Events   string    `json:"events"`
}

type relayedRow struct {
	Relayed  string    `json:"relayed"`
	External string    `json:"external"`
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	Ended    string    `json:"ended"`
	Events   string    `json:"events"`
}

type boundRow struct {
	Binding string    `json:"binding"`
	Peer    string    `json:"peer"`
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`
	Ended   string    `json:"ended"`
	Data    string    `json:"data_connection"`
	Events  string    `json:"events"`
}

type usageRow struct {
	Binding  string     `json:"binding"`
	Peer     string     `json:"peer"`
	Path     turn.Path  `json:"path"`
	ToPeer   turn.Count `json:"to_peer"`
	ToClient turn.Count `json:"to_client"`
	Event    turn.Seq   `json:"event"`
}

// whole writes all there is of an allocation as tables.
func (w *auditWriter) whole(a audit.Answer) error {
	err := output.Object(w.out, w.format, allocationAnswer{
		a.Allocation, a.Username, a.Realm, a.Token, a.Transport, a.Epoch, a.From, a.To, a.Ended, sequences(a.Began, a.Over),
	})
	if err != nil {
		return err
	}
	var places []placeRow
	for _, c := range a.Clients {
		places = append(places, placeRow{c.Client, c.Server, c.Protocol, c.From, c.To, c.Period.Ended, sequences(c.Began, c.Over)})
	}
	if err := output.Section(w.out, w.format, "clients", places); err != nil {
		return err
	}
	var relayed []relayedRow
	for _, r := range a.Relayed {
		relayed = append(relayed, relayedRow{r.Address, r.External, r.From, r.To, r.Period.Ended, sequences(r.Began, r.Over)})
	}
	if err := output.Section(w.out, w.format, "relayed addresses", relayed); err != nil {
		return err
	}
	var bindings []boundRow
	var usage []usageRow
	for _, b := range a.Bindings {
		name := b.Binding
		if b.Channel != 0 {
			name = fmt.Sprintf("%s %s", b.Binding, b.Channel)
		}
		for _, p := range b.Periods {
			bindings = append(bindings, boundRow{name, b.Peer, p.From, p.To, p.Period.Ended, p.Data, sequences(p.Began, p.DataEvent, p.Over)})
		}
		for _, u := range b.Usage {
			usage = append(usage, usageRow{name, b.Peer, u.Path, u.ToPeer, u.ToClient, u.Event})
		}
	}
	if err := output.Section(w.out, w.format, "bindings", bindings); err != nil {
		return err
	}
	return output.Section(w.out, w.format, "usage", usage)
}
