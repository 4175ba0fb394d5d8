package relay

import (
	"sync/atomic"

	"turnstone/turn"
)

// Drop says why a datagram was not relayed or not answered.
type Drop uint8

// Reasons for a drop.
const (
	DropMalformed    Drop = iota // neither ChannelData nor STUN that is meant for a server
	DropNoAllocation             // the client has none
	DropNoChannel                // the channel is not bound, or over
	DropNoPermission             // the peer has none, or it is over
	DropGuarded                  // an address of this host that no live allocation has
	DropTTL                      // the TTL or hop limit is used up
	DropMeter                    // over the allocation's cap
	DropMeterUser                // over its user's
	DropMeterTotal               // over that of all allocations
	DropSend                     // the kernel did not take it
	DropRateLimited              // an answer to somebody unauthenticated beyond the rate
	DropBusy                     // a request while the writer's queue was full
	DropUnsupported              // a Send indication with an attribute that is not supported
	DropBacklog                  // the client's stream does not take what peers send as fast as they send it
	DropMTU                      // not to be fragmented, and larger than the link takes
	DropDirectory                // a request that waited for a directory that did not answer
	DropAdrift                   // to a client that is gone, and may come back from elsewhere
	drops
)

var dropNames = [drops]string{"malformed", "no-allocation", "no-channel", "no-permission", "guarded", "ttl", "meter", "meter-user", "meter-total", "send", "rate-limited", "busy", "unsupported", "backlog", "mtu", "directory", "adrift"}

func (d Drop) String() string { return dropNames[d] }

// stats are what the server counts, each on its own.
type stats struct {
	toPeerPackets, toPeerBytes     atomic.Uint64
	toClientPackets, toClientBytes atomic.Uint64
	drops                          [drops]atomic.Uint64
	requests                       [16]atomic.Uint64      // by STUN method
	replies                        [16][600]atomic.Uint64 // by STUN method and code; 0 is success
	commits, events                atomic.Uint64
	recoveries                     atomic.Uint64
	appended, committed            latency
	streams                        [5]atomic.Int64 // by protocol, open now
	refusedStreams, cutOff         atomic.Uint64
}

// Outcome is what came of requests.
type Outcome struct {
	Method uint16 // of STUN
	Code   int    // of STUN, 0 for success
}

// Counters are what a server has done since it started.
type Counters struct {
	ToPeerPackets, ToPeerBytes     uint64
	ToClientPackets, ToClientBytes uint64
	Drops                          map[string]uint64
	Requests                       map[uint16]uint64 // by STUN method
	Replies                        map[Outcome]uint64
	Commits, Events, Recoveries    uint64
	Appended                       Latency                 // from the first decision of a record to its being durable
	Committed                      Latency                 // of that, what the log took
	Streams                        map[turn.Protocol]int64 // open now
	StreamsRefused                 uint64                  // for want of room, or after a failed handshake
	StreamsCutOff                  uint64                  // of clients that did not take their answers
}

// Counters reads the counters.
func (s *Server) Counters() Counters {
	c := Counters{
		ToPeerPackets: s.stats.toPeerPackets.Load(), ToPeerBytes: s.stats.toPeerBytes.Load(),
		ToClientPackets: s.stats.toClientPackets.Load(), ToClientBytes: s.stats.toClientBytes.Load(),
		Commits: s.stats.commits.Load(), Events: s.stats.events.Load(), Recoveries: s.stats.recoveries.Load(),
		Streams: map[turn.Protocol]int64{}, StreamsRefused: s.stats.refusedStreams.Load(), StreamsCutOff: s.stats.cutOff.Load(),
		Drops: map[string]uint64{}, Requests: map[uint16]uint64{}, Replies: map[Outcome]uint64{},
		Appended: s.stats.appended.read(), Committed: s.stats.committed.read(),
	}
	for _, p := range []turn.Protocol{turn.TCP, turn.TLS, turn.DTLS} {
		c.Streams[p] = s.stats.streams[p].Load()
	}
	for d := range drops {
		c.Drops[d.String()] = s.stats.drops[d].Load()
	}
	for m := range s.stats.requests {
		if n := s.stats.requests[m].Load(); n > 0 {
			c.Requests[uint16(m)] = n
		}
	}
	for m := range s.stats.replies {
		for code := range s.stats.replies[m] {
			if n := s.stats.replies[m][code].Load(); n > 0 {
				c.Replies[Outcome{uint16(m), code}] = n
			}
		}
	}
	return c
}

// Allocations is the number of allocations that are relayed for.
func (s *Server) Allocations() int { return int(s.flows.len.Load()) }

func (s *stats) drop(d Drop) { s.drops[d].Add(1) }

// toClient counts a datagram of n bytes to a client, here and in c.
func (s *stats) toClient(c *counters, n int) {
	c.toClient(n)
	s.toClientPackets.Add(1)
	s.toClientBytes.Add(uint64(n))
}
