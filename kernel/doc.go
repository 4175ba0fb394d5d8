// Package kernel keeps the kernel's relay equal to the log: it loads, pins, attaches and replaces the
// XDP program, derives from the log what its maps should hold, and writes the difference.
//
// Invariants:
//
//   - Desired is a pure function of the folded log and of what routes say. Actual is what the
//     maps hold. Only the difference is written, and from any contents, with any write failing, the
//     two converge.
//   - A record does not change while a key names it, but for its deadline: one aligned 64-bit store. A
//     slot is used again only after a grace period.
//   - To grant: record, then generation, then key. To revoke: generation zeroed, key deleted; the
//     revocation may then be answered; after a grace period the last usage is read and the slot is free.
//   - Nothing is granted that is not durable in the log.
//   - Links and maps are pinned: the death of this process changes nothing that is relayed.
//   - A program of somebody else is never replaced.
//
// One goroutine owns all of it; see [Datapath].
package kernel
