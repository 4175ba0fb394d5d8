// Package store keeps the log: records of events, appended durably to a bbolt
// file, replayed, followed, verified and summed up in snapshots.
//
// Invariants:
//
//   - A record is durable when Append returns nil. After any error it may be on disk
//     or not, and only Recover, which asks the disk, goes on.
//   - Sequences have no gaps. Each record carries a CRC-32C of itself, the hash of the record
//     before it, and the head of an RFC 6962 tree whose leaves are all events so far.
//   - A segment is a bucket of at most 16 MiB of pages. Only the last one grows.
//     Rows are never deleted; a segment goes whole.
//   - A snapshot is the fold of sealed segments, never of live state: snapshot plus
//     tail equals full replay.
//   - A reader never holds a transaction for longer than one chunk takes.
//   - Damage in the file is an error that says where, not a crash.
//
// A directory holds log.db, lock (whose flock keeps a second daemon out), keys/ (0600,
// never in the log) and ballast (released when the disk is full, so that
// what ends can still be recorded).
package store
