package store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"turnstone/turn"
)

// ArchiveName is the directory of archives in the one of the log, where no other is named.
const ArchiveName = "archive"

const (
	archiveSuffix = ".cbor.zst"
	freshPrefix   = ".new-"
)

// Archives is a directory of archived segments. It may be used from several goroutines.
type Archives struct {
	dir string

	mu    sync.Mutex // guards heads
	heads map[string]archived
}

// archived is what the head of an archive says, and of which file it was read.
type archived struct {
	PackHead
	size    int64
	changed time.Time
}

// OpenArchives is the archives in dir, which need not be there.
func OpenArchives(dir string) *Archives { return &Archives{dir: dir, heads: map[string]archived{}} }

// archiveFile is the name of the archive of a segment.
func archiveFile(number uint64) string { return fmt.Sprintf("%08d%s", number, archiveSuffix) }

// names lists the archives there are by the number of their segment.
func (a *Archives) names() ([]string, error) {
	entries, err := os.ReadDir(a.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list archives: %w", err)
	}
	var names []string
	for _, e := range entries {
		if segmentOf(e.Name()) > 0 {
			names = append(names, e.Name())
		}
	}
	slices.SortFunc(names, func(x, y string) int { return cmp.Compare(segmentOf(x), segmentOf(y)) })
	return names, nil
}

// segmentOf is the number in the name of an archive, 0 where it is none.
func segmentOf(name string) uint64 {
	digits, is := strings.CutSuffix(name, archiveSuffix)
	n, err := strconv.ParseUint(digits, 10, 64)
	if !is || err != nil {
		return 0
	}
	return n
}

// head is the head of the archive name.
func (a *Archives) head(name string) (archived, error) {
	file := filepath.Join(a.dir, name)
	info, err := os.Stat(file)
	if err != nil {
		return archived{}, fmt.Errorf("open archive: %w", err)
	}
	a.mu.Lock()
	known, ok := a.heads[name]
	a.mu.Unlock()
	if ok && known.size == info.Size() && known.changed.Equal(info.ModTime()) {
		return known, nil
	}
	h := archived{size: info.Size(), changed: info.ModTime()}
	err = readPack(file, func(p *packReader) (err error) {
		h.PackHead, err = p.segmentHead()
		return err
	})
	if err == nil && h.Segment != segmentOf(name) {
		err = &CorruptError{File: file, Err: fmt.Errorf("it is an archive of segment %d", h.Segment)}
	}
	if err != nil {
		return h, err
	}
	a.mu.Lock()
	a.heads[name] = h
	a.mu.Unlock()
	return h, nil
}

// readPack opens a pack in zstd for f. What is wrong with its bytes is damage of the file.
func readPack(file string, f func(*packReader) error) error {
	in, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("open archive: %w", err)
	}
	defer in.Close()
	unpacked, err := Decompress(in)
	if err != nil {
		return &CorruptError{File: file, Err: err}
	}
	defer unpacked.Close()
	return packError(file, f(newPackReader(unpacked)))
}

// packError makes err, of reading the pack file, damage, unless it is of the disk or of a newer version.
func packError(file string, err error) error {
	var disk *os.PathError
	var damage *CorruptError
	switch {
	case err == nil, errors.As(err, &disk), errors.Is(err, ErrUnknownFormat), errors.Is(err, ErrUnknownKind), errors.Is(err, errEnough),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &damage):
		return inFile(file, err)
	}
	return &CorruptError{File: file, Err: err}
}

// errEnough ends a reading whose consumer has enough.
var errEnough = errors.New("enough")

// segmentHead reads an item that is to be the head of a segment.
func (p *packReader) segmentHead() (h PackHead, err error) {
	item, err := p.next()
	if err != nil {
		return h, noEOF(err)
	}
	if item.kind != packSegment {
		return h, errors.New("it does not begin with the head of a segment")
	}
	if h, err = as[PackHead](item); err != nil {
		return h, err
	}
	_, err = h.begin()
	return h, err
}

// records reads the records of an archive from the one that holds from. What follows them, or is missing, is damage.
func (a *Archives) records(name string, from turn.Seq, yield func([]byte) bool) error {
	return readPack(filepath.Join(a.dir, name), func(p *packReader) error {
		h, err := p.segmentHead()
		if err != nil {
			return err
		}
		for range h.Records {
			item, err := p.next()
			if err != nil {
				return noEOF(err)
			}
			if item.record == nil {
				return errors.New("there is something else among the records")
			}
			if lastInside(item.record) >= from && !yield(item.record) {
				return errEnough
			}
		}
		if _, err := p.next(); err != io.EOF { //nolint:errorlint // next's own, for the end
			return errors.New("something follows the last record")
		}
		return nil
	})
}

// before lists the archives that lie without a gap before the segment number, which begins at begin, the oldest first:
// those of its own history, back to the one that holds until. With an error it lists those behind the one that it is about.
func (a *Archives) before(number uint64, begin chain, until turn.Seq) ([]archived, error) {
	names, err := a.names()
	if err != nil {
		return nil, err
	}
	var list []archived
	for _, name := range slices.Backward(names) {
		n := segmentOf(name)
		if n >= number {
			continue
		}
		if n+1 != number || begin.next() <= until {
			break
		}
		var h archived
		if h, err = a.head(name); err != nil {
			break
		}
		if h.Last+1 != begin.next() || h.Chain != begin.last || h.Root != begin.tree.root() { // of another history
			break
		}
		list = append(list, h)
		number = n
		if begin, err = h.begin(); err != nil {
			break
		}
	}
	slices.Reverse(list)
	return list, err
}

// Past is what Stat says of archives: of those that can be read on from without a gap into the file.
type Past struct {
	Dir         string // empty for none
	Archives    int
	Bytes       int64 // of the files
	First, Last turn.Seq
}

func describePast(s source) (p Past, err error) {
	a := pastOf(s)
	if a == nil {
		return p, nil
	}
	p.Dir = a.dir
	list, err := archivedBefore(s, 0)
	for i, h := range list {
		if i == 0 {
			p.First = h.First
		}
		p.Archives++
		p.Bytes += h.size
		p.Last = h.Last
	}
	return p, err
}

// Check verifies the archive of segment number: its records, their chain and tree.
func (a *Archives) Check(number uint64) (PackHead, error) {
	name := archiveFile(number)
	h, err := a.head(name)
	if err != nil {
		return h.PackHead, err
	}
	return h.PackHead, packError(filepath.Join(a.dir, name), h.check(a.raw(name, 0)))
}

func (a *Archives) raw(name string, from turn.Seq) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		err := a.records(name, from, func(raw []byte) bool { return yield(raw, nil) })
		if err != nil && !errors.Is(err, errEnough) {
			yield(nil, err)
		}
	}
}

// check holds records against the head that stands before them.
func (h *PackHead) check(raw iter.Seq2[[]byte, error]) error {
	begin, err := h.begin()
	if err != nil {
		return err
	}
	report, err := verifyFrom(begin, nil, raw)
	switch {
	case err != nil:
		return err
	case report.Last != h.Last || report.Chain != h.Chain || report.Root != h.Root || report.Records != h.Records || report.Bytes != h.Bytes:
		return &CorruptError{Seq: report.Last, Err: errors.New("the records are not those that the head of the archive names")}
	}
	return nil
}

// archiveSegment writes the segment a of the log id to dir, reads it back and verifies it. It is durable when
// archiveSegment returns. One that is there already and is the same is left as it is; another is put aside.
func archiveSegment(ctx context.Context, l *Log, dir string, id turn.LogID, a aging) (e turn.SegmentArchived, err error) {
	if err := makeDir(dir); err != nil {
		return e, err
	}
	h, err := headOf(l, id, a.number)
	if err != nil {
		return e, err
	}
	archives := OpenArchives(dir)
	name := archiveFile(a.number)
	if there, err := archives.Check(a.number); err == nil && samePack(there, h) {
		return archivedEvent(filepath.Join(dir, name), h)
	} else if !errors.Is(err, os.ErrNotExist) {
		if err := os.Rename(filepath.Join(dir, name), aside(dir, name)); err != nil {
			return e, err
		}
	}
	fresh := freshPrefix + name
	defer os.Remove(filepath.Join(dir, fresh))
	if err := writeArchive(ctx, l, filepath.Join(dir, fresh), h); err != nil {
		return e, err
	}
	if err := packError(fresh, h.check(archives.raw(fresh, 0))); err != nil {
		return e, fmt.Errorf("read back what was written: %v", err) //nolint:errorlint // it is no damage of the log
	}
	if err := os.Rename(filepath.Join(dir, fresh), filepath.Join(dir, name)); err != nil {
		return e, err
	}
	if err := syncDir(dir); err != nil {
		return e, err
	}
	return archivedEvent(filepath.Join(dir, name), h)
}

// aside is a name for an archive of other records: of a history that was lost when an older log was restored.
func aside(dir, name string) string {
	for n := 1; ; n++ {
		other := filepath.Join(dir, fmt.Sprintf("%s.other-%d", name, n))
		if _, err := os.Lstat(other); errors.Is(err, os.ErrNotExist) {
			return other
		}
	}
}

func samePack(x, y PackHead) bool {
	return x.Log == y.Log && x.First == y.First && x.Last == y.Last && x.Chain == y.Chain && x.Root == y.Root && bytes.Equal(x.Begin, y.Begin)
}

// headOf is the head of the sealed segment number of l.
func headOf(l *Log, id turn.LogID, number uint64) (PackHead, error) {
	g, err := statSegment(l, key(number))
	if err != nil {
		return PackHead{}, err
	}
	segments, err := segmentsOf(l)
	if err != nil {
		return PackHead{}, err
	}
	i := slices.IndexFunc(segments, func(b begun) bool { return b.number == number })
	if i < 0 || i+1 >= len(segments) {
		return PackHead{}, fmt.Errorf("segment %d is not sealed", number)
	}
	begin, end := segments[i].begin, segments[i+1].begin
	return PackHead{
		Format: packFormat, Log: id, Segment: number, First: begin.next(), Last: end.next() - 1, Begin: begin.header(begin.next()),
		Chain: end.last, Root: end.tree.root(), Records: g.Records, Bytes: g.Bytes, Wall: g.To.Wall,
	}, nil
}

// writeArchive writes the records that h names to file, durably.
func writeArchive(ctx context.Context, s source, file string, h PackHead) (err error) {
	out, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	packed, err := Compress(out)
	if err != nil {
		return err
	}
	p := newPackWriter(packed)
	if err := p.item(packSegment, h); err != nil {
		return err
	}
	for raw, err := range rawWithin(s, h.First, h.Last) {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if err := p.record(raw); err != nil {
			return err
		}
	}
	if err := errors.Join(p.w.Flush(), packed.Close()); err != nil {
		return err
	}
	return out.Sync()
}

// rawWithin yields the records that begin at first or behind it and at last or before it.
func rawWithin(s source, first, last turn.Seq) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for raw, err := range Raw(s, first) {
			if err == nil && firstInside(raw) > last {
				return
			}
			if !yield(raw, err) || err != nil {
				return
			}
		}
	}
}

// archivedEvent says what was archived.
func archivedEvent(file string, h PackHead) (e turn.SegmentArchived, err error) {
	in, err := os.Open(file)
	if err != nil {
		return e, err
	}
	defer in.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, in)
	return turn.SegmentArchived{Segment: h.Segment, Size: uint64(n), Digest: Hash(sum.Sum(nil))}, err
}

// dropArchives removes the archives whose last record is too old, the oldest first, and what a crash left half
// written.
func (t *tender) dropArchives(ctx context.Context, r *Retention) error {
	if r.Archive == "" || r.ArchiveAge <= 0 {
		return nil
	}
	archives := OpenArchives(r.Archive)
	names, err := archives.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		h, err := archives.head(name)
		if err != nil {
			return fmt.Errorf("remove archives: %v", err) //nolint:errorlint // it is no damage of the log
		}
		if t.log.options.now().Sub(time.Unix(0, h.Wall)) <= r.ArchiveAge {
			return nil
		}
		if h.Segment > t.dropped {
			if err := t.record(ctx, turn.ArchiveRemoved{Segment: h.Segment}); err != nil {
				return err
			}
			t.dropped = h.Segment
		}
		if err := errors.Join(os.Remove(filepath.Join(r.Archive, name)), t.log.keys.erase(h.Segment)); err != nil {
			return fmt.Errorf("remove archive: %w", err)
		}
		if err := syncDir(r.Archive); err != nil {
			return err
		}
	}
	return nil
}
