package store

import (
	"math"
	"net/netip"

	"turnstone/turn"
)

// The library decodes an event in 1 to 3.5 µs. These are the kinds a busy
// relay writes all day, in the same bytes, by hand; what they do not recognize goes to the library,
// which is also their oracle in the tests.

// encodeHot appends the body of e, if its kind is a hot one and its addresses have no zones.
func encodeHot(dst []byte, e turn.Event) ([]byte, bool) {
	if zoned(e) {
		return nil, false
	}
	switch e := e.(type) {
	case turn.AllocationCreated:
		return encodeCreated(dst, e), true
	case turn.AllocationRefreshed:
		dst = encodeGrant(dst, 3, e.Allocation, e.Tx)
		return appendHead(append(dst, 3), majorUint, uint64(e.Lifetime)), true
	case turn.AllocationDeleted:
		dst = encodeGrant(dst, 3, e.Allocation, e.Tx)
		return appendHead(append(dst, 3), majorUint, uint64(e.Reason)), true
	case turn.AllocationExpired:
		dst = appendHead(dst, majorMap, 1)
		return appendHead(append(dst, 1), majorUint, uint64(e.Allocation)), true
	case turn.PermissionInstalled:
		dst = encodeGrant(dst, 3, e.Allocation, e.Tx)
		return appendAddr(append(dst, 3), e.Peer), true
	case turn.PermissionExpired:
		dst = appendHead(dst, majorMap, 2)
		dst = appendHead(append(dst, 1), majorUint, uint64(e.Allocation))
		return appendAddr(append(dst, 2), e.Peer), true
	case turn.ChannelBound:
		dst = encodeGrant(dst, 4, e.Allocation, e.Tx)
		dst = appendHead(append(dst, 3), majorUint, uint64(e.Channel))
		return appendAddrPort(append(dst, 4), e.Peer), true
	case turn.ChannelExpired:
		dst = appendHead(dst, majorMap, 2)
		dst = appendHead(append(dst, 1), majorUint, uint64(e.Allocation))
		return appendHead(append(dst, 2), majorUint, uint64(e.Channel)), true
	case turn.UsageRecorded:
		return encodeUsage(dst, e), true
	}
	return nil, false
}

// zoned says whether an address of e has a zone, which no canonical one has.
func zoned(e turn.Event) bool {
	switch e := e.(type) {
	case turn.AllocationCreated:
		for _, r := range e.Relayed {
			if r.Addr().Zone() != "" {
				return true
			}
		}
		return e.FiveTuple.Client.Addr().Zone() != "" || e.FiveTuple.Server.Addr().Zone() != ""
	case turn.PermissionInstalled:
		return e.Peer.Zone() != ""
	case turn.PermissionExpired:
		return e.Peer.Zone() != ""
	case turn.ChannelBound:
		return e.Peer.Addr().Zone() != ""
	case turn.UsageRecorded:
		return e.Peer.Addr().Zone() != ""
	}
	return false
}

// encodeGrant begins a map of n pairs with the allocation and the transaction.
func encodeGrant(dst []byte, n uint64, id turn.AllocationID, tx turn.TransactionID) []byte {
	dst = appendHead(dst, majorMap, n)
	dst = appendHead(append(dst, 1), majorUint, uint64(id))
	return appendBytes(append(dst, 2), tx[:])
}

func encodeCreated(dst []byte, e turn.AllocationCreated) []byte {
	dst = encodeGrant(dst, 8, e.Allocation, e.Tx)
	dst = appendHead(append(dst, 3), majorMap, 3)
	dst = appendAddrPort(append(dst, 1), e.FiveTuple.Client)
	dst = appendAddrPort(append(dst, 2), e.FiveTuple.Server)
	dst = appendHead(append(dst, 3), majorUint, uint64(e.FiveTuple.Protocol))
	dst = append(dst, 4)
	if e.Relayed == nil {
		dst = append(dst, null)
	} else {
		dst = appendHead(dst, majorArray, uint64(len(e.Relayed)))
	}
	for _, r := range e.Relayed {
		dst = appendAddrPort(dst, r)
	}
	dst = appendHead(append(dst, 5), majorUint, uint64(e.Transport))
	dst = appendText(append(dst, 6), e.Username)
	dst = appendText(append(dst, 7), e.Realm)
	return appendHead(append(dst, 8), majorUint, uint64(e.Lifetime))
}

func encodeUsage(dst []byte, e turn.UsageRecorded) []byte {
	dst = appendHead(dst, majorMap, 6)
	dst = appendHead(append(dst, 1), majorUint, uint64(e.Allocation))
	dst = appendHead(append(dst, 2), majorUint, uint64(e.Channel))
	dst = appendAddrPort(append(dst, 3), e.Peer)
	dst = appendHead(append(dst, 4), majorUint, uint64(e.Path))
	for key, count := range []turn.Count{e.ToPeer, e.ToClient} {
		dst = appendHead(append(dst, byte(5+key)), majorMap, 2)
		dst = appendHead(append(dst, 1), majorUint, count.Packets)
		dst = appendHead(append(dst, 2), majorUint, count.Bytes)
	}
	return dst
}

// decodeHot decodes the body of a hot kind. False leaves it to the library.
func decodeHot(k turn.Kind, body []byte, names *names) (turn.Event, bool) {
	c := cursor{b: body, names: names}
	var e turn.Event
	switch k {
	case turn.KindAllocationCreated:
		e = c.created()
	case turn.KindAllocationRefreshed:
		id, tx := c.grant(3)
		e = turn.AllocationRefreshed{Allocation: id, Tx: tx, Lifetime: uint32(c.field(3, math.MaxUint32))}
	case turn.KindAllocationDeleted:
		id, tx := c.grant(3)
		e = turn.AllocationDeleted{Allocation: id, Tx: tx, Reason: turn.Reason(c.field(3, math.MaxUint8))}
	case turn.KindAllocationExpired:
		e = turn.AllocationExpired{Allocation: c.allocation(1)}
	case turn.KindPermissionInstalled:
		id, tx := c.grant(3)
		c.key(3)
		e = turn.PermissionInstalled{Allocation: id, Tx: tx, Peer: c.addr()}
	case turn.KindPermissionExpired:
		id := c.allocation(2)
		c.key(2)
		e = turn.PermissionExpired{Allocation: id, Peer: c.addr()}
	case turn.KindChannelBound:
		id, tx := c.grant(4)
		n := turn.ChannelNumber(c.field(3, math.MaxUint16))
		c.key(4)
		e = turn.ChannelBound{Allocation: id, Tx: tx, Channel: n, Peer: c.addrPort()}
	case turn.KindChannelExpired:
		id := c.allocation(2)
		e = turn.ChannelExpired{Allocation: id, Channel: turn.ChannelNumber(c.field(2, math.MaxUint16))}
	case turn.KindUsageRecorded:
		e = c.usage()
	default:
		return nil, false
	}
	return e, c.err == nil && len(c.b) == 0
}

// allocation begins a map of n pairs, the first of which is the allocation.
func (c *cursor) allocation(n uint64) turn.AllocationID {
	c.fields(n)
	return turn.AllocationID(c.field(1, math.MaxUint64))
}

func (c *cursor) grant(n uint64) (id turn.AllocationID, tx turn.TransactionID) {
	id = c.allocation(n)
	c.key(2)
	c.fixed(tx[:])
	return id, tx
}

func (c *cursor) created() turn.AllocationCreated {
	var e turn.AllocationCreated
	e.Allocation, e.Tx = c.grant(8)
	c.key(3)
	e.FiveTuple = c.fiveTuple()
	c.key(4)
	n := c.head(majorArray)
	if n > 2 {
		c.fail()
		return e
	}
	e.Relayed = make([]netip.AddrPort, n)
	for i := range e.Relayed {
		e.Relayed[i] = c.addrPort()
	}
	e.Transport = uint8(c.field(5, math.MaxUint8))
	c.key(6)
	e.Username = c.text()
	c.key(7)
	e.Realm = c.text()
	e.Lifetime = uint32(c.field(8, math.MaxUint32))
	return e
}

func (c *cursor) fiveTuple() (t turn.FiveTuple) {
	c.fields(3)
	c.key(1)
	t.Client = c.optionalAddrPort()
	c.key(2)
	t.Server = c.optionalAddrPort()
	t.Protocol = turn.Protocol(c.field(3, math.MaxUint8))
	return t
}

func (c *cursor) usage() turn.UsageRecorded {
	e := turn.UsageRecorded{Allocation: c.allocation(6), Channel: turn.ChannelNumber(c.field(2, math.MaxUint16))}
	c.key(3)
	e.Peer = c.optionalAddrPort()
	e.Path = turn.Path(c.field(4, math.MaxUint8))
	e.ToPeer, e.ToClient = c.count(5), c.count(6)
	return e
}

// count reads the map key n and the count that follows.
func (c *cursor) count(n uint64) turn.Count {
	c.key(n)
	c.fields(2)
	return turn.Count{Packets: c.field(1, math.MaxUint64), Bytes: c.field(2, math.MaxUint64)}
}
