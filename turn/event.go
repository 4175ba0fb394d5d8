package turn

import (
	"fmt"
	"net/netip"
	"reflect"
)

// Kind numbers a type of event in the log.
type Kind uint16

// The kinds of events. A number is never given to another kind, and the fields
// of a kind are never reshaped: a new shape is a new kind, and migrations turn
// the old into the new. A reader that meets a kind it does not know refuses
// the log. 1-19 are grants, 20-21 accounts, 22-29 clients on the move, 30-49 log and server, 46-47 for those who ask later, 50-59 kernel, 60-63 connections of
// peers, 64-69 operators.
const (
	KindAllocationCreated   Kind = 1
	KindAllocationRefreshed Kind = 2
	KindAllocationDeleted   Kind = 3
	KindAllocationExpired   Kind = 4
	KindPermissionInstalled Kind = 5
	KindPermissionExpired   Kind = 6
	KindPermissionRevoked   Kind = 7
	KindChannelBound        Kind = 8
	KindChannelExpired      Kind = 9
	KindChannelRevoked      Kind = 10
	KindReservationMade     Kind = 11
	KindReservationExpired  Kind = 12
	KindReservationRevoked  Kind = 13
	KindRelayedRefreshed    Kind = 14
	KindRelayedDeleted      Kind = 15
	KindRelayedExpired      Kind = 16
	KindFamilyRefused       Kind = 17
	KindTokenAccepted       Kind = 18

	KindPeerConnected    Kind = 60
	KindConnectionBound  Kind = 61
	KindPeerDisconnected Kind = 62

	KindOperatorActed Kind = 64
	KindUserBanned    Kind = 65
	KindUserUnbanned  Kind = 66

	KindUsageRecorded   Kind = 20
	KindRefusalsCounted Kind = 21

	KindClientRedirected Kind = 22
	KindTicketIssued     Kind = 23
	KindAllocationMoved  Kind = 24
	KindFiveTupleLeft    Kind = 25

	KindEpochBegan      Kind = 30
	KindServerStarted   Kind = 31
	KindServerStopped   Kind = 32
	KindConfigChanged   Kind = 33
	KindClockWentBack   Kind = 34
	KindLogRecovered    Kind = 35
	KindSegmentSealed   Kind = 36
	KindSegmentRetired  Kind = 37
	KindSnapshotTaken   Kind = 38
	KindSettingsChanged Kind = 39
	KindRollbackFound   Kind = 40

	KindSegmentArchived  Kind = 42
	KindArchiveRemoved   Kind = 43
	KindSegmentForgotten Kind = 44
	KindSegmentClosed    Kind = 45
	KindRelaysChanged    Kind = 46
	KindAttemptsRefused  Kind = 47

	KindSliceTaken  Kind = 48
	KindOriginNoted Kind = 49

	KindProgramAttached Kind = 50
	KindProgramReplaced Kind = 51
	KindDriftRepaired   Kind = 52
)

// Event is a fact, in the past tense. Events are values: whoever holds one must
// not change what it refers to. They happen at the [Moment] of their record.
type Event interface {
	Kind() Kind
}

// AllocationOf is the allocation that e is about, 0 for none.
func AllocationOf(e Event) AllocationID {
	f := reflect.ValueOf(e).FieldByName("Allocation")
	if !f.IsValid() {
		return 0
	}
	return AllocationID(f.Uint())
}

// AllocationCreated grants an allocation (RFC 8656 section 7.2). Where its relayed
// address is reserved, that is the end of the reservation.
type AllocationCreated struct {
	Allocation AllocationID     `cbor:"1,keyasint"`
	Tx         TransactionID    `cbor:"2,keyasint"`
	FiveTuple  FiveTuple        `cbor:"3,keyasint"`
	Relayed    []netip.AddrPort `cbor:"4,keyasint"` // one, or one per family
	Transport  uint8            `cbor:"5,keyasint"` // REQUESTED-TRANSPORT: 17 is UDP
	Username   string           `cbor:"6,keyasint"`
	Realm      string           `cbor:"7,keyasint"`
	Lifetime   uint32           `cbor:"8,keyasint"` // seconds
}

// AllocationRefreshed moves the end of an allocation, of all its relayed addresses, to Lifetime
// seconds from now (RFC 8656 section 8.2). A refresh to zero is AllocationDeleted.
type AllocationRefreshed struct {
	Allocation AllocationID  `cbor:"1,keyasint"`
	Tx         TransactionID `cbor:"2,keyasint"`
	Lifetime   uint32        `cbor:"3,keyasint"` // seconds
}

// AllocationDeleted ends an allocation with all its permissions and channels.
// Tx is the Refresh that asked for it, zero where nobody asked.
type AllocationDeleted struct {
	Allocation AllocationID  `cbor:"1,keyasint"`
	Tx         TransactionID `cbor:"2,keyasint"`
	Reason     Reason        `cbor:"3,keyasint"`
}

// AllocationExpired ends an allocation, with all its permissions and channels,
// whose lifetime is over.
type AllocationExpired struct {
	Allocation AllocationID `cbor:"1,keyasint"`
}

// PermissionInstalled installs or refreshes a permission for 300 s (RFC 8656
// section 9). A CreatePermission makes one for each of its peers, all with its Tx.
type PermissionInstalled struct {
	Allocation AllocationID  `cbor:"1,keyasint"`
	Tx         TransactionID `cbor:"2,keyasint"`
	Peer       netip.Addr    `cbor:"3,keyasint"`
}

// PermissionExpired ends a permission whose time is over.
type PermissionExpired struct {
	Allocation AllocationID `cbor:"1,keyasint"`
	Peer       netip.Addr   `cbor:"2,keyasint"`
}

// PermissionRevoked ends a permission before its time.
type PermissionRevoked struct {
	Allocation AllocationID `cbor:"1,keyasint"`
	Peer       netip.Addr   `cbor:"2,keyasint"`
	Reason     Reason       `cbor:"3,keyasint"`
}

// ChannelBound binds or refreshes a channel for 600 s, and installs or refreshes
// the permission of its peer for 300 s (RFC 8656 section 12.2).
type ChannelBound struct {
	Allocation AllocationID   `cbor:"1,keyasint"`
	Tx         TransactionID  `cbor:"2,keyasint"`
	Channel    ChannelNumber  `cbor:"3,keyasint"`
	Peer       netip.AddrPort `cbor:"4,keyasint"`
}

// ChannelExpired ends a channel whose time is over.
type ChannelExpired struct {
	Allocation AllocationID  `cbor:"1,keyasint"`
	Channel    ChannelNumber `cbor:"2,keyasint"`
}

// ChannelRevoked ends a channel before its time.
type ChannelRevoked struct {
	Allocation AllocationID  `cbor:"1,keyasint"`
	Channel    ChannelNumber `cbor:"2,keyasint"`
	Reason     Reason        `cbor:"3,keyasint"`
}

// ReservationMade keeps the port after that of the allocation created with it for
// Lifetime seconds, for whoever brings Token (RFC 8656 section 7.2).
type ReservationMade struct {
	Allocation AllocationID     `cbor:"1,keyasint"`
	Tx         TransactionID    `cbor:"2,keyasint"` // of the Allocate that asked for it
	Relayed    netip.AddrPort   `cbor:"3,keyasint"`
	Token      ReservationToken `cbor:"4,keyasint"`
	Lifetime   uint32           `cbor:"5,keyasint"` // seconds
}

// ReservationExpired ends a reservation whose time is over.
type ReservationExpired struct {
	Relayed netip.AddrPort `cbor:"1,keyasint"`
}

// ReservationRevoked ends a reservation before its time.
type ReservationRevoked struct {
	Relayed netip.AddrPort `cbor:"1,keyasint"`
	Reason  Reason         `cbor:"2,keyasint"`
}

// RelayedRefreshed moves the end of one of the two relayed addresses of an allocation to
// Lifetime seconds from now (RFC 8656 section 8). A refresh to zero is RelayedDeleted.
type RelayedRefreshed struct {
	Allocation AllocationID   `cbor:"1,keyasint"`
	Tx         TransactionID  `cbor:"2,keyasint"`
	Relayed    netip.AddrPort `cbor:"3,keyasint"`
	Lifetime   uint32         `cbor:"4,keyasint"` // seconds
}

// RelayedDeleted ends one of the two relayed addresses of an allocation, with the permissions
// and channels of its family. Tx is the Refresh that asked for it, zero where nobody asked.
type RelayedDeleted struct {
	Allocation AllocationID   `cbor:"1,keyasint"`
	Tx         TransactionID  `cbor:"2,keyasint"`
	Relayed    netip.AddrPort `cbor:"3,keyasint"`
	Reason     Reason         `cbor:"4,keyasint"`
}

// RelayedExpired ends one of the two relayed addresses of an allocation, with the
// permissions and channels of its family, whose lifetime is over.
type RelayedExpired struct {
	Allocation AllocationID   `cbor:"1,keyasint"`
	Relayed    netip.AddrPort `cbor:"2,keyasint"`
}

// TokenAccepted holds the access token by which the client of an allocation has proved who
// it is since (RFC 7635). It is sealed as it came: its key is not in the log.
type TokenAccepted struct {
	Allocation AllocationID  `cbor:"1,keyasint"`
	Tx         TransactionID `cbor:"2,keyasint"`
	Token      SealedToken   `cbor:"3,keyasint"`
}

// FamilyRefused says that the allocation created with it lacks one of the two address
// families that were asked for, and with what code the client was told (RFC 8656 section 7.2).
type FamilyRefused struct {
	Allocation AllocationID  `cbor:"1,keyasint"`
	Tx         TransactionID `cbor:"2,keyasint"` // of the Allocate
	Family     uint8         `cbor:"3,keyasint"` // as STUN numbers them: 1 is IPv4, 2 is IPv6
	Code       uint16        `cbor:"4,keyasint"`
}

// PeerConnected says that an allocation for TCP has a connection with a peer: the client asked for it with a
// Connect (RFC 6062 section 5.2), or the peer made it, and Tx is zero (section 5.3).
type PeerConnected struct {
	Allocation AllocationID   `cbor:"1,keyasint"`
	Tx         TransactionID  `cbor:"2,keyasint"`
	Connection ConnectionID   `cbor:"3,keyasint"`
	Peer       netip.AddrPort `cbor:"4,keyasint"`
}

// ConnectionBound says that a client relays over a connection from its data connection (RFC 6062 section 5.4).
type ConnectionBound struct {
	Allocation AllocationID  `cbor:"1,keyasint"`
	Tx         TransactionID `cbor:"2,keyasint"`
	Connection ConnectionID  `cbor:"3,keyasint"`
	Client     FiveTuple     `cbor:"4,keyasint"`
}

// PeerDisconnected ends a connection before its allocation (RFC 6062 section 5.5).
type PeerDisconnected struct {
	Allocation AllocationID `cbor:"1,keyasint"`
	Connection ConnectionID `cbor:"2,keyasint"`
	Reason     Reason       `cbor:"3,keyasint"`
}

// Path is where a datagram was relayed. The numbers are part of the log.
type Path uint8

// Paths of usage.
const (
	PathUserspace Path = 1
	PathKernel    Path = 2
)

func (p Path) String() string {
	switch p {
	case PathUserspace:
		return "userspace"
	case PathKernel:
		return "kernel"
	}
	return fmt.Sprintf("path(%d)", uint8(p))
}

// Count is what was relayed in one direction: datagrams, and bytes of
// application data (neither headers nor padding).
type Count struct {
	Packets uint64 `cbor:"1,keyasint" json:"packets"`
	Bytes   uint64 `cbor:"2,keyasint" json:"bytes"`
}

// Plus is the sum of c and d.
func (c Count) Plus(d Count) Count {
	return Count{Packets: c.Packets + d.Packets, Bytes: c.Bytes + d.Bytes}
}

// UsageRecorded says how much a binding has relayed on one path since its
// allocation was created. The counts are cumulative: a later one
// replaces an earlier one, so a crash can lose some but count none twice.
type UsageRecorded struct {
	Allocation AllocationID   `cbor:"1,keyasint"`
	Channel    ChannelNumber  `cbor:"2,keyasint"` // 0: all Send and Data indications, or the connections with Peer
	Peer       netip.AddrPort `cbor:"3,keyasint"` // invalid for indications
	Path       Path           `cbor:"4,keyasint"`
	ToPeer     Count          `cbor:"5,keyasint"`
	ToClient   Count          `cbor:"6,keyasint"`
}

// Attempt counts the requests of one sort that were refused since the last AttemptsRefused. Where a client tried
// many usernames or peers, those that found no room of their own are counted together, without one.
type Attempt struct {
	Client   netip.Addr `cbor:"1,keyasint"`
	Username string     `cbor:"2,keyasint"` // as it was claimed where Code is 401, and no more than its beginning
	Realm    string     `cbor:"3,keyasint"`
	Method   uint16     `cbor:"4,keyasint"` // STUN method
	Code     uint16     `cbor:"5,keyasint"` // STUN error code
	Peer     netip.Addr `cbor:"6,keyasint"` // that was asked for and refused, invalid where it is not about one
	Count    uint64     `cbor:"7,keyasint"`
}

// AttemptsRefused sums up requests that were refused after a valid nonce. At most one is written a minute, and one
// at a stop, and it is bounded: Others counts what found no room.
type AttemptsRefused struct {
	Since    int64     `cbor:"1,keyasint"` // wall time from which on it counts, ns since the Unix epoch
	Attempts []Attempt `cbor:"2,keyasint"`
	Others   uint64    `cbor:"3,keyasint"`
}

// Refusal counts the refusals of one sort since the last RefusalsCounted.
type Refusal struct {
	Client   netip.Addr `cbor:"1,keyasint"`
	Username string     `cbor:"2,keyasint"`
	Method   uint16     `cbor:"3,keyasint"` // STUN method
	Code     uint16     `cbor:"4,keyasint"` // STUN error code
	Count    uint64     `cbor:"5,keyasint"`
}

// RefusalsCounted is what AttemptsRefused was before it told realm, peer and time. It is not written any more.
type RefusalsCounted struct {
	Refusals []Refusal `cbor:"1,keyasint"`
	Others   uint64    `cbor:"2,keyasint"`
}

// ClientRedirected says that an Allocate was answered with 300: its client was sent to other
// servers (RFC 8489 section 10).
type ClientRedirected struct {
	FiveTuple FiveTuple        `cbor:"1,keyasint"`
	Tx        TransactionID    `cbor:"2,keyasint"`
	Username  string           `cbor:"3,keyasint"`
	Realm     string           `cbor:"4,keyasint"`
	Servers   []netip.AddrPort `cbor:"5,keyasint"` // one of the client's address family, or two of one each
}

// TicketIssued says that the client of the allocation created with it was given the first
// ticket by which it can be had from elsewhere (RFC 8016 section 3.1.2).
type TicketIssued struct {
	Allocation AllocationID  `cbor:"1,keyasint"`
	Tx         TransactionID `cbor:"2,keyasint"` // of the Allocate
}

// AllocationMoved says that an allocation is to be had at another five-tuple too: what it was moving to before, it
// moves to no more. Data goes by the one it had until some has come from the new one, or that is gone (RFC 8016
// section 3.2.2). What the Refresh grants follows.
type AllocationMoved struct {
	Allocation AllocationID  `cbor:"1,keyasint"`
	Tx         TransactionID `cbor:"2,keyasint"` // of the Refresh
	FiveTuple  FiveTuple     `cbor:"3,keyasint"`
	Ticket     uint32        `cbor:"4,keyasint"` // the number of the ticket that was given for the next time, 0 for none
}

// FiveTupleLeft says that an allocation is not to be had at a five-tuple any more, and goes by the other
// one it has; where it has none, it waits for its client to come from elsewhere.
type FiveTupleLeft struct {
	Allocation AllocationID `cbor:"1,keyasint"`
	FiveTuple  FiveTuple    `cbor:"2,keyasint"`
	Reason     Reason       `cbor:"3,keyasint"`
}

// LogID names a log for its whole life.
type LogID [16]byte

func (id LogID) String() string { return fmt.Sprintf("%x", id[:]) }

// EpochBegan is the first event of a log, and follows a rollback of it.
type EpochBegan struct {
	Log   LogID  `cbor:"1,keyasint"`
	Epoch uint64 `cbor:"2,keyasint"` // from 1
}

// ServerStarted is the first event of a run of the server.
type ServerStarted struct {
	Version string `cbor:"1,keyasint"`
	PID     uint32 `cbor:"2,keyasint"`
}

// ServerStopped is the last event of a run that ended in good order.
type ServerStopped struct {
	Signal string `cbor:"1,keyasint"` // what asked for it
}

// ConfigChanged says that the server runs with another configuration.
// The digest is SHA-256 over the effective configuration without its secrets.
type ConfigChanged struct {
	Digest [32]byte `cbor:"1,keyasint"`
}

// RelaysChanged says what addresses relayed transport addresses are made of from now on, and by which of them clients
// and peers know those. It is written where one of them is behind a 1:1 NAT, or was.
type RelaysChanged struct {
	Relays []Relay `cbor:"1,keyasint"`
}

// SettingsChanged says what of the configuration a reload changed.
type SettingsChanged struct {
	Changes []SettingChange `cbor:"1,keyasint"`
}

// SettingChange is a setting with its values, as they are written in a file. Of secrets it is said how many there are.
type SettingChange struct {
	Setting string `cbor:"1,keyasint"`
	Before  string `cbor:"2,keyasint"`
	After   string `cbor:"3,keyasint"`
}

// ClockWentBack says that the wall clock of this boot began before the last
// record of the boot before, and by how much: the time between counts as zero.
type ClockWentBack struct {
	Nanoseconds uint64 `cbor:"1,keyasint"`
}

// LogRecovered says that the log was opened again after a failed commit.
type LogRecovered struct {
	Cause string `cbor:"1,keyasint"`
}

// SegmentSealed says that a segment takes no more records.
type SegmentSealed struct {
	Segment uint64   `cbor:"1,keyasint"`
	First   Seq      `cbor:"2,keyasint"`
	Last    Seq      `cbor:"3,keyasint"`
	Chain   [32]byte `cbor:"4,keyasint"` // chain hash of its last record
	Root    [32]byte `cbor:"5,keyasint"` // RFC 6962 root over events 1..Last
}

// SegmentRetired says that a sealed segment was removed from the log.
type SegmentRetired struct {
	Segment uint64 `cbor:"1,keyasint"`
}

// SegmentArchived says that a sealed segment was written to an archive, which was read back and is durable. Its
// retirement follows.
type SegmentArchived struct {
	Segment uint64   `cbor:"1,keyasint"`
	Size    uint64   `cbor:"2,keyasint"` // bytes of the archive's file
	Digest  [32]byte `cbor:"3,keyasint"` // SHA-256 of it
}

// ArchiveRemoved says that an archive was to be removed for its age.
type ArchiveRemoved struct {
	Segment uint64 `cbor:"1,keyasint"`
}

// SnapshotTaken says that a snapshot of the fold up to At was stored.
type SnapshotTaken struct {
	At     Seq      `cbor:"1,keyasint"`
	Digest [32]byte `cbor:"2,keyasint"` // SHA-256 of the encoded state
	Size   uint64   `cbor:"3,keyasint"` // bytes
}

// RollbackFound says that the log lacks events for which checkpoints were signed: it was rolled back, or put together
// anew. The checkpoints of epochs up to Epoch and sizes above Kept, up to Size, are of what was lost.
type RollbackFound struct {
	Kept  Seq      `cbor:"1,keyasint"` // the newest checkpoint that the log agrees with, 0 for none
	Size  Seq      `cbor:"2,keyasint"` // the largest one that was lost
	Root  [32]byte `cbor:"3,keyasint"` // of that
	Epoch uint64   `cbor:"4,keyasint"` // the last one that was lost
}

// SegmentForgotten says that the key of an encrypted segment was erased: nobody can read its events any more.
type SegmentForgotten struct {
	Segment uint64 `cbor:"1,keyasint"`
	First   Seq    `cbor:"2,keyasint"`
	Last    Seq    `cbor:"3,keyasint"`
	By      string `cbor:"4,keyasint"` // who had it erased
}

// SegmentClosed says that a segment takes no more records because of its age, though it has room.
type SegmentClosed struct {
	Segment uint64 `cbor:"1,keyasint"`
}

// SliceTaken says that what follows is the history of one allocation, copied out of another log, where it stood under
// other sequences (see [OriginNoted]).
type SliceTaken struct {
	Source     LogID        `cbor:"1,keyasint"`
	Epoch      uint64       `cbor:"2,keyasint"` // of the source
	Allocation AllocationID `cbor:"3,keyasint"`
	Size       Seq          `cbor:"4,keyasint"` // events of the source that the proofs are about; 0: there are no proofs
	Root       [32]byte     `cbor:"5,keyasint"` // RFC 6962 root over them
	Checkpoint string       `cbor:"6,keyasint"` // the signed note about them, empty where there is none
	Anonymised bool         `cbor:"7,keyasint"` // addresses and names are others
}

// OriginNoted says which event of the source the one before it in its record is. Where it follows none it
// stands for one that was left out: for the moment of it.
type OriginNoted struct {
	Seq    Seq        `cbor:"1,keyasint"`
	Proof  [][32]byte `cbor:"2,keyasint"` // RFC 6962 section 2.1.1, from the leaf up; empty where there is none
	Stored []byte     `cbor:"3,keyasint"` // as the source has it, where it is sealed there
	Key    []byte     `cbor:"4,keyasint"` // what opens Stored, and nothing else
}

// NoUID is the user of an operator who is known by a token alone.
const NoUID = 1<<32 - 1

// OperatorActed says that somebody had the daemon do something, through its admin socket or its dashboard. It is recorded
// before that is done.
type OperatorActed struct {
	UID  uint32 `cbor:"1,keyasint"` // of the process at the other end of the admin socket, as the kernel has it, or NoUID
	PID  uint32 `cbor:"2,keyasint"` // likewise, or 0
	What string `cbor:"3,keyasint"`
}

// UserBanned says that a user gets nothing of the relay any more for some seconds, whatever was said before. The end of what
// the user has follows.
type UserBanned struct {
	Realm    string `cbor:"1,keyasint"`
	Username string `cbor:"2,keyasint"` // without the expiry of a time-limited one
	Seconds  uint32 `cbor:"3,keyasint"` // 0: until UserUnbanned
}

// UserUnbanned ends a ban: somebody lifted it, or its time is over.
type UserUnbanned struct {
	Realm    string `cbor:"1,keyasint"`
	Username string `cbor:"2,keyasint"` // as in UserBanned
}

// ProgramAttached says that the XDP program was attached to an interface.
type ProgramAttached struct {
	Interface string   `cbor:"1,keyasint"`
	Mode      string   `cbor:"2,keyasint"` // "native" or "generic"
	Layout    [32]byte `cbor:"3,keyasint"`
}

// ProgramReplaced says that the program on an interface gave way to another.
type ProgramReplaced struct {
	Interface string   `cbor:"1,keyasint"`
	From      [32]byte `cbor:"2,keyasint"` // layouts
	To        [32]byte `cbor:"3,keyasint"`
}

// DriftRepaired says that the kernel's maps, links or pins differed from what the
// log wants, and were put right.
type DriftRepaired struct {
	What    string `cbor:"1,keyasint"` // "index", "record", "next hop", "link", "pin"
	Added   uint64 `cbor:"2,keyasint"`
	Changed uint64 `cbor:"3,keyasint"`
	Removed uint64 `cbor:"4,keyasint"`
}

// Kind is [KindAllocationCreated]; likewise below.
func (AllocationCreated) Kind() Kind   { return KindAllocationCreated }
func (AllocationRefreshed) Kind() Kind { return KindAllocationRefreshed }
func (AllocationDeleted) Kind() Kind   { return KindAllocationDeleted }
func (AllocationExpired) Kind() Kind   { return KindAllocationExpired }
func (PermissionInstalled) Kind() Kind { return KindPermissionInstalled }
func (PermissionExpired) Kind() Kind   { return KindPermissionExpired }
func (PermissionRevoked) Kind() Kind   { return KindPermissionRevoked }
func (ChannelBound) Kind() Kind        { return KindChannelBound }
func (ChannelExpired) Kind() Kind      { return KindChannelExpired }
func (ChannelRevoked) Kind() Kind      { return KindChannelRevoked }
func (ReservationMade) Kind() Kind     { return KindReservationMade }
func (ReservationExpired) Kind() Kind  { return KindReservationExpired }
func (ReservationRevoked) Kind() Kind  { return KindReservationRevoked }
func (RelayedRefreshed) Kind() Kind    { return KindRelayedRefreshed }
func (RelayedDeleted) Kind() Kind      { return KindRelayedDeleted }
func (RelayedExpired) Kind() Kind      { return KindRelayedExpired }
func (TokenAccepted) Kind() Kind       { return KindTokenAccepted }
func (FamilyRefused) Kind() Kind       { return KindFamilyRefused }
func (UsageRecorded) Kind() Kind       { return KindUsageRecorded }
func (RefusalsCounted) Kind() Kind     { return KindRefusalsCounted }
func (RelaysChanged) Kind() Kind       { return KindRelaysChanged }
func (AttemptsRefused) Kind() Kind     { return KindAttemptsRefused }
func (ClientRedirected) Kind() Kind    { return KindClientRedirected }
func (TicketIssued) Kind() Kind        { return KindTicketIssued }
func (AllocationMoved) Kind() Kind     { return KindAllocationMoved }
func (FiveTupleLeft) Kind() Kind       { return KindFiveTupleLeft }
func (EpochBegan) Kind() Kind          { return KindEpochBegan }
func (ServerStarted) Kind() Kind       { return KindServerStarted }
func (ServerStopped) Kind() Kind       { return KindServerStopped }
func (ConfigChanged) Kind() Kind       { return KindConfigChanged }
func (ClockWentBack) Kind() Kind       { return KindClockWentBack }
func (LogRecovered) Kind() Kind        { return KindLogRecovered }
func (SegmentSealed) Kind() Kind       { return KindSegmentSealed }
func (PeerConnected) Kind() Kind       { return KindPeerConnected }
func (ConnectionBound) Kind() Kind     { return KindConnectionBound }
func (PeerDisconnected) Kind() Kind    { return KindPeerDisconnected }
func (SegmentRetired) Kind() Kind      { return KindSegmentRetired }
func (SegmentArchived) Kind() Kind     { return KindSegmentArchived }
func (ArchiveRemoved) Kind() Kind      { return KindArchiveRemoved }
func (SnapshotTaken) Kind() Kind       { return KindSnapshotTaken }
func (SliceTaken) Kind() Kind          { return KindSliceTaken }
func (OriginNoted) Kind() Kind         { return KindOriginNoted }
func (RollbackFound) Kind() Kind       { return KindRollbackFound }
func (SegmentForgotten) Kind() Kind    { return KindSegmentForgotten }
func (SegmentClosed) Kind() Kind       { return KindSegmentClosed }
func (OperatorActed) Kind() Kind       { return KindOperatorActed }
func (UserBanned) Kind() Kind          { return KindUserBanned }
func (UserUnbanned) Kind() Kind        { return KindUserUnbanned }
func (ProgramAttached) Kind() Kind     { return KindProgramAttached }
func (ProgramReplaced) Kind() Kind     { return KindProgramReplaced }
func (SettingsChanged) Kind() Kind     { return KindSettingsChanged }
func (DriftRepaired) Kind() Kind       { return KindDriftRepaired }

// Record is the events that one commit makes durable, and the moment at
// which they happened.
type Record struct {
	First  Seq // the sequence of Events[0]
	Moment Moment
	Events []Event
}

// Last is the sequence of the last event of r, First-1 where there is none.
func (r Record) Last() Seq { return r.First + Seq(len(r.Events)) - 1 }
