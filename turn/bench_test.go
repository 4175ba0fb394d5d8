package turn

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/stun/v3"
)

// BenchmarkAdmit is the gate's part of a request that is let through.
func BenchmarkAdmit(b *testing.B) {
	bare := testGateConfig()
	bare.Secrets = nil
	limited := timeLimitedCaller("carol", "north", at(time.Hour), "198.51.100.3:5000")
	for _, tt := range []struct {
		name   string
		config GateConfig
		who    *caller
		code   int
	}{
		{"Static", bare, alice(), 0},
		{"StaticBesideSecrets", testGateConfig(), alice(), 0},
		{"TimeLimited", testGateConfig(), limited, 0},
		{"SHA256", bare, alice().with(algorithmSHA256, false), 0},
		{"Anonymous", bare, alice().with(algorithmSHA256, true), 0},
		{"WrongPassword", bare, newCaller("alice", "wrong", "198.51.100.1:5000"), 401},
	} {
		b.Run(tt.name, func(b *testing.B) {
			g, now := NewGate(tt.config), at(0)
			frame := tt.who.signed(g, now, stun.MethodChannelBind, txid(1), []stun.Setter{channel(0x4000), peer(peerA)})
			b.ReportAllocs()
			for b.Loop() {
				_, reply, err := g.Admit(tt.who.FiveTuple, frame, nil, now)
				if err != nil || (reply == nil) != (tt.code == 0) {
					b.Fatal(reply, err)
				}
			}
		})
	}
	b.Run("Challenge", func(b *testing.B) {
		g, now := NewGate(bare), at(0)
		frame := plain(stun.MethodAllocate, txid(1), transport(17))
		dst := make([]byte, 0, 1500)
		b.ReportAllocs()
		for b.Loop() {
			_, reply, _ := g.Admit(alice().FiveTuple, frame, nil, now)
			dst = reply.Append(dst[:0])
		}
	})
}

// admitted is a request of a client by number, past the gate.
func admitted(b *testing.B, client int, method stun.Method, attributes ...stun.Setter) *Request {
	b.Helper()
	g, now := NewGate(testGateConfig()), at(0)
	who := newCaller("alice", "wonderland", fmt.Sprintf("198.51.%d.%d:%d", 100+client>>16, client>>8&255, 1024+client&255))
	q, reply, err := g.Admit(who.FiveTuple, who.signed(g, now, method, txid(1), attributes), nil, now)
	if q == nil {
		b.Fatal(reply, err)
	}
	return q
}

// BenchmarkAllocate decides, applies and encodes the answer, each for another client.
// Every 10,000 the allocations end, as they would in a server of that size.
func BenchmarkAllocate(b *testing.B) {
	s, rules, now := NewState(), testRules(), at(0)
	s.Begin(now)
	s.NextDeadline() // as a server has it
	q := admitted(b, 0, stun.MethodAllocate, transport(17))
	dst := make([]byte, 0, 1500)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		now.Uptime += 50 * time.Microsecond
		q.FiveTuple.Client = netip.AddrPortFrom(addr("198.51.100.1"), uint16(n%10_000+1024))
		binary.BigEndian.PutUint64(q.Tx[:], uint64(n))
		binary.BigEndian.PutUint64(q.Entropy[:], uint64(n))
		if a := s.ByFiveTuple(q.FiveTuple); a != nil {
			s.Begin(now)
			mustApply(b, s, AllocationExpired{Allocation: a.ID})
		}
		d := Decide(s, &rules, q, now)
		for a := range d.Ports[0].Candidates() {
			d = DecideBound(s, &rules, q, now, []netip.AddrPort{a})
			break
		}
		s.Begin(now)
		mustApply(b, s, d.Events...)
		dst = d.Reply.Append(dst[:0])
	}
}

// BenchmarkChannelBind is a new channel each time, on 256 allocations in turn.
func BenchmarkChannelBind(b *testing.B) {
	s, rules, now := NewState(), testRules(), at(0)
	rules.MaxChannels, rules.MaxPermissions = 1024, 1024
	s.Begin(now)
	s.NextDeadline()
	requests := make([]*Request, 256)
	for i := range requests {
		q := admitted(b, i, stun.MethodChannelBind, channel(0x4000), peer(peerA))
		requests[i] = q
		mustApply(b, s, AllocationCreated{
			Allocation: AllocationID(i + 1), FiveTuple: q.FiveTuple, Username: q.Username,
			Relayed: []netip.AddrPort{netip.AddrPortFrom(addr("192.0.2.1"), uint16(50_000+i))}, Lifetime: 1 << 31,
		})
	}
	dst := make([]byte, 0, 1500)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		now.Uptime += 20 * time.Microsecond
		q := requests[n%len(requests)]
		c := n / len(requests) % 200
		q.channel = ChannelFirst + ChannelNumber(c)
		q.peers[0] = netip.AddrPortFrom(q.peers[0].Addr(), uint16(1+c))
		binary.BigEndian.PutUint64(q.Tx[:], uint64(n))
		d := Decide(s, &rules, q, now)
		s.Begin(now)
		mustApply(b, s, d.Events...)
		if dst = d.Reply.Append(dst[:0]); d.Reply.Code != 0 {
			b.Fatal(d.Reply.Code)
		}
	}
}

// BenchmarkCreatePermissions refreshes a thousand permissions with each request.
func BenchmarkCreatePermissions(b *testing.B) {
	s, rules, now := NewState(), testRules(), at(0)
	rules.MaxPermissions = 1024
	s.Begin(now)
	s.NextDeadline()
	var list []stun.Setter
	for i := range 1000 {
		list = append(list, peer(fmt.Sprintf("203.0.%d.%d:9", 113+i>>8, i&255)))
	}
	q := admitted(b, 0, stun.MethodCreatePermission, list...)
	mustApply(b, s, AllocationCreated{
		Allocation: 1, FiveTuple: q.FiveTuple, Username: q.Username,
		Relayed: []netip.AddrPort{addrPort("192.0.2.1:50000")}, Lifetime: 1 << 31,
	})
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		now.Uptime += time.Millisecond
		binary.BigEndian.PutUint64(q.Tx[:], uint64(n))
		d := Decide(s, &rules, q, now)
		s.Begin(now)
		mustApply(b, s, d.Events...)
		s.NextDeadline()
	}
}

// BenchmarkFullRange asks for a port where there is none.
func BenchmarkFullRange(b *testing.B) {
	s := NewState()
	used := new(portSet)
	for i := range used {
		used[i] = ^uint64(0)
	}
	s.ports[addr("192.0.2.1")] = used
	p := &PortPlan{state: s, ip: addr("192.0.2.1"), first: 1024, last: 65535}
	for n := 0; b.Loop(); n++ {
		p.entropy[0] = byte(n)
		for a := range p.Candidates() {
			b.Fatal(a)
		}
	}
}

func mustApply(b *testing.B, s *State, events ...Event) {
	for _, e := range events {
		if err := s.Apply(e); err != nil {
			b.Fatal(err)
		}
	}
}
