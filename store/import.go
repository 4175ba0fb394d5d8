package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// ErrExists says that there is a log where one was to be made.
var ErrExists = errors.New("there is a log already")

// importTx is how many bytes of records go into one transaction.
const importTx = 4 << 20

// ImportOptions say what Import makes.
type ImportOptions struct {
	Files bool                   // put in place the files of the packs, those that are not there yet
	Then  func(dir string) error // run with the directory of the log before it is in its place; may be nil
}

// Import makes a log in dir of packs: exports, backups, or archives in their order. All of it is verified, record by
// record and then as a whole, before it is put in its place. It never changes a log that is there: that is ErrExists.
func Import(ctx context.Context, dir string, files []string, o ImportOptions) (report Report, err error) {
	if err := makeDir(dir); err != nil {
		return report, fmt.Errorf("import log: %w", err)
	}
	lock, err := takeLock(filepath.Join(dir, lockName))
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	target := filepath.Join(dir, FileName)
	if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
		return report, errors.Join(err, fmt.Errorf("%s: %w", target, ErrExists))
	}
	fresh := filepath.Join(dir, freshPrefix+"log")
	if err := os.RemoveAll(fresh); err != nil {
		return report, fmt.Errorf("import log: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(fresh)) }()
	if err := makeDir(fresh); err != nil {
		return report, fmt.Errorf("import log: %w", err)
	}
	in, err := importPacks(ctx, filepath.Join(fresh, FileName), files)
	if err != nil {
		return report, fmt.Errorf("import log: %w", err)
	}
	if o.Then != nil {
		if err := o.Then(fresh); err != nil {
			return report, fmt.Errorf("import log: %w", err)
		}
	}
	reader, err := OpenReader(filepath.Join(fresh, FileName))
	if err != nil {
		return report, fmt.Errorf("import log: %w", err)
	}
	reader.UseKeys(in.keyring(dir))
	if report, err = reader.Verify(); err != nil {
		return report, fmt.Errorf("verify what was imported: %w", err)
	}
	if o.Files {
		if err := in.place(dir); err != nil {
			return report, fmt.Errorf("import log: %w", err)
		}
	}
	if err := os.Rename(filepath.Join(fresh, FileName), target); err != nil {
		return report, fmt.Errorf("import log: %w", err)
	}
	return report, syncDir(dir)
}

// importPacks makes the file of a log of packs.
func importPacks(ctx context.Context, file string, files []string) (in *importer, err error) {
	if err := makeFile(file, 0); err != nil {
		return nil, err
	}
	db, err := openDatabase(file, bbolt.Options{NoSync: true, Timeout: openTimeout})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.close()) }()
	in = &importer{db: db}
	for _, pack := range files {
		err := readPack(pack, func(p *packReader) error {
			in.pack, in.segments, in.ended = pack, 0, false
			return in.read(ctx, p)
		})
		if err != nil {
			return nil, err
		}
	}
	if err := in.flush(); err != nil {
		return nil, err
	}
	if in.last == 0 {
		return nil, errors.New("there are no records in it")
	}
	return in, db.Sync()
}

// importer puts the items of packs into a file.
type importer struct {
	packCheck
	db    *database
	pack  string
	batch []func(*bbolt.Tx) error
	size  int
	files []PackFile
}

// read takes all items of one pack.
func (in *importer) read(ctx context.Context, p *packReader) error {
	for {
		item, err := p.next()
		if err == io.EOF { //nolint:errorlint // next's own, for the end
			return in.done()
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if err := in.item(item); err != nil {
			return err
		}
		if err := in.put(item); err != nil {
			return err
		}
		if in.size > importTx {
			if err := in.flush(); err != nil {
				return err
			}
		}
	}
}

// put notes what is to be written for item, which is checked.
func (in *importer) put(item packItem) error {
	switch {
	case item.record != nil:
		segment, first, raw := in.head.Segment, firstInside(item.record), item.record
		in.add(len(raw), func(tx *bbolt.Tx) error {
			b := tx.Bucket(migrations.Segments).Bucket(key(segment))
			b.FillPercent = 1
			return b.Put(key(uint64(first)), raw)
		})
	case item.kind == packSegment:
		segment, begin := in.head.Segment, in.head.Begin
		in.add(len(begin), func(tx *bbolt.Tx) error {
			segments := tx.Bucket(migrations.Segments)
			segments.FillPercent = 1
			b, err := segments.CreateBucket(key(segment))
			if err != nil {
				return err
			}
			return b.Put(headKey, begin)
		})
	case item.kind == packSnapshot:
		snap := in.snap
		in.add(len(snap.Head), func(tx *bbolt.Tx) error {
			b, err := tx.Bucket(migrations.Snapshots).CreateBucketIfNotExists(key(uint64(snap.At)))
			if err != nil {
				return err
			}
			return b.Put(headKey, snap.Head)
		})
	case item.kind == packChunk:
		chunk, err := as[[]byte](item)
		if err != nil {
			return err
		}
		at, n := in.snap.At, in.chunk
		in.add(len(chunk), func(tx *bbolt.Tx) error {
			return tx.Bucket(migrations.Snapshots).Bucket(key(uint64(at))).Put(key(n), chunk)
		})
	case item.kind == packFile:
		f, err := as[PackFile](item)
		if err != nil {
			return err
		}
		in.files = append(in.files, f)
	}
	return nil
}

func (in *importer) add(size int, f func(*bbolt.Tx) error) {
	in.batch = append(in.batch, f)
	in.size += size
}

func (in *importer) flush() error {
	batch := in.batch
	in.batch, in.size = nil, 0
	return in.db.transact(func(tx *bbolt.Tx) error {
		for _, f := range batch {
			if err := f(tx); err != nil {
				return err
			}
		}
		return nil
	})
}

// keyring has the keys of the packs, and those that are in dir already.
func (in *importer) keyring(dir string) *Keyring {
	there := NewKeyring(Keys(dir))
	return LoadingKeyring("the packs or "+there.where, func(segment uint64) ([]byte, error) {
		name := keysName + "/" + segmentKeys + "/" + strconv.FormatUint(segment, 10)
		for _, f := range in.files {
			if f.Name == name {
				return f.Body, nil
			}
		}
		return there.load(segment)
	})
}

// place puts files of the packs into dir, but for those that are there.
func (in *importer) place(dir string) error {
	for _, f := range in.files {
		name := filepath.FromSlash(f.Name)
		if !filepath.IsLocal(name) || f.Name != CheckpointsName && !strings.HasPrefix(f.Name, keysName+"/") {
			return fmt.Errorf("the pack has a file %q, which is not one of a log", f.Name)
		}
		file := filepath.Join(dir, name)
		if _, err := os.Lstat(file); err == nil {
			continue
		}
		if err := makeDir(filepath.Dir(file)); err != nil {
			return err
		}
		if err := writeKey(file, f.Body); err != nil {
			return err
		}
	}
	return nil
}

// packCheck holds the items of packs against each other.
type packCheck struct {
	head     *PackHead // of the records that come
	chain    chain
	records  uint64 // so far, of head
	bytes    uint64
	wall     int64
	first    turn.Seq // of all
	last     turn.Seq // of all
	size     uint64   // of all records
	segments int      // in this pack
	ended    bool     // this pack has its end
	total    uint64   // records of this pack
	snap     PackSnapshot
	chunk    uint64 // of snap
}

// item takes one item.
func (c *packCheck) item(item packItem) error {
	if c.ended {
		return errors.New("something follows the end")
	}
	if item.kind == packChunk {
		if c.chunk++; c.chunk > c.snap.Chunks {
			return fmt.Errorf("the snapshot %d has too many chunks", c.snap.At)
		}
		return nil
	}
	if c.chunk < c.snap.Chunks {
		return fmt.Errorf("the snapshot %d was cut off", c.snap.At)
	}
	if item.record != nil {
		return c.record(item.record)
	}
	if err := c.complete(); err != nil {
		return err
	}
	switch item.kind {
	case packSegment:
		h, err := as[PackHead](item)
		if err != nil {
			return err
		}
		return c.begin(h)
	case packSnapshot:
		s, err := as[PackSnapshot](item)
		c.snap, c.chunk = s, 0
		return err
	case packEnd:
		e, err := as[PackEnd](item)
		if err == nil && (e.Last != c.last || e.Records != c.total || e.Chain != c.chain.last && c.total > 0) {
			err = errors.New("the end is that of another pack")
		}
		c.ended = true
		return err
	case packFile:
		return nil
	}
	return fmt.Errorf("an item of kind %d: %w", item.kind, ErrUnknownKind)
}

// begin takes the head of a segment.
func (c *packCheck) begin(h PackHead) error {
	begin, err := h.begin()
	if err != nil {
		return err
	}
	if c.segments == 0 {
		c.total = 0
	}
	switch {
	case c.last == 0:
		c.chain, c.first = begin, h.First
	case h.Log != c.head.Log:
		return fmt.Errorf("segment %d is of the log %v, what comes before of %v", h.Segment, h.Log, c.head.Log)
	case h.First != c.last+1 || h.Segment != c.head.Segment+1:
		return fmt.Errorf("segment %d begins at event %d and follows segment %d, which ends at %d", h.Segment, h.First, c.head.Segment, c.last)
	case !bytes.Equal(h.Begin, c.chain.header(h.First)):
		return &CorruptError{Seq: h.First, Err: fmt.Errorf("segment %d does not follow what is before it", h.Segment)}
	}
	c.head, c.records, c.bytes = &h, 0, 0
	c.segments++
	return nil
}

// record takes a record of the segment.
func (c *packCheck) record(raw []byte) error {
	if c.head == nil || c.records == c.head.Records {
		return errors.New("a record that no head of a segment announces")
	}
	v, err := parseEnvelope(raw)
	if err == nil {
		err = c.chain.link(&v, raw, c.chain.next())
	}
	if err == nil {
		err = c.chain.grow(&v)
	}
	if err != nil {
		return err
	}
	c.records++
	c.total++
	c.bytes += uint64(len(raw))
	c.size += uint64(len(raw))
	c.last, c.wall = v.last(), v.moment.Wall
	return nil
}

// complete checks that the records of the segment are all there.
func (c *packCheck) complete() error {
	h := c.head
	if h != nil && (c.records != h.Records || c.bytes != h.Bytes || c.last != h.Last || c.chain.last != h.Chain || c.chain.tree.root() != h.Root || c.wall != h.Wall) {
		return &CorruptError{Seq: c.last, Err: fmt.Errorf("the records of segment %d are not those that its head names", h.Segment)}
	}
	return nil
}

// done checks at the end of a pack that it was not cut off.
func (c *packCheck) done() error {
	if c.ended {
		return nil
	}
	if c.segments != 1 {
		return errors.New("it has no end: it was cut off")
	}
	return c.complete()
}

// VerifyPack checks the records of a pack as [Verify] does.
func VerifyPack(src io.Reader) (Report, error) {
	c, _, err := copyPack(io.Discard, src)
	return Report{Records: c.total, Events: uint64(c.last-c.first) + min(1, c.total), Bytes: c.size, Last: c.last, Chain: c.chain.last, Root: c.chain.tree.root()}, err
}

// CopyPack copies a pack and verifies it on the way.
func CopyPack(dst io.Writer, src io.Reader) (PackEnd, error) {
	_, end, err := copyPack(dst, src)
	return end, err
}

func copyPack(dst io.Writer, src io.Reader) (c packCheck, end PackEnd, err error) {
	in, out := newPackReader(src), newPackWriter(dst)
	for {
		item, err := in.next()
		if err == io.EOF { //nolint:errorlint // next's own, for the end
			break
		}
		if err == nil {
			err = c.item(item)
		}
		if err != nil {
			return c, end, err
		}
		switch {
		case item.record != nil:
			err = out.record(item.record)
		default:
			err = out.raw(item.kind, item.body)
		}
		if err != nil {
			return c, end, err
		}
		if item.kind == packEnd {
			if end, err = as[PackEnd](item); err != nil {
				return c, end, err
			}
		}
	}
	if !c.ended {
		return c, end, errors.New("it has no end: it was cut off")
	}
	return c, end, out.w.Flush()
}

// PackFiles lists what Import is given as args: a pack, or a directory with archives.
func PackFiles(args []string) (files []string, err error) {
	for _, arg := range args {
		info, err := os.Stat(arg)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			files = append(files, arg)
			continue
		}
		names, err := OpenArchives(arg).names()
		if err != nil {
			return nil, err
		}
		if len(names) == 0 {
			return nil, fmt.Errorf("there is no archive in %s", arg)
		}
		for _, name := range names {
			files = append(files, filepath.Join(arg, name))
		}
	}
	return slices.Clip(files), nil
}
