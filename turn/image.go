package turn

import (
	"fmt"
	"net/netip"
	"slices"
)

// Image is a State as plain data, sorted: equal states have equal images, and
// one encoding. Snapshots are made of it. What came to it later is left out where
// there is none, so that a log has the digests it always had.
type Image struct {
	Seq            Seq               `cbor:"1,keyasint"`
	Moment         Moment            `cbor:"2,keyasint"`
	Log            LogID             `cbor:"3,keyasint"`
	Epoch          uint64            `cbor:"4,keyasint"`
	LastAllocation AllocationID      `cbor:"5,keyasint"`
	LastSealed     uint64            `cbor:"6,keyasint"`
	LastSnapshot   SnapshotTaken     `cbor:"7,keyasint"`
	Allocations    []AllocationImage `cbor:"8,keyasint"` // by id
	Answers        []AnswerImage     `cbor:"9,keyasint"` // in the order they were given
	Config         [32]byte          `cbor:"10,keyasint"`
	Reservations   []Reservation     `cbor:"11,keyasint,omitempty"` // by end, then by relayed address
	Relays         []Relay           `cbor:"12,keyasint,omitempty"`
	Bans           []Ban             `cbor:"13,keyasint,omitempty"` // by user, then by realm
}

// AllocationImage is an [Allocation] in an Image.
type AllocationImage struct {
	ID          AllocationID     `cbor:"1,keyasint"`
	FiveTuple   FiveTuple        `cbor:"2,keyasint"`
	Relayed     []netip.AddrPort `cbor:"3,keyasint"`
	Transport   uint8            `cbor:"4,keyasint"`
	Username    string           `cbor:"5,keyasint"`
	Realm       string           `cbor:"6,keyasint"`
	Created     Moment           `cbor:"7,keyasint"`
	Deadline    Deadline         `cbor:"8,keyasint"`
	Permissions []Permission     `cbor:"9,keyasint"`
	Channels    []Channel        `cbor:"10,keyasint"`
	Usage       []Usage          `cbor:"11,keyasint"`
	Until       []Deadline       `cbor:"12,keyasint,omitempty"`
	Token       SealedToken      `cbor:"13,keyasint,omitempty"`
	Connections []Connection     `cbor:"14,keyasint,omitempty"`
	Ticket      uint32           `cbor:"15,keyasint,omitempty"`
	Next        FiveTuple        `cbor:"16,keyasint,omitzero"`
	Adrift      bool             `cbor:"17,keyasint,omitempty"`
	Spare       bool             `cbor:"18,keyasint,omitempty"`
}

// AnswerImage is a recent answer in an Image.
type AnswerImage struct {
	FiveTuple  FiveTuple        `cbor:"1,keyasint"`
	Kind       Kind             `cbor:"2,keyasint"`
	Tx         TransactionID    `cbor:"3,keyasint"`
	Until      Deadline         `cbor:"4,keyasint"`
	Allocation AllocationID     `cbor:"5,keyasint"`
	Lifetime   uint32           `cbor:"6,keyasint"`
	Relayed    []netip.AddrPort `cbor:"7,keyasint"` // or those of other servers, where Kind is KindClientRedirected
	Token      ReservationToken `cbor:"8,keyasint,omitzero"`
	Family     uint8            `cbor:"9,keyasint,omitempty"`  // that was refused
	Code       uint16           `cbor:"10,keyasint,omitempty"` // likewise
	Ticket     uint32           `cbor:"11,keyasint,omitempty"` // number of the mobility ticket
}

// Image copies s. It shares slices with s, so it is to be encoded or dropped before the next Apply.
func (s *State) Image() Image {
	im := Image{
		Seq: s.seq, Moment: s.moment, Log: s.log, Epoch: s.epoch,
		LastAllocation: s.last, LastSealed: s.sealed, LastSnapshot: s.snapshot, Config: s.config, Relays: orNil(s.served),
		Bans:        orNil(s.bans.list),
		Allocations: make([]AllocationImage, 0, len(s.allocations)),
		Answers:     make([]AnswerImage, 0, len(s.answers.live())),
	}
	for a := range s.Allocations() {
		im.Allocations = append(im.Allocations, AllocationImage{
			ID: a.ID, FiveTuple: a.FiveTuple, Relayed: a.Relayed, Transport: a.Transport,
			Username: a.Username, Realm: a.Realm, Token: a.Token, Created: a.Created, Deadline: a.Deadline, Until: a.Until,
			Permissions: orNil(a.Permissions), Channels: orNil(a.Channels), Usage: orNil(a.Usage), Connections: orNil(a.Connections),
			Ticket: a.Ticket, Next: a.Next, Adrift: a.Adrift, Spare: a.Spare,
		})
	}
	for _, r := range s.reservations.list {
		im.Reservations = append(im.Reservations, *r)
	}
	for i := range s.answers.live() {
		given := &s.answers.live()[i]
		one := AnswerImage{
			FiveTuple: FiveTuple{Client: given.client.unpack(), Server: given.server.unpack(), Protocol: given.protocol},
			Kind:      given.kind, Tx: given.tx, Until: given.until, Allocation: given.allocation, Lifetime: given.lifetime,
			Token: given.token, Family: given.lacks.family, Code: given.lacks.code, Ticket: given.ticket,
		}
		one.Relayed = given.list()
		im.Answers = append(im.Answers, one)
	}
	return im
}

// orNil gives slices without elements one form.
func orNil[T any](list []T) []T {
	if len(list) == 0 {
		return nil
	}
	return list
}

// FromImage is the state that im is the image of. It keeps the slices of im.
// An error means that im is not the image of any state.
func FromImage(im Image) (*State, error) {
	s := NewState()
	s.seq, s.moment, s.log, s.epoch = im.Seq, im.Moment, im.Log, im.Epoch
	s.last, s.sealed, s.snapshot = im.LastAllocation, im.LastSealed, im.LastSnapshot
	s.config, s.served = im.Config, im.Relays
	for i, b := range im.Bans {
		if b.Username == "" || i > 0 && compareBan(im.Bans[i-1], b) >= 0 {
			return nil, fmt.Errorf("image of state %d: the ban of %q is of nobody, or out of order", im.Seq, b.Username)
		}
	}
	s.bans.set(im.Bans)
	for _, a := range im.Allocations {
		taken := slices.ContainsFunc(a.Relayed, func(r netip.AddrPort) bool { return s.byRelayed[r] != nil })
		made := &Allocation{
			ID: a.ID, FiveTuple: a.FiveTuple, Relayed: a.Relayed, Transport: a.Transport,
			Username: a.Username, Realm: a.Realm, Token: a.Token, Created: a.Created, Deadline: a.Deadline, Until: a.Until,
			Permissions: a.Permissions, Channels: a.Channels, Usage: a.Usage, Connections: a.Connections,
			Ticket: a.Ticket, Next: a.Next, Adrift: a.Adrift, Spare: a.Spare,
		}
		for t := range made.FiveTuples() {
			taken = taken || s.byFiveTuple[t] != nil
		}
		if a.ID > s.last || s.allocations[a.ID] != nil || taken || !made.mobile() {
			return nil, fmt.Errorf("image of state %d: allocation %d contradicts another or itself", im.Seq, a.ID)
		}
		if !made.paired() {
			return nil, fmt.Errorf("image of state %d: the relayed addresses and deadlines of allocation %d do not fit", im.Seq, a.ID)
		}
		for _, c := range a.Connections {
			if c.ID == 0 || s.byConnection[c.ID] != nil {
				return nil, fmt.Errorf("image of state %d: connection %v of allocation %d is none, or another's", im.Seq, c.ID, a.ID)
			}
		}
		s.insert(made)
	}
	for _, r := range im.Reservations {
		taken := s.byRelayed[r.Relayed] != nil || s.reservations.byRelayed[r.Relayed] != nil
		if taken || r.Token == (ReservationToken{}) || s.reservations.byToken[r.Token] != nil {
			return nil, fmt.Errorf("image of state %d: the reservation of %v contradicts another", im.Seq, r.Relayed)
		}
		s.hold(&r)
	}
	for _, r := range im.Answers {
		t := transactionOf(r.FiveTuple, r.Kind, r.Tx)
		given := answer{until: r.Until, allocation: r.Allocation, lifetime: r.Lifetime, token: r.Token, lacks: lack{r.Family, r.Code}, ticket: r.Ticket}
		if s.answers.get(t) != nil || len(r.Relayed) > len(given.addresses) {
			return nil, fmt.Errorf("image of state %d: answer %v contradicts another or itself", im.Seq, r.Tx)
		}
		for i, a := range r.Relayed {
			given.addresses[i] = pack(a)
		}
		s.answers.put(t, given)
	}
	return s, nil
}
