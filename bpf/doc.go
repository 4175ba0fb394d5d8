// Package bpf is the XDP program in C, and what bpf2go makes of it: its types, and a loader of
// the object. The package imports nothing of ours; kernel gives the program its maps and its meaning.
//
// Invariants of the program:
//
//   - Parse all, look up once, then rewrite. Until the first write doubt is PASS; after
//     it failure is ABORTED. A mangled packet is never passed up.
//   - What is not UDP to a port of ours is never touched, nor looked up.
//   - A record is used only while its generation is the one the index names and its
//     key is the packet's. Index values may be recycled while they are read; records may not.
//   - Every exit moves exactly one verdict counter. The usage of a slot moves only when a
//     frame was handed to the driver.
//   - No deadline is passed by more than a tick.
//   - Nothing is evicted, allocated or waited for.
//
// `go generate ./bpf` needs clang, libbpf-dev and linux-libc-dev; what it makes is committed.
package bpf
