package test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun/v3"
)

// grants are what one client holds.
type grants struct {
	relayed     string // empty: no allocation; anyRelayed: not known which
	permissions map[string]bool
	channels    map[string]string // number to peer
}

const anyRelayed = "any"

func newGrants() grants {
	return grants{permissions: map[string]bool{}, channels: map[string]string{}}
}

func (g *grants) bind(channel uint16, peer netip.AddrPort) {
	g.channels[fmt.Sprintf("0x%04x", channel)] = peer.String()
	g.permissions[peer.Addr().String()] = true
}

// grantsOf are what the server lists, nothing for the zero allocation.
func grantsOf(a allocation) grants {
	g := newGrants()
	if len(a.Relayed) > 0 {
		g.relayed = a.Relayed[0]
	}
	for _, p := range a.Permissions {
		g.permissions[p.Peer] = true
	}
	for _, c := range a.Channels {
		g.channels[c.Number] = c.Peer
	}
	return g
}

// holds says whether got is what g wants.
func (g grants) holds(got grants) bool {
	relayed := g.relayed == got.relayed || g.relayed == anyRelayed && got.relayed != ""
	return relayed && maps.Equal(g.permissions, got.permissions) && maps.Equal(g.channels, got.channels)
}

func (g grants) diff(got grants) string { return cmp.Diff(g, got, cmp.AllowUnexported(grants{})) }

// step is one request of a client, and what it changes where it is granted.
type step struct {
	request *stun.Message
	apply   func(g *grants, answer *stun.Message) // answer is nil where none came
	answer  *stun.Message
}

// ledger is what one client asked for, one request after the other, and what it was answered. Only the last
// request can have no answer.
type ledger struct {
	client   *client
	steps    []step
	answered grants // by all answered steps
	failed   error  // a refusal
}

func newLedger(c *client) *ledger { return &ledger{client: c, answered: newGrants()} }

// ask makes a request and notes the answer. It says whether there was one before ctx ended.
func (g *ledger) ask(ctx context.Context, m *stun.Message, apply func(*grants, *stun.Message)) bool {
	if ctx.Err() != nil {
		return false
	}
	g.steps = append(g.steps, step{request: m, apply: apply})
	last := &g.steps[len(g.steps)-1]
	for ctx.Err() == nil {
		answer, err := g.client.exchange(m, 50*time.Millisecond)
		if err != nil {
			continue
		}
		if err := refusalOf(answer); err != nil {
			g.failed = fmt.Errorf("%v: %w", m.Type, err)
			return false
		}
		last.answer = answer
		apply(&g.answered, answer)
		return true
	}
	return false
}

// live asks for an allocation and for all that it can hold, until ctx ends or it is done. A mortal
// one is deleted at the end.
func (g *ledger) live(ctx context.Context, mortal bool) {
	c := g.client
	peer := func(i int) netip.AddrPort { return addr(fmt.Sprintf("127.0.2.%d:%d", i, 4000+i)) }
	bind := func(i int) bool {
		channel := uint16(0x4000 + i)
		return g.ask(ctx, c.request(stun.MethodChannelBind, number(channel), xor(peer(i))), func(s *grants, _ *stun.Message) {
			s.bind(channel, peer(i))
		})
	}
	ok := g.ask(ctx, c.request(stun.MethodAllocate, transport()), func(s *grants, answer *stun.Message) {
		s.relayed = anyRelayed
		if answer != nil {
			s.relayed = relayedIn(answer).String()
		}
	}) && bind(1) && bind(2) &&
		g.ask(ctx, c.request(stun.MethodCreatePermission, xor(peer(11)), xor(peer(12)), xor(peer(13))), func(s *grants, _ *stun.Message) {
			for i := 11; i <= 13; i++ {
				s.permissions[peer(i).Addr().String()] = true
			}
		}) &&
		g.ask(ctx, c.request(stun.MethodRefresh, lifetime(900)), func(*grants, *stun.Message) {})
	if ok && mortal {
		g.end(ctx)
		return
	}
	for i := 21; ok && i < 60; i++ {
		ok = bind(i)
	}
}

// end deletes the allocation.
func (g *ledger) end(ctx context.Context) bool {
	return g.ask(ctx, g.client.request(stun.MethodRefresh, lifetime(0)), func(s *grants, _ *stun.Message) { *s = newGrants() })
}

// check holds the ledger against what the server lists: all that was answered is there, what was not may be
// there or not, whole.
func (g *ledger) check(listed allocation) error {
	got := grantsOf(listed)
	if g.answered.holds(got) {
		return nil
	}
	n := len(g.steps)
	if n == 0 || g.steps[n-1].answer != nil {
		return fmt.Errorf("client %s: what was answered (-) is not what is there (+):\n%s", g.client.addr(), g.answered.diff(got))
	}
	also := grants{g.answered.relayed, maps.Clone(g.answered.permissions), maps.Clone(g.answered.channels)}
	g.steps[n-1].apply(&also, nil)
	if !also.holds(got) {
		return fmt.Errorf("client %s: what was answered (-), with or without an unanswered %v, is not what is there (+):\n%s",
			g.client.addr(), g.steps[n-1].request.Type, g.answered.diff(got))
	}
	return nil
}

// repeat sends every request once more: what was answered gets the same answer, and what was not gets one.
func (g *ledger) repeat(listed allocation) error {
	for i := range g.steps {
		s := &g.steps[i]
		answer, err := g.client.call(s.request)
		if err != nil {
			return fmt.Errorf("client %s repeats %v: %w", g.client.addr(), s.request.Type, err)
		}
		if s.answer != nil && !bytes.Equal(answer.Raw, s.answer.Raw) {
			return fmt.Errorf("client %s repeats %v: got\n%x, the first answer was\n%x", g.client.addr(), s.request.Type, answer.Raw, s.answer.Raw)
		}
		if s.answer == nil {
			s.answer = answer
			s.apply(&g.answered, answer)
		}
	}
	if len(listed.Relayed) > 0 && g.answered.relayed != "" && listed.Relayed[0] != g.answered.relayed {
		return fmt.Errorf("client %s: the answer after the crash says %s, the server listed %s", g.client.addr(), g.answered.relayed, listed.Relayed[0])
	}
	return nil
}
