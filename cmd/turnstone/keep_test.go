package main

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/internal/shape"
	"turnstone/internal/shape/calls"
	"turnstone/internal/testenv"
	"turnstone/store"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// TestFullDisk runs what takes disks of its own.
func TestFullDisk(t *testing.T) {
	testenv.Root(t)
	testscript.Run(t, scripts("testdata/disk"))
}

// shapedLog DIR [archive|encrypted [another]]: a log of many small segments, the older of which have left its file, to archives where
// that is said; all are there where it is encrypted. It is the same log each time, unless it is to be another.
func shapedLog(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	const segment = 64 << 10
	o := store.Options{SegmentSize: segment, Retention: store.Retention{Size: 8 * segment}}
	switch {
	case len(args) > 1 && args[1] == "encrypted":
		o.Encrypt, o.Retention = true, store.Retention{}
	case len(args) > 1:
		o.Retention.Archive = filepath.Join(dir, store.ArchiveName)
	}
	seed := uint64(5)
	if len(args) > 2 {
		seed++
	}
	_, err := shape.Write(context.Background(), dir, 8000, shape.Options{
		Options: calls.Options{Seed: seed, Allocations: 20}, Store: o,
	})
	ts.Check(err)
}

// smallDisk DIR SIZE: a directory with a file system of its own, of so many bytes.
func smallDisk(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.Mkdir(dir, 0o700))
	ts.Check(unix.Mount("none", dir, "tmpfs", 0, "size="+args[1]))
	ts.Defer(func() { ts.Check(unix.Unmount(dir, unix.MNT_DETACH)) })
}

// awaitWaiting DIR PATTERN: that is what the next segment waits for that is to leave the daemon's log; ! awaitWaiting: not any more.
func awaitWaiting(ts *testscript.TestScript, neg bool, args []string) {
	client := admin.NewClient(filepath.Join(ts.MkAbs(args[0]), "admin.sock"))
	want := regexp.MustCompile(args[1])
	until(ts, "await "+args[1], func() bool {
		st, err := client.LogStat(context.Background())
		ts.Check(err)
		return want.MatchString(st.Kept.Waiting) != neg
	})
}

// flip FILE: a bit of the byte in its middle is another.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	b := []byte(ts.ReadFile(args[0]))
	b[len(b)/2] ^= 1
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o600))
}
