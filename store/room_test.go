package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"turnstone/internal/testenv"
	"turnstone/turn"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// smallDisk is a directory with a file system of size bytes of its own.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	testenv.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		testenv.Skip(t, "it needs to mount a tmpfs: "+err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// leave fills the disk of dir up to n bytes.
func leave(t *testing.T, dir string, n int64) {
	t.Helper()
	file := filepath.Join(dir, "filler")
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	must(t, unix.Statfs(dir, &fs))
	write(t, file, bytes.Repeat([]byte{1}, int(int64(fs.Bavail)*fs.Bsize-n)))
}

// wantRoom waits until l says that there is so much room.
func wantRoom(t *testing.T, l *Log, want turn.Room) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(10 * time.Second)
	for l.Room() != want {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("the room is %v with %d bytes, want %v", l.Room(), l.room.bytes, want)
		}
	}
}

func wantBallast(t *testing.T, dir string, want int64) {
	t.Helper()
	info, err := os.Stat(filepath.Join(dir, ballastName))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if got := err == nil; got != (want > 0) || got && info.Size() != want {
		t.Errorf("there is a ballast: %t, want one of %d bytes", got, want)
	}
}

func TestFullDiskTakesEndsAndRecovers(t *testing.T) {
	const size = 64 << 20
	dir := smallDisk(t, size)
	l := openTest(t, dir, Options{})
	s := l.State()
	fill(t, l, s, 100, 8)
	wantRoom(t, l, turn.RoomFine)
	wantBallast(t, dir, size/64)

	leave(t, dir, size/8-1<<20)
	wantRoom(t, l, turn.RoomLow)
	wantBallast(t, dir, size/64)
	fill(t, l, s, 1, 8)

	leave(t, dir, 0)
	wantRoom(t, l, turn.RoomNone)
	wantBallast(t, dir, 0)
	for a := range s.Clone().Allocations() {
		appendTest(t, l, s, at(1<<20), turn.AllocationExpired{Allocation: a.ID})
	}

	fillToTheLastByte(t, l, s, dir)

	must(t, os.Remove(filepath.Join(dir, "filler")))
	wantRoom(t, l, turn.RoomFine)
	wantBallast(t, dir, size/64)
	must(t, l.Close())
	verifyFile(t, dir)
	again := openTest(t, dir, Options{})
	if encoded(t, again.State()) != encoded(t, s) {
		t.Error("the state after a full disk differs from the live one")
	}
}

// fillToTheLastByte appends until the disk takes no more, and recovers: on the full disk, and
// when there is room again.
func fillToTheLastByte(t *testing.T, l *Log, s *turn.State, dir string) {
	t.Helper()
	before := encoded(t, s)
	file, err := os.Create(filepath.Join(dir, "rest"))
	must(t, err)
	defer file.Close()
	for {
		_, full := file.Write(make([]byte, 4096))
		if full != nil {
			break
		}
	}
	var big []turn.Event
	for range 100 {
		big = append(big, turn.ServerStopped{Signal: string(bytes.Repeat([]byte{'x'}, 1<<16))})
	}
	failed := l.Append(turn.Record{First: s.Seq() + 1, Moment: at(1 << 20), Events: big})
	if !errors.Is(failed, unix.ENOSPC) {
		t.Fatalf("an append of megabytes to a full disk: %v, want %v", failed, unix.ENOSPC)
	}
	for _, room := range []string{"on the full disk", "with room again"} {
		got, err := l.Recover()
		if err != nil {
			t.Fatalf("recover %s: %v", room, err)
		}
		if encoded(t, got) != before {
			t.Errorf("recovered %s to another state, that of %d, want %d", room, got.Seq(), s.Seq())
		}
		must(t, file.Truncate(0))
	}
	appendTest(t, l, s, at(1<<20), turn.ServerStopped{Signal: "terminated"})
}

func TestFreePagesAreRoom(t *testing.T) {
	const size, free = 64 << 20, 12 << 20
	dir := smallDisk(t, size)
	l, err := Open(dir, Options{})
	must(t, err)
	fill(t, l, l.State(), 10, 8)
	must(t, l.Close())
	scratch := []byte("scratch")
	edit(t, dir, func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket(scratch)
		if err != nil {
			return err
		}
		return b.Put(scratch, make([]byte, free))
	})
	edit(t, dir, func(tx *bbolt.Tx) error { return tx.DeleteBucket(scratch) })
	leave(t, dir, 0)
	l = openTest(t, dir, Options{})
	s := l.State()
	if got := l.FreeBytes(); got < free {
		t.Fatalf("%d bytes of pages are free, want at least %d", got, free)
	}
	wantRoom(t, l, turn.RoomFine) // 12 MiB, and low is below 8 MiB
	for l.Room() == turn.RoomFine {
		fill(t, l, s, 20, 64)
	}
	if l.Room() != turn.RoomLow || l.FreeBytes() > size/8+2<<20 {
		t.Errorf("the room is %v with %d bytes of free pages, want it low from %d on", l.Room(), l.FreeBytes(), size/8)
	}
}
