// Package relay is the server around the protocol core: sockets, the single
// writer, and the data path in userspace.
//
// The road of a request: a shard reads it and asks the [turn.Gate]; the writer, the one goroutine that
// owns the state, decides it and applies its events to the open record at once; the committer
// makes the record durable, publishes it to the flow table, has revocations
// withdrawn from the kernel, and only then lets the answers out. A reply that rests on
// an event, and every reply decided after it, leaves after the event is on disk.
//
// The road of payload: a shard reads a batch of datagrams, finds each one's flow
// and sends it on. Flows hold durable grants only, and their deadlines are checked for every
// datagram, so that an expiry nobody could record still ends the relaying. It
// takes no turn with the writer and allocates nothing.
//
// After a commit whose outcome is not known nobody is answered: the log is opened
// again, and sockets and flows are made to fit what it holds.
package relay
