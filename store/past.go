package store

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"

	"turnstone/turn"
)

// archivist is a source that knows where its retired segments were written to.
type archivist interface{ past() *Archives }

// past is where l's archives are, nil for nowhere.
func (l *Log) past() *Archives { return l.archives.Load() }

// past is where r's archives are, nil for nowhere.
func (r *Reader) past() *Archives { return r.archives }

// pastOf is where the archives of s are, nil for nowhere.
func pastOf(s source) *Archives {
	if a, ok := s.(archivist); ok {
		return a.past()
	}
	return nil
}

// SetArchives has r read what was retired from the archives in dir. Without it they are looked for beside the file.
func (r *Reader) SetArchives(dir string) error {
	if info, err := os.Stat(dir); err != nil {
		return fmt.Errorf("open archives: %w", err)
	} else if !info.IsDir() {
		return fmt.Errorf("open archives: %s is no directory", dir)
	}
	r.archives = OpenArchives(dir)
	return nil
}

// archivesBeside are those in the directory of a log's file, nil where there are none.
func archivesBeside(file string) *Archives {
	dir := filepath.Join(filepath.Dir(file), ArchiveName)
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return nil
	}
	return OpenArchives(dir)
}

// archivedBefore lists the archives of s without a gap before its file, back to the one that holds until.
func archivedBefore(s source, until turn.Seq) ([]archived, error) {
	a := pastOf(s)
	if a == nil {
		return nil, nil
	}
	first, ok, err := firstSegment(s)
	if err != nil || !ok || first.number == 1 {
		return nil, err
	}
	return a.before(first.number, first.begin, until)
}

// historyOf lists the segments of s, with those in archives before the ones in its file. With an error about an archive it lists
// those behind that.
func historyOf(s source) ([]begun, error) {
	segments, err := segmentsOf(s)
	if err != nil {
		return nil, err
	}
	old, err := archivedBefore(s, 0)
	all := make([]begun, 0, len(old)+len(segments))
	for _, h := range old {
		begin, err := h.begin()
		if err != nil {
			return nil, err
		}
		all = append(all, begun{number: h.Segment, begin: begin})
	}
	return append(all, segments...), err
}

// Oldest is the first event of s that can be read on from without a gap, in its file or its archives; 0 for none.
func Oldest(s source) (turn.Seq, error) {
	old, err := archivedBefore(s, 0)
	if err != nil {
		return 0, err
	}
	if len(old) > 0 {
		return old[0].First, nil
	}
	first, ok, err := firstSegment(s)
	if err != nil || !ok {
		return 0, err
	}
	return first.begin.next(), nil
}

// readArchived yields the records that the archives of s hold, from the one that holds seq up to the end of its
// archive. It says where to go on, which is at seq where the consumer has enough.
func readArchived(s source, seq turn.Seq, yield func([]byte, error) bool) turn.Seq {
	list, err := archivedBefore(s, seq)
	if err == nil && (len(list) == 0 || list[0].First > seq) {
		err = missing(s, seq, list)
	}
	if err != nil {
		yield(nil, err)
		return seq
	}
	h := list[0]
	err = pastOf(s).records(archiveFile(h.Segment), seq, func(raw []byte) bool { return yield(raw, nil) })
	switch {
	case errors.Is(err, errEnough):
		return seq
	case err != nil:
		yield(nil, err)
		return seq
	}
	return h.Last + 1
}

// missing says which events from seq on nobody has, where list is what the archives have.
func missing(s source, seq turn.Seq, list []archived) error {
	a := pastOf(s)
	if a == nil {
		return fmt.Errorf("read at %d: %w", seq, ErrRetired)
	}
	first, ok, err := firstSegment(s)
	if err != nil || !ok {
		return errors.Join(err, fmt.Errorf("read at %d: %w", seq, ErrRetired))
	}
	end := first.begin.next()
	if len(list) > 0 {
		end = list[0].First
	}
	return fmt.Errorf("events %d to %d: %w, and no archive in %s has them", seq, end-1, ErrRetired, a.dir)
}

// Ending lists what ends right before event before, without a gap: where it begins, 0 for nowhere.
func (a *Archives) Ending(before turn.Seq) (turn.Seq, error) {
	list, err := a.ending(before)
	if err != nil || len(list) == 0 {
		return 0, err
	}
	return list[0].First, nil
}

func (a *Archives) ending(before turn.Seq) ([]archived, error) {
	names, err := a.names()
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Backward(names) {
		h, err := a.head(name)
		if err != nil {
			return nil, err
		}
		if h.Last+1 > before {
			continue
		}
		if h.Last+1 < before {
			break
		}
		begin, err := h.begin()
		if err != nil {
			return nil, err
		}
		list, err := a.before(h.Segment, begin, 0)
		return append(list, h), err
	}
	return nil, nil
}

// Raw yields the records from the one that holds from to the one that ends before event before.
func (a *Archives) Raw(from, before turn.Seq) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		list, err := a.ending(before)
		if err == nil && (len(list) == 0 || list[0].First > from) {
			err = fmt.Errorf("event %d: %w, and no archive in %s has it", from, ErrRetired, a.dir)
		}
		for _, h := range list {
			if err == nil && h.Last >= from {
				err = a.records(archiveFile(h.Segment), from, func(raw []byte) bool { return yield(raw, nil) })
			}
		}
		if err != nil && !errors.Is(err, errEnough) {
			yield(nil, err)
		}
	}
}

// weighArchives looks at the archives before segments, which lead on to none of them: those that follow one that is damaged or
// missing, and that one.
func (r *Reader) weighArchives(x *Examination, segments []begun) error {
	if r.archives == nil || len(segments) == 0 {
		return nil
	}
	names, err := r.archives.names()
	if err != nil {
		return err
	}
	var apart []uint64
	for _, name := range names {
		n := segmentOf(name)
		if n >= segments[0].number {
			break
		}
		h, err := r.archives.Check(n)
		var damage *CorruptError
		switch {
		case errors.As(err, &damage):
			x.find(Finding{What: "archive", Segment: n, Seq: damage.Seq, File: filepath.Join(r.archives.dir, name), Offset: -1, Err: err})
		case err != nil:
			return err
		default:
			apart = append(apart, h.Segment)
		}
	}
	if n := len(apart); n > 0 {
		x.Remarks = append(x.Remarks, fmt.Sprintf("%s: archives of segments %d to %d were looked at one by one: none leads on to segment %d",
			r.archives.dir, apart[0], apart[n-1], segments[0].number))
	}
	return nil
}

// archiveHolding is the archive that a finding is about, empty where it is about the file of s.
func archiveHolding(s source, f *Finding) string {
	a := pastOf(s)
	var damage *CorruptError
	if f.What == "snapshot" || f.What == "witness" {
		return ""
	}
	if errors.As(f.Err, &damage) && damage.File != "" && damage.File != s.name() {
		return damage.File
	}
	first, ok, err := firstSegment(s)
	if a == nil || f.Segment == 0 || err != nil || !ok || f.Segment >= first.number {
		return ""
	}
	return filepath.Join(a.dir, archiveFile(f.Segment))
}
