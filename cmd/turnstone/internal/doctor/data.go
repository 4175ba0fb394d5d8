package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"turnstone/store"
)

// slowSync is how long an fdatasync may take on a disk that is good for a log.
const slowSync = time.Millisecond

// checkDisk is about the disk of the log.
func checkDisk(f *Facts) []Row {
	const room, retention, kind, sync = "disk-room", "disk-retention", "disk-type", "disk-sync"
	if f.Disk.Err != nil {
		return []Row{skip(room, f.Disk.Err)}
	}
	d := f.Disk.Value
	soft, hard := store.Limits(d.Total)
	rows := []Row{ok(room, "%s free of %s", size(d.Free), size(d.Total))}
	const remedy = "make room, or move --data: daemon and log take it up without a restart"
	switch {
	case d.Free < hard:
		rows[0] = rows[0].as(Fail, "below %s only what ends is recorded: "+remedy, size(hard))
	case d.Free < soft:
		rows[0] = rows[0].as(Fail, "below %s new allocations are refused: "+remedy, size(soft))
	case d.Free < 4*soft:
		rows[0] = rows[0].as(Warn, "below %s new allocations will be refused: "+remedy, size(soft))
	}
	if f.Retain > 0 && rows[0].Result == OK {
		r := ok(retention, "the log may grow from %s to %s", size(d.Log), size(f.Retain))
		if f.Retain-d.Log > d.Free-soft {
			r.Seen += fmt.Sprintf(", and with %s free new allocations are refused before that", size(d.Free))
			r = r.as(Warn, "make room, or log.retain-size smaller: what is in the log goes earlier then")
		}
		rows = append(rows, r)
	}
	switch d.Type {
	case "tmpfs", "ramfs":
		rows = append(rows, ok(kind, "%s", d.Type).as(Warn, "a log in memory survives the daemon and not the host: put --data on a disk"))
	case "overlay":
		rows = append(rows, ok(kind, "%s", d.Type).as(Warn, "the log goes with the container: mount a volume for --data"))
	case "nfs", "cifs", "fuse":
		rows = append(rows, ok(kind, "%s", d.Type).as(Warn, "every answer waits for the network and its server: put --data on a local disk"))
	default:
		rows = append(rows, ok(kind, "%s", d.Type))
	}
	return append(rows, checkSync(sync, d))
}

func checkSync(check string, d Disk) Row {
	if d.SyncErr != nil {
		return skip(check, d.SyncErr)
	}
	r := ok(check, "an fdatasync takes %v", d.Sync.Round(time.Microsecond))
	if d.Sync > slowSync {
		return r.as(Warn, "an answer waits for two of them: use a disk that takes well under a millisecond")
	}
	return r
}

// checkAccess is about who may use the data directory.
func checkAccess(f *Facts) []Row {
	const check = "data-access"
	a := f.DataOwner
	switch {
	case errors.Is(a.Err, errNothing):
		return []Row{ok(check, "%s is not there yet: the daemon makes it, for itself alone", f.Data)}
	case a.Err != nil:
		return []Row{skip(check, a.Err)}
	case errors.Is(a.Value.Error, fs.ErrPermission):
		return []Row{ok(check, "%s belongs to user %d, and user %d may not write it", f.Data, a.Value.UID, a.Value.User).
			as(Fail, "run as user %d, or chown -R %d %s", a.Value.UID, a.Value.User, f.Data)}
	case a.Value.Error != nil:
		return []Row{ok(check, "%s: %v", f.Data, a.Value.Error).as(Fail, "name a directory that can be written with --data")}
	case len(a.Value.Strangers) > 0:
		return []Row{ok(check, "%s belongs to user %d, and in it %s to others", f.Data, a.Value.UID, strings.Join(a.Value.Strangers, ", ")).
			as(Warn, "chown -R %d %s: a daemon that was once run as another user leaves such files, and the next one may not open them", a.Value.UID, f.Data)}
	}
	return []Row{ok(check, "%s can be written", f.Data)}
}

// checkPrivate is about who may read what holds secrets.
func checkPrivate(f *Facts) (rows []Row) {
	const check = "data-private"
	for _, o := range f.Open {
		if o.To == "" {
			rows = append(rows, ok(check, "%s is open to everybody", o.Path).as(Fail, "name a directory of its own with --data"))
			continue
		}
		rows = append(rows, ok(check, "%s has mode %s: other users may read it", o.Path, o.Mode).as(o.result(), "chmod %s= %s", o.To, o.Path))
	}
	if len(rows) == 0 {
		rows = []Row{ok(check, "nobody else can read what is in it, or a file with secrets")}
	}
	return rows
}

// result is how serious it is that o can be read: who has the nonce key passes every challenge.
func (o Open) result() Result {
	if strings.Contains(o.Path, "/keys/") {
		return Fail
	}
	return Warn
}
