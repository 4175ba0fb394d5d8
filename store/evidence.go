package store

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"turnstone/turn"
)

// Evidence is what a log is held against, besides itself.
type Evidence struct {
	Checkpoints []NoteFile
	Keys        []string // one of which must have signed them
	Witnesses   []Witness
	Tree        string // directory of the file tree, empty for none
}

// NoteFile is a file of checkpoints.
type NoteFile struct {
	Name  string
	Notes []SignedNote
	Rest  int // bytes behind the last note, of one that was not wholly written
}

// ReadNotes reads a file of checkpoints.
func ReadNotes(name string) (NoteFile, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return NoteFile{}, fmt.Errorf("read checkpoints: %w", err)
	}
	notes, rest := SplitNotes(b)
	return NoteFile{name, notes, len(rest)}, nil
}

// Witness knows of a record of a log that ended at an event.
type Witness struct {
	Name  string
	Log   turn.LogID
	Epoch uint64
	Seq   turn.Seq
	Chain Hash
}

// openedNote is a checkpoint of a file, or what is wrong with it.
type openedNote struct {
	Checkpoint
	err error
}

// open opens all checkpoints of a file.
func (f *NoteFile) open(keys []string) []openedNote {
	out := make([]openedNote, len(f.Notes))
	var group sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for w := range workers {
		group.Go(func() {
			for i := w; i < len(out); i += workers {
				out[i].Checkpoint, out[i].err = OpenCheckpoint(f.Notes[i].Note, keys...)
			}
		})
	}
	group.Wait()
	return out
}

// wanted are the events behind which it matters how the log stood, in order.
func (e *Evidence) wanted(files [][]openedNote) (out []turn.Seq) {
	for _, f := range files {
		for i := range f {
			out = append(out, f[i].Size)
		}
	}
	for _, w := range e.Witnesses {
		out = append(out, w.Seq)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if len(out) > 0 && out[0] == 0 {
		out = out[1:]
	}
	return out
}

// weigh holds the evidence against how the log stood. Whole says that its end was seen, and not damage before that.
func (e *Evidence) weigh(x *Examination, files [][]openedNote, stood map[turn.Seq]standing, rolled []rollback, whole bool) {
	for i, list := range files {
		e.weighFile(x, &e.Checkpoints[i], list, stood, rolled, whole)
	}
	for _, w := range e.Witnesses {
		st, known := stood[w.Seq]
		switch {
		case x.State != nil && w.Log != x.State.Log():
			x.Remarks = append(x.Remarks, fmt.Sprintf("%s knows of log %v, this is %v", w.Name, w.Log, x.State.Log()))
		case x.State != nil && w.Epoch > x.State.Epoch():
			x.find(Finding{What: "witness", Seq: w.Seq, Offset: -1, Err: fmt.Errorf("%s knows of epoch %d, and the log ends in %d: it was rolled back", w.Name, w.Epoch, x.State.Epoch())})
		case w.Seq > x.Last && whole:
			x.find(Finding{What: "witness", Seq: w.Seq, Offset: -1, Err: fmt.Errorf("%s knows of event %d, and the log ends at %d: it was cut off or rolled back", w.Name, w.Seq, x.Last)})
		case known && (!st.whole || st.chain != w.Chain):
			x.find(Finding{What: "witness", Seq: w.Seq, Offset: -1, Err: fmt.Errorf("%s knows of another record that ends at event %d: the log was rolled back or changed", w.Name, w.Seq)})
		case !known && w.Seq > 0:
			x.Remarks = append(x.Remarks, fmt.Sprintf("%s knows of event %d, which is not there to be compared", w.Name, w.Seq))
		}
	}
}

func (e *Evidence) weighFile(x *Examination, f *NoteFile, list []openedNote, stood map[turn.Seq]standing, rolled []rollback, whole bool) {
	var agreed turn.Seq
	var bad []int
	lost := map[turn.Seq]int{} // by the event that tells of the rollback
	unknown := 0
	for i := range list {
		c := &list[i].Checkpoint
		st, known := stood[c.Size]
		switch {
		case list[i].err != nil:
			x.find(Finding{What: "checkpoint", File: f.Name, Offset: f.Notes[i].Offset, Err: fmt.Errorf("checkpoint %d: %w", f.Notes[i].Number, list[i].err)})
		case x.State != nil && c.Log != x.State.Log():
			x.find(Finding{What: "checkpoint", File: f.Name, Offset: f.Notes[i].Offset, Err: fmt.Errorf("checkpoint %d is of log %v, this is %v", f.Notes[i].Number, c.Log, x.State.Log())})
		case known && st.whole && st.root == c.Root && st.chain == c.Chain:
			agreed = max(agreed, c.Size)
			x.Checkpoints++
		case !known && (c.Size <= x.Last || !whole):
			unknown++
		default:
			if at := told(c, rolled); at > 0 {
				lost[at]++
			} else {
				bad = append(bad, i)
			}
		}
	}
	if unknown > 0 {
		x.Remarks = append(x.Remarks, fmt.Sprintf("%s: %d checkpoints are of events that are not there to be compared", f.Name, unknown))
	}
	for at, n := range lost {
		x.Remarks = append(x.Remarks, fmt.Sprintf("%s: %d checkpoints are of events that were lost in a rollback, of which event %d tells", f.Name, n, at))
	}
	if f.Rest > 0 {
		x.Remarks = append(x.Remarks, fmt.Sprintf("%s: the last checkpoint was not wholly written", f.Name))
	}
	if len(bad) > 0 {
		x.find(disagreement(x, f, list, bad, agreed))
	}
}

// told is the event that tells of the rollback in which what c signed was lost, 0 where none does.
func told(c *Checkpoint, rolled []rollback) turn.Seq {
	for _, r := range rolled {
		if c.Size > r.Kept && c.Size <= r.Size && c.Epoch <= r.Epoch {
			return r.seq
		}
	}
	return 0
}

// disagreement is what it means that the log is not what the bad ones of a file say, and what all up to agreed say.
func disagreement(x *Examination, f *NoteFile, list []openedNote, bad []int, agreed turn.Seq) Finding {
	first := slices.MinFunc(bad, func(a, b int) int { return cmp.Compare(list[a].Size, list[b].Size) })
	c, n := &list[first].Checkpoint, f.Notes[first]
	what := fmt.Sprintf("checkpoint %d signed other events up to %d than the log has", n.Number, c.Size)
	if c.Size > x.Last {
		what = fmt.Sprintf("checkpoint %d signed %d events, and the log ends at %d: it was cut off or rolled back", n.Number, c.Size, x.Last)
	} else if agreed > 0 && agreed < c.Size {
		what += fmt.Sprintf(": something between %d and %d was changed", agreed+1, c.Size)
	}
	if len(bad) > 1 {
		what += fmt.Sprintf(", and so say %d more", len(bad)-1)
	}
	return Finding{What: "checkpoint", Seq: c.Size, File: f.Name, Offset: n.Offset, Err: errors.New(what)}
}

// weighTree holds the file tree in a directory against the one that was made of the log.
func weighTree(x *Examination, dir string, made *treeFile) {
	name := filepath.Join(dir, treeName)
	have := readTreeFile(dir)
	if have.blocks > 0 && have.blocks < made.blocks {
		x.Remarks = append(x.Remarks, fmt.Sprintf("%s has %d of %d blocks: the daemon makes the others, and a reader does without", name, have.blocks, made.blocks))
	}
	want := *made.at.(*memory)
	for at := 0; at+len(Hash{}) <= len(want); at += len(Hash{}) {
		var h Hash
		if _, err := have.at.ReadAt(h[:], int64(at)); err != nil {
			break
		}
		if w := Hash(want[at:][:len(h)]); w != (Hash{}) && w != h {
			x.find(Finding{What: "tree", File: name, Offset: int64(at), Err: errors.New("a node is not that of the log: delete the file, it is made again")})
			return
		}
	}
	if have.blocks > made.blocks {
		x.find(Finding{What: "tree", File: name, Offset: int64(len(want)), Err: fmt.Errorf("it has %d blocks of events, and the log %d: delete the file, it is made again", have.blocks, made.blocks)})
	}
}
