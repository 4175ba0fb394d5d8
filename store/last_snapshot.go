package store

// LastSnapshot is the newest finished snapshot, the zero one where there is none. It is not read, so it may be damaged.
func (l *Log) LastSnapshot() (Snapshot, error) {
	list, err := snapshotsIn(l)
	if err != nil || len(list) == 0 {
		return Snapshot{}, err
	}
	return list[len(list)-1], nil
}

// Snapshots lists the finished snapshots in order, none of which is read.
func (l *Log) Snapshots() ([]Snapshot, error) { return snapshotsIn(l) }
