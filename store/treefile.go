package store

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"sort"

	"golang.org/x/mod/sumdb/tlog"
)

// The file DIR/tree holds the roots of all complete subtrees of 256 events, and of those above them, in the
// order of tlog's stored hashes: a leaf there is such a root here. With it, and the events around a leaf,
// a proof takes milliseconds. It is a projection of the log, and made again where it is missing, short or wrong.
const (
	treeName  = "tree"
	treeLevel = 8              // of the lowest nodes in the file
	treeBlock = 1 << treeLevel // events under one of them
)

// storage is a file, or memory in its place.
type storage interface {
	io.ReaderAt
	io.WriterAt
	Truncate(int64) error
}

// treeFile is the file. Where events were retired before it was made, what lies wholly before them is a hole of zeros:
// no proof of what is still there needs that.
type treeFile struct {
	at     storage
	blocks uint64 // complete ones whose nodes are there
}

// openTreeFile opens the file beside a log, which is made if it is not there.
func openTreeFile(dir string) (*treeFile, io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(dir, treeName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return newTreeFile(f, info.Size()), f, nil
}

// readTreeFile is a copy in memory of the file beside a log, empty where there is none.
func readTreeFile(dir string) *treeFile {
	b, _ := os.ReadFile(filepath.Join(dir, treeName)) // it can be done without
	m := memory(b)
	return newTreeFile(&m, int64(len(b)))
}

func newTreeFile(at storage, size int64) *treeFile {
	count := size / tlog.HashSize
	return &treeFile{at: at, blocks: uint64(sort.Search(int(count)+1, func(n int) bool { return tlog.StoredHashCount(int64(n)) > count }) - 1)}
}

// hash is the root of the n-th subtree of 1<<level events, level treeLevel at least.
func (t *treeFile) hash(level int, n int64) (h Hash, ok bool) {
	_, err := t.at.ReadAt(h[:], tlog.StoredHashIndex(level-treeLevel, n)*tlog.HashSize)
	return h, err == nil && h != Hash{}
}

// cut forgets the blocks from n on.
func (t *treeFile) cut(n uint64) error {
	t.blocks = min(t.blocks, n)
	return t.at.Truncate(tlog.StoredHashCount(int64(t.blocks)) * tlog.HashSize)
}

// reset forgets everything, and begins where base stands.
func (t *treeFile) reset(base *tree) error {
	if err := t.cut(0); err != nil {
		return err
	}
	for _, s := range base.subtrees() {
		if s.level < treeLevel {
			break
		}
		if _, err := t.at.WriteAt(s.root[:], tlog.StoredHashIndex(s.level-treeLevel, s.n)*tlog.HashSize); err != nil {
			return err
		}
	}
	t.blocks = base.size / treeBlock
	return t.at.Truncate(tlog.StoredHashCount(int64(t.blocks)) * tlog.HashSize)
}

// errStale says that the file is not of this log, or damaged.
var errStale = errors.New("the tree file does not fit the log")

// add appends the root of the next block, and the nodes that it completes.
func (t *treeFile) add(root Hash) error {
	all, err := tlog.StoredHashesForRecordHash(int64(t.blocks), tlog.Hash(root), tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, at := range indexes {
			level, n := tlog.SplitStoredHashIndex(at)
			h, ok := t.hash(level+treeLevel, n)
			if !ok {
				return nil, errStale
			}
			out[i] = tlog.Hash(h)
		}
		return out, nil
	}))
	if err != nil {
		return err
	}
	var b []byte
	for _, h := range all {
		b = append(b, h[:]...)
	}
	if _, err := t.at.WriteAt(b, tlog.StoredHashCount(int64(t.blocks))*tlog.HashSize); err != nil {
		return err
	}
	t.blocks++
	return nil
}

// memory is storage in memory.
type memory []byte

// ReadAt is that of io.ReaderAt.
func (m *memory) ReadAt(b []byte, at int64) (int, error) {
	if at >= int64(len(*m)) {
		return 0, io.EOF
	}
	n := copy(b, (*m)[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt is that of io.WriterAt.
func (m *memory) WriteAt(b []byte, at int64) (int, error) {
	if end := at + int64(len(b)); end > int64(len(*m)) {
		*m = append(*m, make([]byte, end-int64(len(*m)))...)
	}
	return copy((*m)[at:], b), nil
}

// Truncate is that of os.File.
func (m *memory) Truncate(size int64) error {
	if size > int64(len(*m)) {
		*m = append(*m, make([]byte, size-int64(len(*m)))...)
	}
	*m = (*m)[:size]
	return nil
}
