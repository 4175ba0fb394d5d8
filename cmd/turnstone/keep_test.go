package main

import (
	"context"
	"os"
	"path/filepath"

	"turnstone/internal/shape"
	"turnstone/internal/shape/calls"
	"turnstone/store"

	"github.com/rogpeppe/go-internal/testscript"
)

// shapedLog DIR [archive [another]]: a log of many small segments, the older of which have left its file, to archives where that
// is said. It is the same log each time, unless it is to be another.
func shapedLog(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	const segment = 64 << 10
	r := store.Retention{Size: 8 * segment}
	if len(args) > 1 {
		r.Archive = filepath.Join(dir, store.ArchiveName)
	}
	seed := uint64(5)
	if len(args) > 2 {
		seed++
	}
	_, err := shape.Write(context.Background(), dir, 8000, shape.Options{
		Options: calls.Options{Seed: seed, Allocations: 20}, Store: store.Options{SegmentSize: segment, Retention: r},
	})
	ts.Check(err)
}

// flip FILE: a bit of the byte in its middle is another.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	b := []byte(ts.ReadFile(args[0]))
	b[len(b)/2] ^= 1
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}
