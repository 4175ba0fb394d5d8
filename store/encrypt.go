package store

import (
	"errors"
	"slices"

	"turnstone/turn"
)

// place encodes r, which follows, for the segment that it goes into, and yields where the log stands behind it.
func (l *Log) place(r turn.Record) (raw []byte, after chain, into segment, err error) {
	if l.segment.number != 0 && !l.renew {
		after = l.chain.clone()
		if raw, err = after.encode(r, l.segment.key); err != nil {
			return nil, after, into, err
		}
		into = l.segment.with(len(raw), l.options.SegmentSize, l.chain.headerSize(), r.First)
		if into.number == l.segment.number {
			into.sealed = into.sealed || seals(into.key, r)
			return raw, after, into, nil
		}
	}
	var key *segmentKey
	if l.options.Encrypt { // it was drawn before, as a rule
		if key, err = l.keys.draw(l.segment.number + 1); err != nil {
			return nil, after, into, err
		}
	}
	after = l.chain.clone()
	if raw, err = after.encode(r, key); err != nil {
		return nil, after, into, err
	}
	into = l.segment.next(len(raw), l.chain.headerSize(), r.First)
	into.key, into.wall, into.sealed = key, r.Moment.Wall, seals(key, r)
	return raw, after, into, nil
}

// seals says whether something of r is sealed with key.
func seals(key *segmentKey, r turn.Record) bool {
	return key != nil && slices.ContainsFunc(r.Events, func(e turn.Event) bool { return !inTheOpen[e.Kind()] })
}

// continueSegment has the last segment, with events of these forms, go on if it is of the form that is
// asked for: one segment is all plain or all sealed.
func (l *Log) continueSegment(forms form) error {
	l.renew, l.segment.sealed = forms&formSealed != 0, forms&formSealed != 0
	if !l.options.Encrypt {
		return nil
	}
	there, err := l.keys.Has(l.segment.number)
	if err != nil {
		return err
	}
	if l.renew = !there || forms&formPlain != 0; !l.renew {
		l.segment.key, err = l.keys.of(l.segment.number)
	}
	return err
}

// drawAhead makes the key of the next segment, so that no append waits for it.
func (l *Log) drawAhead() error {
	if !l.options.Encrypt {
		return nil
	}
	_, number, _ := l.ending()
	_, err := l.keys.draw(number + 1)
	return err
}

// withoutKey is the first of errs that is about a key that is missing, nil where none is.
func withoutKey(errs ...error) *KeyError {
	for _, err := range errs {
		var missing *KeyError
		if errors.As(err, &missing) {
			return missing
		}
	}
	return nil
}
