package turn

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/pion/stun/v3"
)

func changeRequest(flags byte) stun.Setter { return set(stun.AttrChangeRequest, 0, 0, 0, flags) }

func padding(n int) stun.Setter { return set(stun.AttrPadding, make([]byte, n)...) }

// discoverySeen is what an answer to a Binding request says besides XOR-MAPPED-ADDRESS.
type discoverySeen struct {
	mapped, origin, other netip.AddrPort
	padding               int // bytes, -1 without PADDING
}

func seeDiscovery(t tb, m *stun.Message) discoverySeen {
	t.Helper()
	s := discoverySeen{padding: -1}
	for _, a := range m.Attributes {
		switch a.Type {
		case stun.AttrMappedAddress:
			s.mapped = plainAddress(t, a.Value)
		case stun.AttrResponseOrigin:
			s.origin = plainAddress(t, a.Value)
		case stun.AttrOtherAddress:
			s.other = plainAddress(t, a.Value)
		case stun.AttrPadding:
			s.padding = len(a.Value)
		}
	}
	return s
}

// TestDiscovery holds RFC 5780 sections 6 and 7, by number in the names.
func TestDiscovery(t *testing.T) {
	const a1p1, a1p2, a2p1, a2p2 = "192.0.2.1:3478", "192.0.2.1:3479", "192.0.2.2:3478", "192.0.2.2:3479"
	config := testGateConfig()
	config.Discoveries = FindDiscoveries([]netip.AddrPort{addrPort(a1p1), addrPort(a2p2), addrPort(a1p2), addrPort(a2p1)})
	gate := NewGate(config)
	for _, tt := range []struct {
		name       string
		server     string // empty: a1p1
		protocol   Protocol
		attributes []stun.Setter
		code       int
		origin     string
		other      string
		port       uint16
		padding    int // 0: none
		unknown    []stun.AttrType
	}{
		{name: "6.1Plain", origin: a1p1, other: a2p2},
		{name: "6.1NoFlags", attributes: []stun.Setter{changeRequest(0)}, origin: a1p1, other: a2p2},
		{name: "6.1ChangeIP", attributes: []stun.Setter{changeRequest(4)}, origin: a2p1, other: a2p2},
		{name: "6.1ChangePort", attributes: []stun.Setter{changeRequest(2)}, origin: a1p2, other: a2p2},
		{name: "6.1ChangeBoth", attributes: []stun.Setter{changeRequest(6)}, origin: a2p2, other: a2p2},
		{name: "6.1ChangeBothBack", server: a2p2, attributes: []stun.Setter{changeRequest(6)}, origin: a1p1, other: a1p1},
		{name: "6.1ChangePortThere", server: a2p1, attributes: []stun.Setter{changeRequest(2)}, origin: a2p2, other: a1p2},
		{name: "7.2OtherBitsMeanNothing", attributes: []stun.Setter{set(stun.AttrChangeRequest, 0xff, 0xff, 0xff, 0xf9)}, origin: a1p1, other: a2p2},
		{name: "7.2Malformed", attributes: []stun.Setter{set(stun.AttrChangeRequest, 6)}, code: 400},
		{name: "7.5ResponsePort", attributes: []stun.Setter{set(stun.AttrResponsePort, 0x12, 0x34, 0, 0)}, origin: a1p1, other: a2p2, port: 0x1234},
		{name: "7.5ResponsePortOfTwoBytes", attributes: []stun.Setter{set(stun.AttrResponsePort, 0x12, 0x34)}, origin: a1p1, other: a2p2, port: 0x1234},
		{name: "7.5ResponsePortFromElsewhere", attributes: []stun.Setter{set(stun.AttrResponsePort, 0x12, 0x34), changeRequest(6)}, origin: a2p2, other: a2p2, port: 0x1234},
		{name: "7.5PortZero", attributes: []stun.Setter{set(stun.AttrResponsePort, 0, 0, 0, 0)}, code: 400},
		{name: "7.5Malformed", attributes: []stun.Setter{set(stun.AttrResponsePort, 1)}, code: 400},
		{name: "6.1PaddingAndResponsePort", attributes: []stun.Setter{set(stun.AttrResponsePort, 0x12, 0x34, 0, 0), padding(1500)}, code: 400},
		{name: "6.1Padding", attributes: []stun.Setter{padding(1500)}, origin: a1p1, other: a2p2, padding: 1500},
		{name: "10PaddingAmplifiesNothing", attributes: []stun.Setter{padding(4)}, origin: a1p1, other: a2p2, padding: 4},
		{name: "7.6MultipleOfFour", attributes: []stun.Setter{padding(5)}, origin: a1p1, other: a2p2, padding: 8},
		{name: "10LongPaddingIsCut", attributes: []stun.Setter{padding(60000)}, origin: a1p1, other: a2p2, padding: 1500},
		{name: "6NoSecondAddress", server: "192.0.2.3:3478", attributes: []stun.Setter{changeRequest(2)}, code: 420, unknown: []stun.AttrType{stun.AttrChangeRequest}},
		{
			name: "6NoSecondAddressNoneOfIt", server: "192.0.2.3:3478", code: 420, attributes: []stun.Setter{padding(4), set(stun.AttrResponsePort, 0x12, 0x34, 0, 0)},
			unknown: []stun.AttrType{stun.AttrPadding, stun.AttrResponsePort},
		},
		{name: "7.4NoOtherAddressThere", server: "192.0.2.3:3478"},
		{name: "6NotOnStreams", protocol: TCP, attributes: []stun.Setter{changeRequest(2)}, code: 420, unknown: []stun.AttrType{stun.AttrChangeRequest}},
		{name: "7.4NotOnStreams", protocol: TLS},
		{name: "OthersStayUnknown", attributes: []stun.Setter{changeRequest(2), set(0x7FFE)}, code: 420, unknown: []stun.AttrType{0x7FFE}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			who := alice()
			who.Server, who.Protocol = addrPort(cmpOr(tt.server, a1p1)), max(tt.protocol, UDP)
			_, reply, err := gate.Admit(who.FiveTuple, plain(stun.MethodBinding, txid(1), tt.attributes...), nil, at(0))
			if err != nil || !reply.Unauthenticated {
				t.Fatalf("got %+v, %v, want an answer whose rate is limited", reply, err)
			}
			got := see(t, reply.Append(nil))
			if got.code != tt.code || !slices.Equal(got.unknown, tt.unknown) {
				t.Fatalf("got code %d and UNKNOWN-ATTRIBUTES %v, want %d and %v", got.code, got.unknown, tt.code, tt.unknown)
			}
			want := discoverySeen{padding: -1}
			if tt.padding > 0 {
				want.padding = tt.padding
			}
			if tt.origin != "" {
				want.mapped, want.origin, want.other = who.Client, addrPort(tt.origin), addrPort(tt.other)
			}
			if seen := seeDiscovery(t, got.message); seen != want {
				t.Errorf("got %+v, want %+v", seen, want)
			}
			if reply.Origin != want.origin {
				t.Errorf("it is sent from %v, want %v", reply.Origin, want.origin)
			}
			to := who.Client
			if tt.port != 0 {
				to = netip.AddrPortFrom(to.Addr(), tt.port)
			}
			if reply.To(who.Client) != to {
				t.Errorf("it is sent to %v, want %v", reply.To(who.Client), to)
			}
			if wantMapped := tt.code == 0; got.mapped.IsValid() != wantMapped {
				t.Errorf("got XOR-MAPPED-ADDRESS %v, want one: %t", got.mapped, wantMapped)
			}
		})
	}
}

func cmpOr(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// TestDiscoveryIsOfBindingRequests: elsewhere its attributes are not known (RFC 5780 section 7).
func TestDiscoveryIsOfBindingRequests(t *testing.T) {
	config := testGateConfig()
	config.Discoveries = FindDiscoveries([]netip.AddrPort{addrPort("192.0.2.1:3478"), addrPort("192.0.2.2:3479"), addrPort("192.0.2.1:3479"), addrPort("192.0.2.2:3478")})
	c := newCore(t)
	c.gate = NewGate(config)
	c.mustDo(420, alice(), stun.MethodAllocate, transport(17), changeRequest(2))
}

func TestFindDiscoveries(t *testing.T) {
	for _, tt := range []struct {
		name      string
		listeners []string
		want      []Discovery
	}{
		{"None", nil, nil},
		{"TwoPorts", []string{"192.0.2.1:1", "192.0.2.1:2"}, nil},
		{"Diagonal", []string{"192.0.2.1:1", "192.0.2.2:2"}, nil},
		{"Three", []string{"192.0.2.1:1", "192.0.2.2:2", "192.0.2.1:2"}, nil},
		{"Four", []string{"192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1", "192.0.2.2:2"}, []Discovery{
			{[2]netip.Addr{addr("192.0.2.1"), addr("192.0.2.2")}, [2]uint16{1, 2}},
		}},
		{"FirstOfMany", []string{
			"192.0.2.9:1", "192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1", "192.0.2.2:2", "192.0.2.3:1", "192.0.2.3:2",
		}, []Discovery{{[2]netip.Addr{addr("192.0.2.1"), addr("192.0.2.2")}, [2]uint16{1, 2}}}},
		{"BothFamilies", []string{
			"192.0.2.1:1", "[2001:db8::1]:1", "192.0.2.1:2", "[2001:db8::1]:2", "192.0.2.2:1", "[2001:db8::2]:1", "192.0.2.2:2", "[2001:db8::2]:2",
		}, []Discovery{
			{[2]netip.Addr{addr("192.0.2.1"), addr("192.0.2.2")}, [2]uint16{1, 2}},
			{[2]netip.Addr{addr("2001:db8::1"), addr("2001:db8::2")}, [2]uint16{1, 2}},
		}},
	} {
		var listeners []netip.AddrPort
		for _, l := range tt.listeners {
			listeners = append(listeners, addrPort(l))
		}
		if got := FindDiscoveries(listeners); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}
