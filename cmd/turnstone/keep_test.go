package main

import (
	"context"
	"path/filepath"

	"turnstone/internal/shape"
	"turnstone/internal/shape/calls"
	"turnstone/store"

	"github.com/rogpeppe/go-internal/testscript"
)

// shapedLog DIR [archive]: a log of many small segments, the older of which have left its file, to archives where that
// is said.
func shapedLog(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	const segment = 64 << 10
	r := store.Retention{Size: 8 * segment}
	if len(args) > 1 {
		r.Archive = filepath.Join(dir, store.ArchiveName)
	}
	_, err := shape.Write(context.Background(), dir, 8000, shape.Options{
		Options: calls.Options{Seed: 5, Allocations: 20}, Store: store.Options{SegmentSize: segment, Retention: r},
	})
	ts.Check(err)
}
