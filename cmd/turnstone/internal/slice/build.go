package slice

import (
	"fmt"

	"turnstone/store"
	"turnstone/turn"
)

// Seqs are the sequences of the events in parts.
func Seqs(parts []Part) (seqs []turn.Seq) {
	for _, p := range parts {
		for _, one := range p.Pieces {
			if one.Event != nil {
				seqs = append(seqs, one.Seq)
			}
		}
	}
	return seqs
}

// Records are the records of a log with the id that has parts, taken as it says. Proofs has one for each event, in order,
// or is empty; keys open those that are sealed.
func Records(id turn.LogID, taken turn.SliceTaken, parts []Part, proofs []store.Proven, keys *store.Keyring) ([]turn.Record, error) {
	if n := len(Seqs(parts)); len(proofs) != 0 && len(proofs) != n {
		return nil, fmt.Errorf("%d proofs for %d events", len(proofs), n)
	}
	next := turn.Seq(1)
	var out []turn.Record
	add := func(m turn.Moment, events ...turn.Event) {
		out = append(out, turn.Record{First: next, Moment: m, Events: events})
		next += turn.Seq(len(events))
	}
	add(parts[0].Moment, turn.EpochBegan{Log: id, Epoch: 1}, taken)
	for _, p := range parts {
		var events []turn.Event
		for _, one := range p.Pieces {
			origin := turn.OriginNoted{Seq: one.Seq}
			if one.Event != nil {
				events = append(events, one.Event)
			}
			if one.Event != nil && len(proofs) > 0 {
				var err error
				if origin, err = originOf(proofs[0], one, keys); err != nil {
					return nil, err
				}
				proofs = proofs[1:]
			}
			events = append(events, origin)
		}
		add(p.Moment, events...)
	}
	return out, nil
}

// originOf is what a slice has of a proof.
func originOf(p store.Proven, one Piece, keys *store.Keyring) (turn.OriginNoted, error) {
	o := turn.OriginNoted{Seq: p.Seq}
	if p.Seq != one.Seq {
		return o, fmt.Errorf("the proof is of event %d, want %d", p.Seq, one.Seq)
	}
	for _, h := range p.Path {
		o.Proof = append(o.Proof, h)
	}
	key, err := keys.Disclosure(p.Stored, p.Seq)
	if err != nil {
		return o, fmt.Errorf("event %d: %w", p.Seq, err)
	}
	if key != nil {
		o.Stored, o.Key = p.Stored, key
	}
	return o, nil
}
