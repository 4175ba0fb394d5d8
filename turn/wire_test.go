package turn

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/pion/stun/v3"
)

func TestClassify(t *testing.T) {
	for _, tt := range []struct {
		name  string
		frame []byte
		want  FrameKind
	}{
		{"Empty", nil, FrameOther},
		{"Short", []byte{0x40, 0, 0}, FrameOther},
		{"STUN", sampleRequest, FrameSTUN},
		{"STUNHeaderCut", sampleRequest[:19], FrameOther},
		{"WrongCookie", append([]byte{0, 1, 0, 0, 1}, make([]byte, 20)...), FrameOther},
		{"ChannelData", []byte{0x40, 0, 0, 0}, FrameChannelData},
		{"ReservedChannel", []byte{0x7F, 0xFF, 0, 0}, FrameChannelData},
		{"DTLS", []byte{0x80, 1, 2, 3}, FrameOther},
		{"RTP", append([]byte{0xC0}, make([]byte, 30)...), FrameOther},
	} {
		if got := Classify(tt.frame); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestParseChannelData(t *testing.T) {
	for _, tt := range []struct {
		name  string
		frame string
		want  ChannelNumber
		data  string
		err   error
	}{
		{"Exact", "\x40\x00\x00\x03abc", 0x4000, "abc", nil},
		{"Padded", "\x40\x00\x00\x03abc\x00", 0x4000, "abc", nil},
		{"Oversized", "\x40\x00\x00\x03abcdefgh", 0x4000, "abc", nil},
		{"Empty", "\x7F\xFF\x00\x00", 0x7FFF, "", nil},
		{"EmptyPadded", "\x7F\xFF\x00\x00\x00\x00\x00\x00", 0x7FFF, "", nil},
		{"Truncated", "\x40\x00\x00\x04abc", 0, "", ErrFrame},
		{"OnlyHeader", "\x40\x00\x00\x01", 0, "", ErrFrame},
		{"HeaderCut", "\x40\x00\x00", 0, "", ErrFrame},
		{"Nothing", "", 0, "", ErrFrame},
		{"BelowTheRange", "\x3F\xFF\x00\x00", 0, "", ErrChannelNumber},
		{"AboveTheRange", "\x80\x00\x00\x00", 0, "", ErrChannelNumber},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, data, err := ParseChannelData([]byte(tt.frame))
			if n != tt.want || string(data) != tt.data || !errors.Is(err, tt.err) {
				t.Errorf("got %v, %q, %v, want %v, %q, %v", n, data, err, tt.want, tt.data, tt.err)
			}
			if err != nil {
				return
			}
			head := make([]byte, ChannelHeader)
			PutChannelHeader(head, n, len(data))
			if want := tt.frame[:4]; string(head) != want {
				t.Errorf("made the header %x, want %x", head, want)
			}
		})
	}
}

// indication builds an indication.
func indication(method stun.Method, attributes ...stun.Setter) []byte {
	raw := plain(method, txid(1), append([]stun.Setter{setterFunc(func(m *stun.Message) error {
		m.SetType(stun.NewType(method, stun.ClassIndication))
		return nil
	})}, attributes...)...)
	return raw
}

func TestParseSend(t *testing.T) {
	data := stun.RawAttribute{Type: stun.AttrData, Value: []byte("hello")}
	none := netip.AddrPort{}
	broken := indication(stun.MethodSend, peer(peerA), data, stun.Fingerprint)
	broken[len(broken)-9] ^= 1 // in the padding: only the fingerprint tells
	for _, tt := range []struct {
		name  string
		frame []byte
		peer  netip.AddrPort
		data  string
		df    bool
		err   error
	}{
		{"IPv4", indication(stun.MethodSend, peer(peerA), data), addrPort(peerA), "hello", false, nil},
		{"IPv6", indication(stun.MethodSend, peer(peerV6), data), addrPort(peerV6), "hello", false, nil},
		{"Mapped", indication(stun.MethodSend, rawPeer("[::ffff:203.0.113.5]:4000"), data), addrPort(peerA), "hello", false, nil},
		{"DataFirst", indication(stun.MethodSend, data, peer(peerA)), addrPort(peerA), "hello", false, nil},
		{"Empty", indication(stun.MethodSend, peer(peerA), set(stun.AttrData)), addrPort(peerA), "", false, nil},
		{"DontFragment", indication(stun.MethodSend, peer(peerA), data, set(stun.AttrDontFragment)), addrPort(peerA), "hello", true, nil},
		{"FirstOfDuplicates", indication(stun.MethodSend, peer(peerA), data, peer(peerB), set(stun.AttrData, 1)), addrPort(peerA), "hello", false, nil},
		{"Optional", indication(stun.MethodSend, set(0xFFFE, 1), peer(peerA), data, stun.NewSoftware("x")), addrPort(peerA), "hello", false, nil},
		{"Fingerprint", indication(stun.MethodSend, peer(peerA), data, stun.Fingerprint), addrPort(peerA), "hello", false, nil},
		{"WrongFingerprint", broken, none, "", false, ErrFrame},
		{"FingerprintNotLast", indication(stun.MethodSend, peer(peerA), stun.Fingerprint, data), none, "", false, ErrFrame},
		{"UnknownRequired", indication(stun.MethodSend, peer(peerA), data, set(0x7FFE)), none, "", false, ErrUnknown},
		{"NoPeer", indication(stun.MethodSend, data), none, "", false, ErrFrame},
		{"NoData", indication(stun.MethodSend, peer(peerA)), none, "", false, ErrFrame},
		{"MalformedPeer", indication(stun.MethodSend, set(stun.AttrXORPeerAddress, 0, 1, 2), data), none, "", false, ErrFrame},
		{"NoAttributes", indication(stun.MethodSend), none, "", false, ErrFrame},
		{"Nothing", nil, none, "", false, ErrFrame},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, d, df, err := ParseSend(tt.frame)
			if p != tt.peer || string(d) != tt.data || df != tt.df || !errors.Is(err, tt.err) {
				t.Errorf("got %v, %q, %t, %v, want %v, %q, %t, %v", p, d, df, err, tt.peer, tt.data, tt.df, tt.err)
			}
			for n := range tt.frame {
				if _, _, _, err := ParseSend(tt.frame[:n]); err == nil {
					t.Errorf("cut to %d bytes: got no error", n)
				}
			}
		})
	}
	if !IsSend(indication(stun.MethodSend)) || IsSend(indication(stun.MethodData)) || IsSend(plain(stun.MethodSend, txid(1))) {
		t.Error("IsSend does not tell Send indications from others")
	}
}

func TestDataIndicationDoesNotAllocate(t *testing.T) {
	data := make([]byte, 1000)
	for _, p := range []string{peerA, peerV6} {
		dst, to, tx := make([]byte, 0, len(data)+DataIndicationOverhead), addrPort(p), txid(1)
		if got := testing.AllocsPerRun(100, func() { AppendDataIndication(dst, tx, to, data) }); got != 0 {
			t.Errorf("%s: got %v allocations, want 0", p, got)
		}
	}
}

func TestPackedAddress(t *testing.T) {
	for _, a := range []netip.AddrPort{{}, addrPort(peerA), addrPort(peerV6), addrPort("0.0.0.0:0"), addrPort("[::]:0"), addrPort("255.255.255.255:65535")} {
		if got := pack(a).unpack(); got != a {
			t.Errorf("got %v back, want %v", got, a)
		}
	}
}

func FuzzParseChannelData(f *testing.F) {
	f.Add([]byte("\x40\x00\x00\x03abc\x00"))
	f.Add([]byte("\x7F\xFF\x00\x00"))
	f.Add([]byte("\x40\x00\xFF\xFFabc"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, data, err := ParseChannelData(b)
		if err != nil {
			if data != nil || n != 0 {
				t.Errorf("got %v and %x with %v", n, data, err)
			}
			return
		}
		if Classify(b) != FrameChannelData {
			t.Error("a ChannelData message is not classified as one")
		}
		out := make([]byte, ChannelHeader)
		PutChannelHeader(out, n, len(data))
		if out = append(out, data...); !bytes.HasPrefix(b, out) {
			t.Errorf("got %x made of what was parsed, want a prefix of %x", out, b)
		}
	})
}

// FuzzParseSend holds ParseSend against pion's decoder.
func FuzzParseSend(f *testing.F) {
	data := stun.RawAttribute{Type: stun.AttrData, Value: []byte("hello")}
	for _, seed := range [][]stun.Setter{
		{peer(peerA), data},
		{peer(peerV6), data, stun.Fingerprint},
		{data, set(stun.AttrDontFragment), peer(peerA), peer(peerB)},
		{set(0x7FFE)},
		{set(stun.AttrXORPeerAddress, 1), data},
	} {
		f.Add(indication(stun.MethodSend, seed...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		p, payload, _, err := ParseSend(b)
		if !bytes.Equal(b, before) {
			t.Fatal("the frame was changed")
		}
		if err != nil {
			return
		}
		if len(b) < stunHeader || Classify(b) != FrameSTUN {
			return // the caller has classified it
		}
		m := &stun.Message{Raw: bytes.Clone(b)}
		if err := m.Decode(); err != nil {
			t.Fatalf("pion refuses what is accepted: %v", err)
		}
		if want, err := m.Get(stun.AttrData); err != nil || !bytes.Equal(want, payload) {
			t.Errorf("got data %x, pion %x, %v", payload, want, err)
		}
		value, err := m.Get(stun.AttrXORPeerAddress)
		if err != nil {
			t.Fatalf("pion finds no peer: %v", err)
		}
		comparePeer(t, p, value, m.TransactionID)
		if m.Contains(stun.AttrFingerprint) && stun.Fingerprint.Check(m) != nil {
			t.Error("a wrong FINGERPRINT is accepted")
		}
	})
}

// comparePeer has pion decode value.
func comparePeer(t *testing.T, got netip.AddrPort, value []byte, tx [stun.TransactionIDSize]byte) {
	t.Helper()
	value = slices.Clone(value)
	value[0] = 0 // which receivers ignore, and pion does not
	m := stun.New()
	m.TransactionID = tx
	m.WriteHeader()
	m.Add(stun.AttrXORPeerAddress, value)
	var want stun.XORMappedAddress
	if err := want.GetFromAs(m, stun.AttrXORPeerAddress); err != nil {
		t.Fatalf("pion refuses %x: %v", value, err)
	}
	if !want.IP.Equal(net.IP(got.Addr().AsSlice())) || want.Port != int(got.Port()) {
		t.Errorf("got %v, pion %v", got, want)
	}
	if got.Addr().Is4In6() || got.Addr().Zone() != "" {
		t.Errorf("got %v, which is not canonical", got)
	}
}

func FuzzParseXOR(f *testing.F) {
	f.Add([]byte{0, 1, 0xA1, 0x47, 0xE1, 0x12, 0xA6, 0x43}, []byte("123456789012"))
	f.Add(append([]byte{0, 2, 1, 2}, make([]byte, 16)...), []byte("123456789012"))
	f.Add([]byte{0, 3}, []byte{})
	f.Fuzz(func(t *testing.T, value, id []byte) {
		var cookie [16]byte
		binary.BigEndian.PutUint32(cookie[:], stunMagic)
		copy(cookie[4:], id)
		got, err := parseXOR(value, cookie[:])
		wellFormed := len(value) >= 2 && (value[1] == 1 && len(value) == 8 || value[1] == 2 && len(value) == 20)
		if (err == nil) != wellFormed {
			t.Fatalf("got %v, %v for %x", got, err, value)
		}
		if err == nil {
			comparePeer(t, got, value, [12]byte(cookie[4:]))
		}
	})
}

func FuzzAppendDataIndication(f *testing.F) {
	f.Add([]byte{203, 0, 113, 5}, uint16(4000), []byte("hello"), []byte("123456789012"))
	f.Add(addr("2001:db8::5").AsSlice(), uint16(0), []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, ip []byte, port uint16, data, id []byte) {
		a, ok := netip.AddrFromSlice(ip)
		if !ok || len(data) > 65535-100 {
			t.Skip("no address, or more than a datagram")
		}
		p := Canonical(netip.AddrPortFrom(a, port))
		var tx TransactionID
		copy(tx[:], id)
		prefix := []byte("what is there already")
		out := AppendDataIndication(slices.Clone(prefix), tx, p, data)
		if !bytes.HasPrefix(out, prefix) || len(out) > len(prefix)+len(data)+DataIndicationOverhead {
			t.Fatalf("got %d bytes for %d of data", len(out)-len(prefix), len(data))
		}
		m := &stun.Message{Raw: out[len(prefix):]}
		if err := m.Decode(); err != nil {
			t.Fatal(err)
		}
		if m.Type != stun.NewType(stun.MethodData, stun.ClassIndication) || m.TransactionID != [12]byte(tx) || len(m.Attributes) != 2 {
			t.Errorf("got %v", m)
		}
		if int(m.Length)+stunHeader != len(m.Raw) {
			t.Errorf("got length %d of %d bytes", m.Length, len(m.Raw))
		}
		if got, err := m.Get(stun.AttrData); err != nil || !bytes.Equal(got, data) {
			t.Errorf("got DATA %x, %v, want %x", got, err, data)
		}
		value, err := m.Get(stun.AttrXORPeerAddress)
		if err != nil {
			t.Fatal(err)
		}
		comparePeer(t, p, value, m.TransactionID)
	})
}

func FuzzAppendICMPIndication(f *testing.F) {
	f.Add(true, byte(3), byte(4), uint32(1280), []byte{203, 0, 113, 5}, uint16(4000))
	f.Add(false, byte(2), byte(0), uint32(1280), addr("2001:db8::5").AsSlice(), uint16(4000))
	f.Add(false, byte(1), byte(255), uint32(9), addr("2001:db8::5").AsSlice(), uint16(1))
	f.Fuzz(func(t *testing.T, v4 bool, kind, code byte, mtu uint32, ip []byte, port uint16) {
		a, ok := netip.AddrFromSlice(ip)
		if !ok {
			t.Skip("no address")
		}
		e, told := TellICMP(v4, kind, code, mtu)
		want := map[bool][]byte{true: {3, 11}, false: {1, 2, 3}}[v4]
		if told != bytes.Contains(want, []byte{kind}) {
			t.Fatalf("got told %t of type %d, IPv4 %t", told, kind, v4)
		}
		if !told {
			return
		}
		tooBig := v4 && kind == 3 && code == 4 || !v4 && kind == 2
		if (e.MTU != 0) != (tooBig && mtu != 0) {
			t.Errorf("got MTU %d for type %d code %d", e.MTU, kind, code)
		}
		p := Canonical(netip.AddrPortFrom(a, port))
		out := AppendICMPIndication([]byte("before"), TransactionID{1}, p, e)[len("before"):]
		m := &stun.Message{Raw: out}
		if err := m.Decode(); err != nil || len(out) > ICMPIndicationSize {
			t.Fatalf("got %d bytes, %v", len(out), err)
		}
		if m.Type != stun.NewType(stun.MethodData, stun.ClassIndication) || m.TransactionID != [12]byte{1} || len(m.Attributes) != 2 {
			t.Errorf("got %v", m)
		}
		value, err := m.Get(attrICMP)
		if err != nil || len(value) != 8 || value[0] != 0 || value[1] != 0 {
			t.Fatalf("got ICMP %x, %v", value, err)
		}
		both := binary.BigEndian.Uint16(value[2:])
		if byte(both>>9) != kind || both&0x1ff != uint16(code) || binary.BigEndian.Uint32(value[4:]) != e.MTU {
			t.Errorf("got ICMP %x for type %d, code %d, MTU %d", value, kind, code, e.MTU)
		}
		if value, err = m.Get(stun.AttrXORPeerAddress); err != nil {
			t.Fatal(err)
		}
		comparePeer(t, p, value, m.TransactionID)
	})
}

// FuzzAdmit throws frames at a gate, raw and as the body of a request with a right credential: over UDP or TCP, of any
// method, at a listener where NAT behaviour is discovered.
func FuzzAdmit(f *testing.F) {
	config := testGateConfig()
	server := addrPort(testServer)
	other := netip.AddrPortFrom(server.Addr().Next(), server.Port()+1)
	config.Discoveries = []Discovery{{Addresses: [2]netip.Addr{server.Addr(), other.Addr()}, Ports: [2]uint16{server.Port(), other.Port()}}}
	g, now := NewGate(config), at(0)
	methods := []stun.Method{
		stun.MethodBinding, stun.MethodAllocate, stun.MethodRefresh, stun.MethodCreatePermission, stun.MethodChannelBind,
		stun.MethodConnect, stun.MethodConnectionBind, stun.MethodSend,
	}
	const signs, overTCP, methodBits = 1, 2, 2
	for _, seed := range [][]byte{
		sampleRequest, sampleLongTerm, sampleResponseIPv4,
		alice().signed(g, now, stun.MethodAllocate, txid(1), []stun.Setter{transport(17), lifetime(9)}, stun.Fingerprint),
		alice().signed(g, now, stun.MethodCreatePermission, txid(1), peers(peerA, peerV6)),
		alice().signed(g, now, stun.MethodChannelBind, txid(1), []stun.Setter{channel(0x4000), peer(peerA)}),
		plain(stun.MethodRefresh, txid(1), lifetime(0), set(0x7FFE)),
		bob().signed(g, now, stun.MethodAllocate, txid(1), []stun.Setter{transport(17), token(ReservationToken{1})}),
		bob().signed(g, now, stun.MethodAllocate, txid(1), []stun.Setter{transport(17), evenPort(0x80), set(stun.AttrDontFragment)}),
		bob().signed(g, now, stun.MethodAllocate, txid(1), []stun.Setter{transport(17), additional(2)}),
		bob().signed(g, now, stun.MethodAllocate, txid(1), []stun.Setter{transport(17), ticket(nil)}),
		bob().signed(g, now, stun.MethodRefresh, txid(1), []stun.Setter{lifetime(0), set(stun.AttrRequestedAddressFamily, 1, 0, 0, 0), ticket(make([]byte, 60))}),
		bob().signed(g, now, stun.MethodConnect, txid(1), []stun.Setter{peer(peerA)}),
		bob().with(algorithmSHA256, true).signed(g, now, stun.MethodConnectionBind, txid(1), []stun.Setter{set(stun.AttrConnectionID, 1, 2, 3, 4)}),
		plain(stun.MethodBinding, txid(1), set(stun.AttrChangeRequest, 0, 0, 0, 6), set(stun.AttrPadding, make([]byte, 64)...)),
		plain(stun.MethodBinding, txid(1), set(stun.AttrResponsePort, 1, 2, 0, 0)),
		plain(stun.MethodAllocate, txid(1), set(stun.AttrOrigin, []byte("https://north.example.org")...)),
		plain(stun.MethodAllocate, txid(1), set(attrAccessToken, make([]byte, 80)...)),
	} {
		for how := range byte(len(methods)) << methodBits {
			if how&signs == 0 && how>>methodBits != 0 { // the method is in the frame
				continue
			}
			if how&signs != 0 {
				f.Add(seed[stunHeader:], how)
			} else {
				f.Add(seed, how)
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, how byte) {
		c := newCore(t)
		c.gate = g
		sign, who := how&signs != 0, alice()
		if how&overTCP != 0 {
			who = who.over(TCP)
		}
		c.allocated(who)
		frame := b
		if sign {
			if len(b) > 4096 {
				t.Skip("long enough")
			}
			method := methods[how>>methodBits%byte(len(methods))]
			frame = who.signed(g, c.now, method, txid(9), []stun.Setter{attributesOf(b)})
			sign = method != stun.MethodBinding // which nobody authenticates
		}
		before := bytes.Clone(frame)
		q, reply, err := c.gate.Admit(who.FiveTuple, frame, nil, c.now)
		if !bytes.Equal(frame, before) {
			t.Fatal("the frame was changed")
		}
		n := 0
		for _, is := range []bool{q != nil, reply != nil, err != nil} {
			if is {
				n++
			}
		}
		if n != 1 {
			t.Fatalf("got %v, %v, %v, want one of them", q, reply, err)
		}
		if sign && reply != nil && reply.Unauthenticated {
			t.Errorf("got code %d for a right credential", reply.Code)
		}
		if q != nil && q.Username == "" {
			t.Errorf("got %+v admitted", q)
		}
		if err != nil {
			return
		}
		if reply == nil {
			_, reply = c.decide(q)
		}
		see(t, reply.Append(nil))
	})
}

// attributesOf appends the attributes that b, read as such, holds, but for those of the credential.
func attributesOf(b []byte) stun.Setter {
	return setterFunc(func(m *stun.Message) error {
		for len(b) >= 4 {
			kind, n := stun.AttrType(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:]))
			b = b[4:]
			n = min(n, len(b))
			switch kind {
			case stun.AttrMessageIntegrity, stun.AttrMessageIntegritySHA256, stun.AttrFingerprint,
				stun.AttrUserhash, stun.AttrPasswordAlgorithm, stun.AttrPasswordAlgorithms:
			default:
				m.Add(kind, b[:n])
			}
			b = b[min((n+3)&^3, len(b)):]
		}
		return nil
	})
}
