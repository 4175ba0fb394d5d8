package store

import (
	"fmt"

	"turnstone/migrations"
	"turnstone/turn"

	"github.com/fxamacker/cbor/v2"
)

// An event is stored as the CBOR array [kind, body], body a map with integer keys.

var (
	encoding = func() cbor.EncMode {
		m, err := cbor.CoreDetEncOptions().EncMode()
		if err != nil {
			panic(err)
		}
		return m
	}()
	decoding = func() cbor.DecMode {
		m, err := cbor.DecOptions{
			DupMapKey:         cbor.DupMapKeyEnforcedAPF,
			IndefLength:       cbor.IndefLengthForbidden,
			TagsMd:            cbor.TagsForbidden,
			ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
			MaxArrayElements:  1 << 24,
		}.DecMode()
		if err != nil {
			panic(err)
		}
		return m
	}()
)

// EncodeEvent appends the stored form of e to dst.
func EncodeEvent(dst []byte, e turn.Event) ([]byte, error) {
	dst = appendHead(append(dst, majorArray<<5|2), majorUint, uint64(e.Kind()))
	if hot, ok := encodeHot(dst, e); ok {
		return hot, nil
	}
	body, err := encoding.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", e, err)
	}
	return append(dst, body...), nil
}

// DecodeEvent decodes the stored form of an event. It keeps nothing of b.
//
// One that is sealed is a *KeyError.
func DecodeEvent(b []byte) (turn.Event, error) { return decodeEvent(b, 0, nil, nil) }

func decodeEvent(b []byte, seq turn.Seq, names *names, keys *Keyring) (turn.Event, error) {
	c := cursor{b: b}
	if c.head(majorArray) != 2 {
		c.fail()
	}
	kind := c.head(majorUint)
	if c.err != nil || kind > 0xffff {
		return nil, fmt.Errorf("decode event: %w", errCBOR)
	}
	body, err := keys.unsealed(seq, kind, c.b)
	if err != nil {
		return nil, err
	}
	return decodeBody(kind, body, names)
}

// decodeBody decodes the body of an event in the clear.
func decodeBody(kind uint64, body []byte, names *names) (turn.Event, error) {
	if e, ok := decodeHot(turn.Kind(kind), body, names); ok {
		return e, nil
	}
	present, body, err := migrations.Upcast(uint16(kind), body)
	if err != nil {
		return nil, fmt.Errorf("upcast event of kind %d: %w", kind, err)
	}
	decode, known := decoders[turn.Kind(present)]
	if !known {
		return nil, fmt.Errorf("event of kind %d: %w", present, ErrUnknownKind)
	}
	e, err := decode(body)
	if err != nil {
		return nil, fmt.Errorf("decode event of kind %d: %w", present, err)
	}
	return e, nil
}

// decoders by kind: every kind there is.
var decoders = map[turn.Kind]func([]byte) (turn.Event, error){
	turn.KindAllocationCreated:   decode[turn.AllocationCreated],
	turn.KindAllocationRefreshed: decode[turn.AllocationRefreshed],
	turn.KindAllocationDeleted:   decode[turn.AllocationDeleted],
	turn.KindAllocationExpired:   decode[turn.AllocationExpired],
	turn.KindPermissionInstalled: decode[turn.PermissionInstalled],
	turn.KindPermissionExpired:   decode[turn.PermissionExpired],
	turn.KindPermissionRevoked:   decode[turn.PermissionRevoked],
	turn.KindChannelBound:        decode[turn.ChannelBound],
	turn.KindChannelExpired:      decode[turn.ChannelExpired],
	turn.KindChannelRevoked:      decode[turn.ChannelRevoked],
	turn.KindReservationMade:     decode[turn.ReservationMade],
	turn.KindReservationExpired:  decode[turn.ReservationExpired],
	turn.KindReservationRevoked:  decode[turn.ReservationRevoked],
	turn.KindRelayedRefreshed:    decode[turn.RelayedRefreshed],
	turn.KindRelayedDeleted:      decode[turn.RelayedDeleted],
	turn.KindRelayedExpired:      decode[turn.RelayedExpired],
	turn.KindFamilyRefused:       decode[turn.FamilyRefused],
	turn.KindTokenAccepted:       decode[turn.TokenAccepted],
	turn.KindPeerConnected:       decode[turn.PeerConnected],
	turn.KindConnectionBound:     decode[turn.ConnectionBound],
	turn.KindPeerDisconnected:    decode[turn.PeerDisconnected],
	turn.KindUsageRecorded:       decode[turn.UsageRecorded],
	turn.KindRefusalsCounted:     decode[turn.RefusalsCounted],
	turn.KindRelaysChanged:       decode[turn.RelaysChanged],
	turn.KindAttemptsRefused:     decode[turn.AttemptsRefused],
	turn.KindClientRedirected:    decode[turn.ClientRedirected],
	turn.KindTicketIssued:        decode[turn.TicketIssued],
	turn.KindAllocationMoved:     decode[turn.AllocationMoved],
	turn.KindFiveTupleLeft:       decode[turn.FiveTupleLeft],
	turn.KindEpochBegan:          decode[turn.EpochBegan],
	turn.KindServerStarted:       decode[turn.ServerStarted],
	turn.KindServerStopped:       decode[turn.ServerStopped],
	turn.KindConfigChanged:       decode[turn.ConfigChanged],
	turn.KindClockWentBack:       decode[turn.ClockWentBack],
	turn.KindLogRecovered:        decode[turn.LogRecovered],
	turn.KindSegmentSealed:       decode[turn.SegmentSealed],
	turn.KindSegmentRetired:      decode[turn.SegmentRetired],
	turn.KindSegmentArchived:     decode[turn.SegmentArchived],
	turn.KindArchiveRemoved:      decode[turn.ArchiveRemoved],
	turn.KindSnapshotTaken:       decode[turn.SnapshotTaken],
	turn.KindRollbackFound:       decode[turn.RollbackFound],
	turn.KindSegmentForgotten:    decode[turn.SegmentForgotten],
	turn.KindSegmentClosed:       decode[turn.SegmentClosed],
	turn.KindSliceTaken:          decode[turn.SliceTaken],
	turn.KindOriginNoted:         decode[turn.OriginNoted],
	turn.KindOperatorActed:       decode[turn.OperatorActed],
	turn.KindUserBanned:          decode[turn.UserBanned],
	turn.KindUserUnbanned:        decode[turn.UserUnbanned],
	turn.KindProgramAttached:     decode[turn.ProgramAttached],
	turn.KindProgramReplaced:     decode[turn.ProgramReplaced],
	turn.KindSettingsChanged:     decode[turn.SettingsChanged],
	turn.KindDriftRepaired:       decode[turn.DriftRepaired],
}

func decode[E turn.Event](body []byte) (turn.Event, error) {
	var e E
	if err := decoding.Unmarshal(body, &e); err != nil {
		return nil, err
	}
	return e, nil
}
