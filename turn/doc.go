// Package turn is the protocol core of a TURN relay (RFC 8656, RFC 8489): what
// a server knows, what it decides, and the events that say so.
//
// The package is pure. It does no I/O, reads no clock and draws no randomness:
// the caller passes a [Moment] and entropy in. Its invariants:
//
//   - [State] is the fold of the log. [Decide] and its siblings only read it;
//     [State.Apply] is the only thing that changes it, one [Event] at a time.
//   - The same records give the same State, and [State.Image] the same bytes,
//     on every run, after every prefix and on every architecture.
//   - All that happens in one [Record] happens at its Moment. Deadlines run on the
//     boot-time clock; a record of another boot rebases them.
//   - No request changes anything before it is authenticated: [Gate] is
//     stateless, and what it refuses costs neither memory nor an event.
//   - An address has one form everywhere: see [Canonical] and [Rules.Private].
//   - A refusal is a [Reply] with a STUN code, never a Go error.
//
// A request travels Gate.Admit → Decide (→ DecideBound, for a port) → Apply.
// The reply may leave once the events it rests on are durable, which is the
// caller's promise to keep.
package turn
