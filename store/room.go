package store

import (
	"cmp"
	"os"
	"path/filepath"
	"sync"
	"time"

	"turnstone/turn"

	"golang.org/x/sys/unix"
)

// room knows how much the disk still takes: the free space of the file system
// and the free pages of the file. At the hard limit it gives the ballast up, so that what
// ends can still be recorded.
type room struct {
	dir                 string
	soft, hard, ballast int64

	mu      sync.Mutex
	checked time.Time
	level   turn.Room
	bytes   int64
	holds   bool // the ballast is there
}

// roomCheck is for how long an answer is good.
const roomCheck = 250 * time.Millisecond

func newRoom(dir string, o Options) *room {
	r := &room{dir: dir, soft: o.SoftLimit, hard: o.HardLimit, ballast: o.BallastSize}
	var fs unix.Statfs_t
	total := int64(1) << 62
	if unix.Statfs(dir, &fs) == nil {
		total = int64(fs.Blocks) * fs.Bsize
	}
	soft, hard := Limits(total)
	r.soft, r.hard = cmp.Or(r.soft, soft), cmp.Or(r.hard, hard)
	r.ballast = cmp.Or(r.ballast, min(8<<20, total/64))
	_, err := os.Stat(r.file())
	r.holds = err == nil
	return r
}

// Limits are the room, in bytes, below which a log on a disk of total bytes takes no new allocations, and below
// which it takes only what ends, where Options say nothing else.
func Limits(total int64) (soft, hard int64) { return min(64<<20, total/8), min(16<<20, total/32) }

func (r *room) file() string { return filepath.Join(r.dir, ballastName) }

// look measures, with freePages bytes of free pages in the file.
func (r *room) look(freePages int64, now time.Time) turn.Room {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.checked) < roomCheck {
		return r.level
	}
	r.checked = now
	var fs unix.Statfs_t
	if unix.Statfs(r.dir, &fs) != nil {
		return r.level
	}
	r.bytes = int64(fs.Bavail)*fs.Bsize + freePages
	if !r.holds {
		r.bytes -= r.ballast // what is to be given back first
	}
	switch {
	case r.bytes < r.hard:
		r.level = turn.RoomNone
		r.release()
	case r.bytes < r.soft:
		r.level = turn.RoomLow
	default:
		r.level = turn.RoomFine
		r.fill()
	}
	return r.level
}

func (r *room) release() {
	if r.holds && os.Remove(r.file()) == nil {
		r.holds = false
	}
}

// fill makes the ballast. Where that fails there is none, and Room counts it as missing.
func (r *room) fill() {
	if r.holds {
		return
	}
	f, err := os.OpenFile(r.file(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if unix.Fallocate(int(f.Fd()), 0, 0, r.ballast) != nil {
		_ = os.Remove(r.file())
		return
	}
	r.holds = true
}

// Room says how much the disk still takes. It is cheap: the answer is up to 250 ms old.
func (l *Log) Room() turn.Room { return l.room.look(l.free.Load(), time.Now()) }

// FreeBytes is the size of the free pages inside the file, which appends use first.
func (l *Log) FreeBytes() int64 { return l.free.Load() }
