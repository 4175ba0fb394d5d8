package turn

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/pion/stun/v3"
)

// connected has alice connect to peerA, who gets an id for it.
func connected(c *core) ConnectionID {
	c.mustDo(0, alice().over(TCP), stun.MethodAllocate, transport(transportTCP))
	c.mustDo(0, alice().over(TCP), stun.MethodConnect, peer(peerA))
	return c.state.ByFiveTuple(alice().over(TCP).FiveTuple).Connections[0].ID
}

func connection(id ConnectionID) stun.Setter {
	return set(stun.AttrConnectionID, binary.BigEndian.AppendUint32(nil, uint32(id))...)
}

// dataCaller is alice on another stream.
func dataCaller() *caller { return newCaller("alice", "wonderland", "198.51.100.1:6000").over(TCP) }

// rfc6062 is what the extension for TCP allocations requires of a server.
var rfc6062 = []requirement{
	{
		section: "5.1", text: "The protocol asked for is UDP or TCP.",
		by: "turn:allocate", tests: "turn:TestAllocate/SCTP",
		name: "SCTP", code: 442, ask: func(c *core) *answerSeen { return c.do(alice().over(TCP), allocateMethod, transport(132)) },
	},
	{
		section: "5.1", text: "Where TCP allocations are switched off, TCP is a protocol that is not served.",
		by: "turn:allocate", tests: "turn:TestAllocate/TCPForbidden",
		name: "SwitchedOff", code: 442, ask: under(func(r *Rules) { r.NoConnections = true }, func(c *core) *answerSeen {
			return c.do(alice().over(TCP), allocateMethod, transport(transportTCP))
		}),
	},
	{
		section: "5.1", text: "TCP is asked for over TCP or TLS.",
		by: "turn:Request.asksTCP", tests: "turn:TestAllocate/TCPOverUDP turn/relay:TestConnectErrors",
		name: "OverUDP", code: 400, ask: asked(allocateMethod, transport(transportTCP)),
	},
	{
		section: "5.1", text: "Neither is it over DTLS, which is datagrams.",
		by:   "turn:Request.asksTCP",
		name: "OverDTLS", code: 400, ask: func(c *core) *answerSeen { return c.do(alice().over(DTLS), allocateMethod, transport(transportTCP)) },
	},
	{
		section: "5.1", text: "With TCP there is no DONT-FRAGMENT.",
		by: "turn:Request.asksTCP", tests: "turn/relay:TestConnectErrors",
		name: "DontFragment", code: 400, ask: func(c *core) *answerSeen {
			return c.do(alice().over(TCP), allocateMethod, transport(transportTCP), set(stun.AttrDontFragment))
		},
	},
	{
		section: "5.1", text: "With TCP there is no EVEN-PORT.",
		by: "turn:Request.asksTCP", tests: "turn/relay:TestConnectErrors",
		name: "EvenPort", code: 400, ask: func(c *core) *answerSeen {
			return c.do(alice().over(TCP), allocateMethod, transport(transportTCP), evenPort(0x80))
		},
	},
	{
		section: "5.1", text: "With TCP there is no RESERVATION-TOKEN, in the request or its answer.",
		by: "turn:Request.asksTCP", tests: "turn/relay:TestConnectErrors",
		name: "ReservationToken", code: 400, ask: func(c *core) *answerSeen {
			return c.do(alice().over(TCP), allocateMethod, transport(transportTCP), token(ReservationToken{1}))
		},
	},
	{
		section: "5.1", text: "Send indications, ChannelData and ChannelBind are for UDP.",
		by: "turn:channelBind turn/relay:hand.sendIndication", tests: "turn/relay:TestConnectErrors",
		name: "ChannelBind", code: 403, ask: holdingTCP(stun.MethodChannelBind, channel(0x4000), peer(peerA)),
	},
	{
		section: "5.2", text: "A Connect without an allocation is a mismatch.",
		by: "turn:connect", tests: "turn/relay:TestConnectErrors",
		name: "NoAllocation", code: 437, ask: func(c *core) *answerSeen { return c.do(alice().over(TCP), stun.MethodConnect, peer(peerA)) },
	},
	{
		section: "5.2", text: "A Connect is of the user whose allocation it is (RFC 8656 section 5).",
		by:   "turn:Decide",
		name: "OtherUser", code: 441, ask: func(c *core) *answerSeen {
			c.mustDo(0, alice().over(TCP), allocateMethod, transport(transportTCP))
			return c.do(newCaller("bob", "builder", alice().Client.String()).over(TCP), stun.MethodConnect, peer(peerA))
		},
	},
	{
		section: "5.2", text: "A Connect on an allocation for UDP is forbidden.",
		by: "turn:connect", tests: "turn/relay:TestConnectErrors",
		name: "AllocationForUDP", code: 403, ask: holding(stun.MethodConnect, peer(peerA)),
	},
	{
		section: "5.2", text: "XOR-PEER-ADDRESS is there and whole.",
		by: "turn:connect", tests: "turn/relay:TestConnectErrors",
		name: "NoPeer", code: 400, ask: holdingTCP(stun.MethodConnect),
	},
	{
		section: "5.2", text: "The peer has a port.",
		by:   "turn:connect",
		name: "PortZero", code: 400, ask: holdingTCP(stun.MethodConnect, peer("203.0.113.5:0")),
	},
	{
		section: "5.2", text: "A malformed peer is none.",
		by:   "turn:connect turn:parseXOR",
		name: "MalformedPeer", code: 400, ask: holdingTCP(stun.MethodConnect, set(stun.AttrXORPeerAddress, 0, 1, 2)),
	},
	{
		section: "5.2", text: "A peer that is not allowed is forbidden.",
		by: "turn:peerCode turn:Rules.Guarded", tests: "turn/relay:TestConnectErrors",
		name: "Forbidden", code: 403, ask: holdingTCP(stun.MethodConnect, peer("10.0.0.1:80")),
	},
	{
		section: "5.2", text: "A port of this host that relays no connections is forbidden.",
		by: "turn:Rules.Guarded", tests: "turn/relay:TestConnectErrors",
		name: "OwnPort", code: 403, ask: holdingTCP(stun.MethodConnect, peer("192.0.2.1:22")),
	},
	{
		section: "5.2", text: "The peer is of a family that the allocation has an address of.",
		by: "turn:peerCode", tests: "turn/relay:TestConnectErrors",
		name: "OtherFamily", code: 443, ask: holdingTCP(stun.MethodConnect, peer(peerV6)),
	},
	{
		section: "5.2", text: "There is one connection with a peer, whether it waits, is bound or is being made.",
		by: "turn:connect turn:DecideDialled turn/relay:dials.begin", tests: "turn/relay:TestConnect",
		name: "Twice", code: 446, ask: func(c *core) *answerSeen {
			connected(c)
			return c.do(alice().over(TCP), stun.MethodConnect, peer(peerA))
		},
	},
	{
		section: "5.2", text: "A Connect to a peer that another is being made to is refused.",
		by:   "turn:DecideDialled turn/relay:dials.begin",
		name: "BeingMade", code: 446, ask: func(c *core) *answerSeen {
			c.dialled = DialTwice
			return holdingTCP(stun.MethodConnect, peer(peerA))(c)
		},
	},
	{
		section: "5.2", text: "The connection is made from the relayed transport address, within 30 seconds at least; failure is told.",
		by: "turn/relay:writer.dial turn/relay:dialTimeout", tests: "turn/relay:TestConnect turn/relay:TestConnectErrors",
		name: "Failed", code: 447, ask: func(c *core) *answerSeen {
			c.dialled = DialFailed
			return holdingTCP(stun.MethodConnect, peer(peerA))(c)
		},
	},
	{
		section: "5.2", text: "More connections than the limit are refused.",
		by:   "turn:connect turn:DecideDialled",
		name: "TooMany", code: 508, ask: under(func(r *Rules) { r.MaxChannels = 0 }, holdingTCP(stun.MethodConnect, peer(peerA))),
	},
	{
		section: "5.2", text: "Success has CONNECTION-ID, which no other connection has.",
		by: "turn:State.newConnection", tests: "turn/relay:TestConnect turn:TestLaws",
	},
	{
		section: "5.2", text: "What comes from the peer before the client binds the connection is kept for it.",
		by: "turn/relay:stream.pipe", tests: "turn/relay:TestConnect",
	},
	{
		section: "5.3", text: "A peer without a permission is hung up on at once, and the client learns nothing.",
		by: "turn:AcceptPeer turn/relay:Server.arrived", tests: "turn/relay:TestPeerConnects",
	},
	{
		section: "5.3", text: "A peer with a permission is told of by ConnectionAttempt, with CONNECTION-ID and XOR-PEER-ADDRESS, on the control connection.",
		by: "turn:AppendConnectionAttempt", tests: "turn/relay:TestPeerConnects turn/relay:TestTwoTCPAllocationsMeet test:TestPionClientRelaysConnections",
	},
	{
		section: "5.2, 5.3", text: "A connection that no client binds within 30 seconds is closed.",
		by: "turn:ConnectionLifetime turn:Allocation.overdue", tests: "turn:TestUnboundConnectionEnds",
	},
	{
		section: "5.4", text: "ConnectionBind comes over TCP or TLS.",
		by: "turn:connectionBind", tests: "turn/relay:TestConnectErrors",
		name: "OverUDP", code: 400, ask: func(c *core) *answerSeen {
			id := connected(c)
			return c.do(alice(), stun.MethodConnectionBind, connection(id))
		},
	},
	{
		section: "5.4", text: "ConnectionBind has CONNECTION-ID.",
		by: "turn:connectionBind", tests: "turn/relay:TestConnect",
		name: "NoConnectionID", code: 400, ask: func(c *core) *answerSeen {
			connected(c)
			return c.do(dataCaller(), stun.MethodConnectionBind)
		},
	},
	{
		section: "5.4", text: "It names a connection that waits.",
		by: "turn:connectionBind", tests: "turn/relay:TestConnect",
		name: "UnknownConnection", code: 400, ask: func(c *core) *answerSeen {
			id := connected(c)
			return c.do(dataCaller(), stun.MethodConnectionBind, connection(id+1))
		},
	},
	{
		section: "5.4", text: "A connection is bound once.",
		by: "turn:connectionBind", tests: "turn/relay:TestConnect",
		name: "BoundTwice", code: 400, ask: func(c *core) *answerSeen {
			id := connected(c)
			c.mustDo(0, dataCaller(), stun.MethodConnectionBind, connection(id))
			return c.do(newCaller("alice", "wonderland", "198.51.100.1:6001").over(TCP), stun.MethodConnectionBind, connection(id))
		},
	},
	{
		section: "5.4", text: "A connection is not bound when its time is over.",
		by:   "turn:connectionBind turn:Connection.waits",
		name: "Late", code: 400, ask: func(c *core) *answerSeen {
			id := connected(c)
			c.lazy = true
			c.wait(ConnectionLifetime)
			return c.do(dataCaller(), stun.MethodConnectionBind, connection(id))
		},
	},
	{
		section: "5.4", text: "The control connection is no data connection.",
		by: "turn:connectionBind", tests: "turn/relay:TestConnectErrors",
		name: "OnTheControlConnection", code: 400, ask: func(c *core) *answerSeen {
			id := connected(c)
			return c.do(alice().over(TCP), stun.MethodConnectionBind, connection(id))
		},
	},
	{
		section: "5.4", text: "ConnectionBind is of the user whose connection it is.",
		by: "turn:connectionBind", tests: "turn/relay:TestPeerConnects",
		name: "OtherUser", code: 441, ask: func(c *core) *answerSeen {
			id := connected(c)
			return c.do(bob().over(TCP), stun.MethodConnectionBind, connection(id))
		},
	},
	{
		section: "5.4", text: "What is behind the request on the stream is data, and goes to the peer as it is; so does what comes back.",
		by: "turn/relay:stream.binds turn/relay:stream.pipe", tests: "turn/relay:TestConnectionBindWithDataBehindIt turn/relay:TestPeerConnects turn/relay:TestSlowPeerHoldsUpItsClientAlone",
	},
	{
		section: "5.5", text: "Data connections end with their allocation.",
		by: "turn/relay:peerConns.close", tests: "turn/relay:TestPeerConnects turn/relay:TestConnectionsEndWithTheServer",
	},
	{
		section: "5.5", text: "When one of the two connections is closed, so is the other, once what was sent before has gone through.",
		by: "turn/relay:stream.copy", tests: "turn/relay:TestConnect turn/relay:TestSlowPeerHoldsUpItsClientAlone",
		but: "half of a connection can be closed: the other direction goes on.",
	},
}

// TestUnboundConnectionEnds lets the time of a connection go by, bound in it or not (RFC 6062 sections 5.2 and 5.3).
func TestUnboundConnectionEnds(t *testing.T) {
	for _, bound := range []bool{false, true} {
		c := newCore(t)
		id := connected(c)
		if bound {
			c.mustDo(0, dataCaller(), stun.MethodConnectionBind, connection(id))
		}
		if events := c.wait(ConnectionLifetime - time.Nanosecond); len(events) > 0 {
			t.Errorf("bound %t: got the events %v before its time", bound, describeAll(events))
		}
		var want []Event
		if !bound {
			want = []Event{PeerDisconnected{Allocation: 1, Connection: id, Reason: ReasonUnbound}}
		}
		if events := c.wait(time.Nanosecond); !slices.Equal(events, want) {
			t.Errorf("bound %t: got the events %v, want %v", bound, describeAll(events), describeAll(want))
		}
	}
}
