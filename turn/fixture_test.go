package turn

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5" //nolint:gosec // as RFC 8489 has it
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun/v3"
)

const (
	testRealm  = "example.org"
	testServer = "192.0.2.1:3478"
	startWall  = 1_700_000_000 // Unix seconds at uptime zero of the first boot
)

// at is the moment d into the first boot.
func at(d time.Duration) Moment {
	return Moment{Boot: BootID{1}, Uptime: d, Wall: startWall*int64(time.Second) + int64(d)}
}

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func testGateConfig() GateConfig {
	return GateConfig{
		Realm: testRealm, Software: "turnstone",
		Users: []User{
			{Name: "alice", Password: "wonderland"},
			{Name: "bob", Key: algorithmMD5.key("bob", testRealm, "builder"), KeySHA256: algorithmSHA256.key("bob", testRealm, "builder")},
		},
		Secrets:  [][]byte{[]byte("north"), []byte("south")},
		NonceKey: [32]byte{7}, NonceLifetime: time.Hour, CredentialGrace: -1,
	}
}

func testRules() Rules {
	return Rules{
		Relays: []Relay{
			{IP: addr("192.0.2.1"), External: addr("192.0.2.1")},
			{IP: addr("2001:db8::1"), External: addr("2001:db8::1")},
		},
		FirstPort: 49152, LastPort: 65535,
		MaxPermissions: 8, MaxChannels: 4,
		DefaultLifetime: 10 * time.Minute, MaxLifetime: time.Hour, LastChannel: ChannelLastRFC5766,
		Tickets: NewTickets([32]byte{8}),
	}
}

// caller is a client with a credential. It knows no more than RFC 5389 unless
// it has an algorithm.
type caller struct {
	FiveTuple
	user, password string
	algorithm      algorithm
	anonymous      bool   // sends USERHASH
	realm          string // empty: testRealm
	mac            []byte // of an access token, whose key's id user is
	token          SealedToken
}

func newCaller(user, password, address string) *caller {
	return &caller{FiveTuple: FiveTuple{Client: addrPort(address), Server: addrPort(testServer), Protocol: UDP}, user: user, password: password}
}

// with is c as a client of RFC 8489.
func (c *caller) with(a algorithm, anonymous bool) *caller {
	modern := *c
	modern.algorithm, modern.anonymous = a, anonymous
	return &modern
}

// over is c on another transport.
func (c *caller) over(p Protocol) *caller {
	other := *c
	other.Protocol = p
	return &other
}

func alice() *caller { return newCaller("alice", "wonderland", "198.51.100.1:5000") }
func bob() *caller   { return newCaller("bob", "builder", "198.51.100.2:5000") }

// timeLimitedCaller has a credential of secret that ends at expiry.
func timeLimitedCaller(user, secret string, expiry Moment, address string) *caller {
	name := TimeLimitedUsername(user, expiry.WallTime())
	return newCaller(name, TimeLimitedPassword([]byte(secret), name), address)
}

// in is c as a client that was told another realm.
func (c *caller) in(realm string) *caller {
	other := *c
	other.realm = realm
	return &other
}

func (c *caller) realmName() string {
	if c.realm == "" {
		return testRealm
	}
	return c.realm
}

func (c *caller) key() stun.Setter {
	switch {
	case c.mac != nil && c.algorithm == 0:
		return stun.MessageIntegrity(c.mac)
	case c.mac != nil:
		return integrity256(c.mac)
	case c.algorithm == 0:
		return stun.NewLongTermIntegrity(c.user, c.realmName(), c.password)
	}
	text := []byte(c.user + ":" + c.realmName() + ":" + c.password)
	if c.algorithm == algorithmMD5 {
		sum := md5.Sum(text) //nolint:gosec // as RFC 8489 has it
		return integrity256(sum[:])
	}
	sum := sha256.Sum256(text)
	return integrity256(sum[:])
}

// integrity256 is a key that signs with MESSAGE-INTEGRITY-SHA256.
type integrity256 []byte

func (k integrity256) AddTo(m *stun.Message) error {
	m.Length += 36 // what the attribute will take
	m.WriteLength()
	mac := hmac.New(sha256.New, k)
	mac.Write(m.Raw)
	m.Length -= 36
	m.Add(stun.AttrMessageIntegritySHA256, mac.Sum(nil))
	return nil
}

// name is USERNAME or USERHASH.
func (c *caller) name() stun.Setter {
	if !c.anonymous {
		return set(stun.AttrUsername, []byte(c.user)...) // the library takes no long one
	}
	sum := sha256.Sum256([]byte(c.user + ":" + c.realmName()))
	return set(stun.AttrUserhash, sum[:]...)
}

// credential is the attributes a credential is made of.
func (c *caller) credential(nonce string) (all []stun.Setter) {
	list := []stun.Setter{c.name(), stun.NewRealm(c.realmName()), stun.NewNonce(nonce)}
	if c.token != nil {
		defer func() { all = append(all, set(attrAccessToken, c.token...)) }()
	}
	if c.algorithm == 0 {
		return list
	}
	offered := []byte{0, 2, 0, 0, 0, 1, 0, 0} // SHA-256, MD5
	return append(list, set(stun.AttrPasswordAlgorithms, offered...), set(stun.AttrPasswordAlgorithm, 0, byte(c.algorithm), 0, 0))
}

// set sets an attribute of any type to any bytes.
func set(kind stun.AttrType, value ...byte) stun.Setter {
	return stun.RawAttribute{Type: kind, Value: value}
}

func lifetime(seconds uint32) stun.Setter {
	return set(stun.AttrLifetime, binary.BigEndian.AppendUint32(nil, seconds)...)
}

func transport(p byte) stun.Setter  { return set(stun.AttrRequestedTransport, p, 0, 0, 0) }
func family(f byte) stun.Setter     { return set(stun.AttrRequestedAddressFamily, f, 0, 0, 0) }
func additional(f byte) stun.Setter { return set(attrAdditionalAddressFamily, f, 0, 0, 0) }
func evenPort(b byte) stun.Setter   { return set(stun.AttrEvenPort, b) }

func token(t ReservationToken) stun.Setter { return set(stun.AttrReservationToken, t[:]...) }

func ticket(value []byte) stun.Setter { return set(attrMobilityTicket, value...) }

func channel(n uint16) stun.Setter {
	return set(stun.AttrChannelNumber, byte(n>>8), byte(n), 0, 0)
}

// peer is XOR-PEER-ADDRESS.
type peer string

func (p peer) AddTo(m *stun.Message) error {
	addXOR(m, stun.AttrXORPeerAddress, addrPort(string(p)))
	return nil
}

func peers(list ...string) []stun.Setter {
	var out []stun.Setter
	for _, p := range list {
		out = append(out, peer(p))
	}
	return out
}

func txid(n int) (tx TransactionID) {
	copy(tx[:], fmt.Sprintf("%012d", n))
	return tx
}

// plain builds a request without a credential.
func plain(method stun.Method, tx TransactionID, attributes ...stun.Setter) []byte {
	m := stun.New()
	m.TransactionID = tx
	m.Type = stun.NewType(method, stun.ClassRequest)
	m.WriteHeader()
	for _, a := range attributes {
		if err := a.AddTo(m); err != nil {
			panic(err)
		}
	}
	return m.Raw
}

// signed builds a request of c with a nonce of g from m; tail follows MESSAGE-INTEGRITY.
func (c *caller) signed(g *Gate, m Moment, method stun.Method, tx TransactionID, attributes []stun.Setter, tail ...stun.Setter) []byte {
	all := append(c.credential(g.nonceFor(g.realms.main, c.Client, m)), attributes...)
	return plain(method, tx, append(append(all, c.key()), tail...)...)
}

// tb is what tests, benchmarks and laws have in common.
type tb interface {
	Helper()
	Errorf(string, ...any)
	Fatal(...any)
	Fatalf(string, ...any)
}

// core drives gate, rules and state as the server does.
type core struct {
	tb
	gate    *Gate
	rules   Rules
	state   *State
	now     Moment
	records []Record
	lastTx  int
	taken   map[netip.AddrPort]bool // ports that cannot be bound
	dialled Dialled                 // what becomes of connections to peers
	lazy    bool                    // expiry is left undone, as in a server that has much of it to do
}

func newCore(t tb) *core {
	c := &core{tb: t, gate: NewGate(testGateConfig()), rules: testRules(), state: NewState(), now: at(0)}
	c.record(EpochBegan{Log: LogID{9}, Epoch: 1})
	return c
}

// record applies events as one record.
func (c *core) record(events ...Event) {
	c.Helper()
	if len(events) == 0 {
		return
	}
	r := Record{First: c.state.Seq() + 1, Moment: c.now, Events: events}
	if err := c.state.Fold(r); err != nil {
		c.Fatal(err)
	}
	c.records = append(c.records, r)
}

// wait moves the clock on, and lets expire what is over then.
func (c *core) wait(d time.Duration) []Event {
	c.Helper()
	c.now.Uptime += d
	c.now.Wall += int64(d)
	if c.lazy {
		return nil
	}
	return c.expire()
}

func (c *core) expire() []Event {
	c.Helper()
	var all []Event
	for {
		events := Expire(c.state, c.now, 3)
		if len(events) == 0 {
			return all
		}
		c.record(events...)
		all = append(all, events...)
	}
}

// reboot is a start of the host after down, with the wall clock off by skew.
func (c *core) reboot(down, skew time.Duration) {
	c.Helper()
	c.now.Boot[0]++
	c.now.Uptime = 10 * time.Second
	c.now.Wall += int64(down + skew)
	c.record(ServerStarted{Version: "test"})
}

// do sends a request of who and yields the answer.
func (c *core) do(who *caller, method stun.Method, attributes ...stun.Setter) *answerSeen {
	c.Helper()
	c.lastTx++
	return c.send(who, who.signed(c.gate, c.now, method, txid(c.lastTx), attributes))
}

// send sends a frame from who and yields the answer, nil for none.
func (c *core) send(who *caller, frame []byte) *answerSeen {
	c.Helper()
	var held SealedToken
	if a := c.state.ByFiveTuple(who.FiveTuple); a != nil {
		held = a.Token
	}
	q, reply, err := c.gate.Admit(who.FiveTuple, frame, held, c.now)
	if err != nil {
		return nil
	}
	var events []Event
	if reply == nil {
		binary.BigEndian.PutUint64(q.Entropy[:], uint64(c.lastTx))
		events, reply = c.decide(q)
		c.record(events...)
	}
	seen := see(c, reply.Append(nil))
	seen.events = events
	if reply.key != nil {
		who.checkAnswer(c, seen.message)
	}
	if !bytes.Equal(seen.message.TransactionID[:], frame[8:20]) {
		c.Errorf("got an answer to transaction %x, want %x", seen.message.TransactionID, frame[8:20])
	}
	return seen
}

// checkAnswer holds the proof in an answer against the key of c: it is of one kind only, the
// one that goes with what the client knows (RFC 8489 section 9.2.4).
func (c *caller) checkAnswer(t tb, m *stun.Message) {
	t.Helper()
	want, other := stun.AttrMessageIntegrity, stun.AttrMessageIntegritySHA256
	if c.algorithm != 0 {
		want, other = other, want
	}
	list := m.Attributes
	i := slices.IndexFunc(list, func(a stun.RawAttribute) bool { return a.Type == want })
	if i < 0 || m.Contains(other) {
		t.Errorf("%v: got attributes %v, want %v and no %v", m.Type, list, want, other)
		return
	}
	again := stun.New()
	again.TransactionID, again.Type = m.TransactionID, m.Type
	again.WriteHeader()
	for _, a := range list[:i] {
		again.Add(a.Type, a.Value)
	}
	if err := c.key().AddTo(again); err != nil {
		t.Fatal(err)
	}
	if got := again.Attributes[i].Value; !bytes.Equal(got, list[i].Value) {
		t.Errorf("%v: got %v %x in the answer, want %x", m.Type, want, list[i].Value, got)
	}
}

// decide decides q, and makes sure that deciding changes nothing.
func (c *core) decide(q *Request) ([]Event, *Reply) {
	c.Helper()
	if !c.lazy {
		c.expire()
	}
	before := c.state.Image()
	d := Decide(c.state, &c.rules, q, c.now)
	if len(d.Ports) > 0 {
		d = DecideBound(c.state, &c.rules, q, c.now, c.bind(d.Ports...))
	}
	if d.Dial != nil {
		d = DecideDialled(c.state, &c.rules, q, *d.Dial, c.dialled, c.now)
	}
	if diff := cmp.Diff(before, c.state.Image(), byAddress...); diff != "" {
		c.Errorf("deciding a %v changed the state (-before +after):\n%s", q.Method, diff)
	}
	return d.Events, d.Reply
}

// bind is what can be bound of plans.
func (c *core) bind(plans ...PortPlan) (bound []netip.AddrPort) {
	for i := range plans {
		p := &plans[i]
		for a := range p.Candidates() {
			next := netip.AddrPortFrom(a.Addr(), a.Port()+1)
			if c.taken[a] || (p.Pair() && c.taken[next]) {
				continue
			}
			if bound = append(bound, a); p.Pair() {
				bound = append(bound, next)
			}
			break
		}
	}
	return bound
}

// reload puts the rules and the gate in force.
func (c *core) reload() []Event {
	c.Helper()
	events := Reconcile(c.state, &c.rules, c.gate, c.now)
	c.record(events...)
	return events
}

// byAddress lets cmp look at addresses.
var byAddress = []cmp.Option{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

// answerSeen is an answer as a client decodes it.
type answerSeen struct {
	message  *stun.Message
	code     int
	relayed  netip.AddrPort
	other    netip.AddrPort // the second relayed address
	lacks    lack
	mapped   netip.AddrPort
	lifetime int64 // -1 without LIFETIME
	token    ReservationToken
	ticket   []byte // MOBILITY-TICKET
	unknown  stun.UnknownAttributes
	servers  []netip.AddrPort // ALTERNATE-SERVER
	domain   string           // ALTERNATE-DOMAIN
	nonce    string
	realm    string
	offered  []byte // PASSWORD-ALGORITHMS
	events   []Event
}

func see(t tb, raw []byte) *answerSeen {
	t.Helper()
	s := &answerSeen{message: &stun.Message{Raw: raw}, lifetime: -1}
	if err := s.message.Decode(); err != nil {
		t.Fatalf("decode the answer %x: %v", raw, err)
	}
	var code stun.ErrorCodeAttribute
	if code.GetFrom(s.message) == nil {
		s.code = int(code.Code)
	}
	if got, want := s.message.Type.Class == stun.ClassErrorResponse, s.code != 0; got != want {
		t.Errorf("got an error response: %t, with code %d", got, s.code)
	}
	address := func(kind stun.AttrType) netip.AddrPort {
		var a stun.XORMappedAddress
		if a.GetFromAs(s.message, kind) != nil {
			return netip.AddrPort{}
		}
		ip, _ := netip.AddrFromSlice(a.IP)
		return netip.AddrPortFrom(ip, uint16(a.Port))
	}
	s.relayed, s.mapped = address(stun.AttrXORRelayedAddress), address(stun.AttrXORMappedAddress)
	if v, err := s.message.Get(stun.AttrLifetime); err == nil {
		s.lifetime = int64(binary.BigEndian.Uint32(v))
	}
	for i, list := 0, s.message.Attributes; i < len(list); i++ {
		if list[i].Type != stun.AttrXORRelayedAddress {
			continue
		}
		a, err := parseXOR(list[i].Value, raw[4:stunHeader])
		if err != nil {
			t.Errorf("got XOR-RELAYED-ADDRESS %x", list[i].Value)
		}
		if a != s.relayed {
			s.other = a
		}
	}
	if v, err := s.message.Get(attrAddressErrorCode); err == nil {
		s.lacks = lack{v[0], uint16(v[2])*100 + uint16(v[3])}
		if string(v[4:]) != reasonPhrases[int(s.lacks.code)] || v[1] != 0 {
			t.Errorf("got ADDRESS-ERROR-CODE %x", v)
		}
	}
	if v, err := s.message.Get(stun.AttrReservationToken); err == nil && copy(s.token[:], v) != len(v) {
		t.Errorf("got RESERVATION-TOKEN %x", v)
	}
	s.ticket, _ = s.message.Get(attrMobilityTicket)
	_ = s.unknown.GetFrom(s.message)
	for _, a := range s.message.Attributes {
		switch a.Type {
		case stun.AttrAlternateServer:
			s.servers = append(s.servers, plainAddress(t, a.Value))
		case stun.AttrAlternateDomain:
			s.domain = string(a.Value)
		}
	}
	var nonce stun.Nonce
	if nonce.GetFrom(s.message) == nil {
		s.nonce = nonce.String()
	}
	var realm stun.Realm
	if realm.GetFrom(s.message) == nil {
		s.realm = realm.String()
	}
	s.offered, _ = s.message.Get(stun.AttrPasswordAlgorithms)
	return s
}

// plainAddress decodes a value in the form of MAPPED-ADDRESS (RFC 8489 section 14.1).
func plainAddress(t tb, v []byte) netip.AddrPort {
	t.Helper()
	if len(v) < 8 || v[0] != 0 || (v[1] == 1) != (len(v) == 8) || (v[1] == 2) != (len(v) == 20) {
		t.Errorf("got address %x", v)
		return netip.AddrPort{}
	}
	ip, _ := netip.AddrFromSlice(v[4:])
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(v[2:]))
}

// codeOf is the code of an answer, -1 for no answer.
func codeOf(a *answerSeen) int {
	if a == nil {
		return -1
	}
	return a.code
}

// mustDo is do, which must lead to code.
func (c *core) mustDo(code int, who *caller, method stun.Method, attributes ...stun.Setter) *answerSeen {
	c.Helper()
	a := c.do(who, method, attributes...)
	if got := codeOf(a); got != code {
		c.Fatalf("%v of %s: got code %d, want %d", method, who.user, got, code)
	}
	return a
}

// allocated makes an allocation of who.
func (c *core) allocated(who *caller) *Allocation {
	c.Helper()
	c.mustDo(0, who, stun.MethodAllocate, transport(17))
	return c.state.ByFiveTuple(who.FiveTuple)
}

// describe writes an event in one line, without its transaction.
func describe(e Event) string {
	v := reflect.ValueOf(e)
	var b strings.Builder
	b.WriteString(v.Type().Name())
	for i := range v.NumField() {
		if name := v.Type().Field(i).Name; name != "Tx" {
			fmt.Fprintf(&b, " %s=%v", strings.ToLower(name), v.Field(i).Interface())
		}
	}
	return b.String()
}

func describeAll(events []Event) []string {
	var out []string
	for _, e := range events {
		out = append(out, describe(e))
	}
	return out
}

// fold is the state that records lead to.
func fold(t tb, records []Record) *State {
	t.Helper()
	s := NewState()
	for _, r := range records {
		if err := s.Fold(r); err != nil {
			t.Fatal(err)
		}
	}
	return s
}
