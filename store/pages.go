package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// bbolt reads its pages through a map of the file and believes them: on a damaged one it panics,
// runs until the stack is full, or raises SIGBUS in goroutines of its own. So
// the pages are looked at here first, by reading, and bbolt sees only what holds together.

// Form of bbolt's pages, in the byte order of the host.
const (
	pageHead   = 16 // id 8, flags 2, count 2, overflow 4
	metaSize   = 64 // magic 4, version 4, page size 4, flags 4, root 16, freelist 8, high 8, txid 8, sum 8
	branchItem = 16 // offset 4, key size 4, page 8
	leafItem   = 16 // flags 4, offset 4, key size 4, value size 4
	bucketHead = 16 // root page 8, sequence 8

	branchPage, leafPage, metaPage, freelistPage = 1, 2, 4, 16

	boltMagic, boltVersion = 0xED0CDAED, 2

	maxDepth = 64
	noList   = 1<<64 - 1 // in place of a freelist's page, where there is none
)

var native = binary.NativeEndian

// boltMeta is a meta page: the roots of one version of the file.
type boltMeta struct {
	pageSize             int64
	root, freelist, high uint64
	txid                 uint64
}

// pageCheck walks the pages of a file.
type pageCheck struct {
	r io.ReaderAt
	boltMeta
	leaves bool     // read the pages of records too
	seen   []bool   // by page
	used   uint64   // how many were
	free   [][]byte // of the size of a page
}

// checkPages checks the structure of the bbolt file r of size bytes: meta pages, freelist, and
// buckets down to the branches, or all of it. Errors are about damage, or of r.
func checkPages(r io.ReaderAt, size int64, all bool) error {
	m, err := newestMeta(r, size)
	if err != nil {
		return err
	}
	if size < int64(m.high)*m.pageSize {
		return fmt.Errorf("the file has %d bytes of %d: it was cut off", size, int64(m.high)*m.pageSize)
	}
	p := pageCheck{r: r, boltMeta: m, leaves: all, seen: make([]bool, m.high), used: 2}
	p.seen[0], p.seen[1] = true, true
	if err := p.freelistPages(); err != nil {
		return err
	}
	if _, err := p.tree(m.root, maxDepth); err != nil {
		return err
	}
	if all && p.used != m.high {
		return fmt.Errorf("%d of %d pages are neither in use nor free", m.high-p.used, m.high)
	}
	return nil
}

// newestMeta is the valid meta page with the highest transaction.
func newestMeta(r io.ReaderAt, size int64) (best boltMeta, err error) {
	if size == 0 {
		return best, errors.New("the file is empty")
	}
	first, ok := metaAt(r, 0)
	if ok {
		best = first
	}
	for at := int64(1024); at <= 16<<20 && at < size; at *= 2 {
		if m, ok := metaAt(r, at); ok && m.pageSize == at && (best.pageSize == 0 || best.pageSize == at && m.txid > best.txid) {
			best = m
		}
	}
	if best.pageSize == 0 {
		return best, errors.New("neither meta page is valid")
	}
	if best.pageSize < 1024 || best.pageSize > 16<<20 || best.high < 4 || best.high > 1<<40 {
		return best, errors.New("the meta page makes no sense")
	}
	return best, nil
}

// metaAt reads the meta page at an offset of r, and says whether it is valid.
func metaAt(r io.ReaderAt, at int64) (m boltMeta, ok bool) {
	var b [pageHead + metaSize]byte
	if _, err := r.ReadAt(b[:], at); err != nil {
		return m, false
	}
	v := b[pageHead:]
	sum := fnv.New64a()
	sum.Write(v[:metaSize-8])
	if native.Uint32(v) != boltMagic || native.Uint32(v[4:]) != boltVersion || native.Uint64(v[56:]) != sum.Sum64() {
		return m, false
	}
	return boltMeta{
		pageSize: int64(native.Uint32(v[8:])), root: native.Uint64(v[16:]),
		freelist: native.Uint64(v[32:]), high: native.Uint64(v[40:]), txid: native.Uint64(v[48:]),
	}, true
}

// page is one page with its overflow.
type page struct {
	id    uint64
	flags uint16
	count int
	b     []byte // header and all
}

// load reads the page id and marks it as used.
func (p *pageCheck) load(id uint64) (g page, err error) {
	if id < 2 || id >= p.high {
		return g, fmt.Errorf("page %d is not one of the %d in use", id, p.high)
	}
	var b []byte
	if n := len(p.free); n > 0 {
		b, p.free = p.free[n-1], p.free[:n-1]
	} else {
		b = make([]byte, p.pageSize)
	}
	if err := p.read(b, id); err != nil {
		return g, err
	}
	g = page{id: id, flags: native.Uint16(b[8:]), count: int(native.Uint16(b[10:])), b: b}
	more := uint64(native.Uint32(b[12:]))
	if got := native.Uint64(b); got != id {
		return g, fmt.Errorf("page %d says that it is page %d", id, got)
	}
	if id+more >= p.high {
		return g, fmt.Errorf("page %d runs over the end", id)
	}
	for n := id; n <= id+more; n++ {
		if err := p.use(n); err != nil {
			return g, err
		}
	}
	if more > 0 {
		g.b = append(b, make([]byte, int64(more)*p.pageSize)...)
		err = p.read(g.b[p.pageSize:], id+1)
	}
	return g, err
}

func (p *pageCheck) read(b []byte, id uint64) error {
	if _, err := p.r.ReadAt(b, int64(id)*p.pageSize); err != nil {
		return fmt.Errorf("read page %d: %w", id, err)
	}
	return nil
}

// use marks the page id, which nothing else may use.
func (p *pageCheck) use(id uint64) error {
	if p.seen[id] {
		return fmt.Errorf("page %d is used twice", id)
	}
	p.seen[id] = true
	p.used++
	return nil
}

func (p *pageCheck) freelistPages() error {
	if p.freelist == noList {
		return errors.New("there is no freelist")
	}
	g, err := p.load(p.freelist)
	if err != nil {
		return fmt.Errorf("freelist: %w", err)
	}
	if g.flags != freelistPage {
		return fmt.Errorf("page %d is no freelist", g.id)
	}
	n, ids := uint64(g.count), g.b[pageHead:]
	if n == 0xffff {
		n, ids = native.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids)/8) {
		return fmt.Errorf("freelist: %d entries in %d bytes", n, len(ids))
	}
	for i := range n {
		id := native.Uint64(ids[8*i:])
		if id < 2 || id >= p.high {
			return fmt.Errorf("freelist: page %d is not one of the %d in use", id, p.high)
		}
		if err := p.use(id); err != nil {
			return fmt.Errorf("freelist: %w", err)
		}
	}
	return nil
}

// tree checks the page id and what hangs under it. It says whether that is one leaf, of records.
func (p *pageCheck) tree(id uint64, depth int) (records bool, err error) {
	if depth <= 0 {
		return false, fmt.Errorf("page %d lies too deep", id)
	}
	g, err := p.load(id)
	if err != nil {
		return false, err
	}
	defer func() { p.free = append(p.free, g.b[:p.pageSize]) }()
	switch g.flags {
	case branchPage:
		return false, p.branch(g, depth)
	case leafPage:
		buckets, err := p.leaf(g.id, g.b, g.count, depth)
		return buckets == 0, err
	}
	return false, fmt.Errorf("page %d has the flags %#x of no branch and no leaf", id, g.flags)
}

func (p *pageCheck) branch(g page, depth int) error {
	if g.count == 0 || pageHead+g.count*branchItem > len(g.b) {
		return fmt.Errorf("page %d: a branch with %d children", g.id, g.count)
	}
	var last []byte
	skip := false // all leaves lie equally deep
	for i := range g.count {
		at := pageHead + i*branchItem
		k, err := slice(g.b, at, native.Uint32(g.b[at:]), native.Uint32(g.b[at+4:]))
		if err != nil || i > 0 && bytes.Compare(last, k) >= 0 {
			return fmt.Errorf("page %d: child %d is out of order", g.id, i)
		}
		last = k
		child := native.Uint64(g.b[at+8:])
		if !skip {
			records, err := p.tree(child, depth-1)
			if err != nil {
				return err
			}
			skip = records && !p.leaves
			continue
		}
		if child < 2 || child >= p.high {
			return fmt.Errorf("page %d: child %d is page %d of %d", g.id, i, child, p.high)
		}
		if err := p.use(child); err != nil {
			return err
		}
	}
	return nil
}

// leaf checks the items of a leaf, b with its header, and the buckets among them, which it counts.
func (p *pageCheck) leaf(id uint64, b []byte, count, depth int) (buckets int, err error) {
	if pageHead+count*leafItem > len(b) {
		return 0, fmt.Errorf("page %d: a leaf with %d items", id, count)
	}
	var last []byte
	for i := range count {
		at := pageHead + i*leafItem
		offset, keys, values := native.Uint32(b[at+4:]), native.Uint32(b[at+8:]), native.Uint32(b[at+12:])
		k, err := slice(b, at, offset, keys)
		if err != nil || i > 0 && bytes.Compare(last, k) >= 0 {
			return 0, fmt.Errorf("page %d: item %d is out of order", id, i)
		}
		last = k
		v, err := slice(b, at+int(keys), offset, values)
		if err != nil {
			return 0, fmt.Errorf("page %d: item %d runs over the page", id, i)
		}
		if flags := native.Uint32(b[at:]); flags&1 == 0 {
			continue
		}
		buckets++
		if err := p.bucket(id, v, depth); err != nil {
			return 0, err
		}
	}
	return buckets, nil
}

// bucket checks a bucket by the value that stands for it in the leaf id.
func (p *pageCheck) bucket(id uint64, v []byte, depth int) error {
	if len(v) < bucketHead {
		return fmt.Errorf("page %d: a bucket of %d bytes", id, len(v))
	}
	if root := native.Uint64(v); root != 0 {
		_, err := p.tree(root, depth-1)
		return err
	}
	inline := v[bucketHead:]
	if len(inline) < pageHead || native.Uint16(inline[8:]) != leafPage || depth <= 0 {
		return fmt.Errorf("page %d: a bucket within it is no leaf", id)
	}
	_, err := p.leaf(id, inline, int(native.Uint16(inline[10:])), depth-1)
	return err
}

// slice is the n bytes at offset from position at of b.
func slice(b []byte, at int, offset, n uint32) ([]byte, error) {
	from := uint64(at) + uint64(offset)
	if from+uint64(n) > uint64(len(b)) {
		return nil, io.ErrUnexpectedEOF
	}
	return b[from : from+uint64(n)], nil
}
