package kernel

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"turnstone/bpf"
	"turnstone/internal/testenv"
	"turnstone/turn"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

const (
	// churnLong is the environment variable by which TestRecycledSlots goes on for a billion hits.
	churnLong = "TURNSTONE_CHURN"
	// churnNotice is how soon the test has to notice wrong destinations where nothing prevents them.
	churnNotice = 30 * time.Second

	churnBindings = 8
	churnSlots    = 1 << 14
)

// TestRecycledSlots has packets go round by bindings that come and go, whose slots and entries are used again
// at once. With key comparison and grace period both left out, packets end up in bindings of others: so
// the test would notice. With both there is none.
func TestRecycledSlots(t *testing.T) {
	testenv.Root(t)
	if runtime.NumCPU() < 2 {
		testenv.Skip(t, "packets and changes need a CPU each")
	}
	hits, limit := uint64(0), 3*time.Minute
	if os.Getenv(churnLong) != "" {
		hits, limit = 1_000_000_000, 2*time.Hour
	}
	t.Run("WithoutEither", func(t *testing.T) {
		c := newChurn(t, false, false)
		c.run(churnNotice, func() bool { return c.wrong.Load() > 0 })
		if c.wrong.Load() == 0 {
			t.Errorf("no packet went wrong within %s, without key comparison and grace period", churnNotice)
		}
		if hits == 0 { // enough for twenty
			hits = min(max(20*c.hits.Load(), 1_000_000), 10_000_000)
		}
	})
	t.Run("WithBoth", func(t *testing.T) {
		c := newChurn(t, true, true)
		enough := func() bool { return c.hits.Load() >= hits && c.recycled.Load() >= 10_000 }
		c.run(limit, func() bool { return enough() || c.wrong.Load() > 0 })
		if n := c.wrong.Load(); n > 0 {
			t.Errorf("%d packets of %d went wrong, the first: %s", n, c.hits.Load(), *c.first.Load())
		}
		if !enough() {
			t.Errorf("%d hits and %d slots used again within %s, want %d and 10000", c.hits.Load(), c.recycled.Load(), limit, hits)
		}
	})
}

// ring is a binding and its mirror image: a packet that has gone by both is as it was, but for its TTL.
type ring struct {
	flows [2]want
	frame []byte
}

// churn is bindings that come and go while packets are relayed by them.
type churn struct {
	testing.TB
	o     *bpf.TurnstoneObjects
	r     *reconciler
	rings [churnBindings]ring
	grace bool

	hits, misses, wrong atomic.Uint64 // packets
	first               atomic.Pointer[string]
	recycled, waits     atomic.Uint64
	stop                atomic.Bool
}

// newChurn loads the program, with or without key comparison and a grace period.
func newChurn(t testing.TB, keyed, grace bool) *churn {
	t.Helper()
	c := &churn{TB: t, grace: grace, o: loadWith(t, Sizes{Channels: churnSlots, Listeners: 1}, testSettings, func(spec *ebpf.CollectionSpec) {
		if err := spec.Variables[bpf.TurnstoneVarUnkeyed].Set(boolean(!keyed)); err != nil {
			t.Fatal(err)
		}
	})}
	tables, err := openTables(&c.o.TurnstoneMaps)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tables.close(); err != nil {
			t.Error(err)
		}
	})
	if err := c.o.Interfaces.Put(uint32(arrivalIf), bpf.TurnstoneInterface{Ifindex: arrivalIf, Mac: ourStation}); err != nil {
		t.Fatal(err)
	}
	c.r = newReconciler(tables, plain{}, turn.NewState(), nil, turn.Caps{})
	c.r.gateways.egress = func(int) (uint32, bool, Reason) { return openPort, false, "" }
	for i := range c.rings {
		c.rings[i] = newRing(t, i)
	}
	c.attach()
	return c
}

func boolean(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// newRing is binding number i, by families of its own.
func newRing(t testing.TB, i int) ring {
	t.Helper()
	in, out, n := i&1, i>>1&1, uint16(i)
	client := netip.AddrPortFrom(sceneClients[in].Addr(), 10_000+n)
	peer := netip.AddrPortFrom(scenePeers[out].Addr(), 60_000+n) // a relayed address, for the way back
	relayed := netip.AddrPortFrom(sceneRelayed[out].Addr(), 50_000+n)
	channel, id := 0x4000+turn.ChannelNumber(i), turn.AllocationID(i+1)
	via := Gateway{Link: arrivalIf, Address: netip.MustParseAddr("192.0.2.254")}
	there := Flow{
		Key: Key{Remote: client, Local: sceneListeners[in], Channel: channel}, Kind: ToPeer, Allocation: id, Deadline: durationOf(noon),
		Source: relayed, Destination: peer,
	}
	back := Flow{
		Key: Key{Remote: relayed, Local: peer}, Kind: ToClient, Allocation: id, Deadline: durationOf(noon),
		Source: client, Destination: sceneListeners[in], OutChannel: channel,
	}
	p := packet{
		to: ourStation, from: ourStation, source: client, destination: sceneListeners[in], channel: channel,
		ttl: 255, payload: binary.BigEndian.AppendUint32(nil, uint32(i)),
	}
	return ring{[2]want{{Flow: there, via: via}, {Flow: back, via: via}}, p.bytes(t)}
}

// attach has the kernel know the program as one in use: it would make it known anew for every run.
func (c *churn) attach() {
	c.Helper()
	ns, _ := newNamespace(c)
	(&network{TB: c}).in(ns, func() error {
		l, err := link.AttachXDP(link.XDPOptions{Program: c.o.Turnstone, Interface: arrivalIf, Flags: link.XDPGenericMode})
		if err == nil {
			c.Cleanup(func() { l.Close() })
		}
		return err
	})
}

// run has packets and changes go on until is holds, or for a limit.
func (c *churn) run(limit time.Duration, is func() bool) {
	c.Helper()
	begun := time.Now()
	var all sync.WaitGroup
	all.Go(func() { c.onCPU(1, c.change) })
	for seed := range uint64(2) { // that interrupt each other
		all.Go(func() { c.onCPU(0, func() error { return c.send(rand.New(rand.NewPCG(seed, 1))) }) })
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !is() && !c.stop.Load() && time.Since(begun) < limit {
		<-tick.C
	}
	c.stop.Store(true)
	all.Wait()
	c.Logf("%s: %d hits, %d misses, %d wrong; %d slots used again, after %d grace periods",
		time.Since(begun).Round(time.Millisecond), c.hits.Load(), c.misses.Load(), c.wrong.Load(), c.recycled.Load(), c.waits.Load())
}

// onCPU runs f on a thread of its own, on one CPU.
func (c *churn) onCPU(cpu int, f func() error) {
	runtime.LockOSThread() // the goroutine ends, and the thread with it
	var one unix.CPUSet
	one.Set(cpu)
	err := unix.SchedSetaffinity(0, &one)
	if err == nil {
		err = f()
	}
	if err != nil {
		c.stop.Store(true)
		c.Error(err)
	}
}

// send lets packets go round, each by a binding drawn by chance, and looks where they end up.
func (c *churn) send(random *rand.Rand) error {
	const rounds = 254 // what the TTL lasts for
	var context [24]byte
	out := make([]byte, 512)
	for !c.stop.Load() {
		i := random.IntN(len(c.rings))
		g := &c.rings[i]
		binary.NativeEndian.PutUint32(context[4:], uint32(len(g.frame)))
		binary.NativeEndian.PutUint32(context[12:], arrivalIf)
		o := ebpf.RunOptions{Data: g.frame, DataOut: out, Context: context[:], Repeat: rounds}
		if _, err := c.o.Turnstone.Run(&o); err != nil {
			return fmt.Errorf("run the program: %w", err)
		}
		hits, ok := g.holds(o.DataOut)
		if !ok && c.wrong.Add(1) == 1 {
			what := fmt.Sprintf("%x came out as %x", g.frame, o.DataOut)
			c.first.Store(&what)
		}
		c.hits.Add(uint64(hits))
		c.misses.Add(uint64(rounds - hits))
	}
	return nil
}

// holds says how often a packet was relayed, and whether it is one that the ring may have made of its own.
func (g *ring) holds(frame []byte) (hits int, ok bool) {
	network := 14
	header, ttl := 20, 8
	if frame[12] == 0x86 {
		header, ttl = 40, 7
	}
	if len(frame) < network+header+12 {
		return 0, false
	}
	hits = 255 - int(frame[network+ttl])
	udp := frame[network+header:]
	source, destination := modelAddresses(frame[network : network+header+8])
	sum := pseudoSum(source, destination, len(udp)) + onesSum(udp)
	id := udp[8:]
	var channel turn.ChannelNumber
	if len(udp) == 16 {
		channel, id = turn.ChannelNumber(binary.BigEndian.Uint16(id)), id[4:]
	}
	there := g.flows[hits%2].Flow // by which it would go on
	return hits, there.Key == Key{Remote: source, Local: destination, Channel: channel} &&
		sum%0xffff == 0 && string(id) == string(g.frame[len(g.frame)-4:])
}

// change binds, unbinds and replaces bindings drawn by chance.
func (c *churn) change() error {
	random := rand.New(rand.NewPCG(2, 2))
	graces, inGrace := make(chan settlement, 1), false
	var bound [churnBindings]bool
	for !c.stop.Load() || inGrace {
		i := random.IntN(len(c.rings))
		switch {
		case bound[i] && random.IntN(2) == 0: // a route changed: another record, and no gap
			c.bind(i, uint16(random.IntN(2)*9000))
		case bound[i]:
			for n := range c.rings[i].flows {
				c.r.revoke([]*held{c.r.held[c.rings[i].flows[n].Key]})
			}
			bound[i] = false
		default:
			bound[i] = c.bind(i, 0)
		}
		if !c.grace {
			c.settle(settlement{slots: c.r.slots.retiring})
			c.r.slots.retiring = nil
			continue
		}
		if !inGrace && len(c.r.slots.retiring) > 0 {
			batch, _ := c.r.retire()
			inGrace = true
			go func() { graces <- settlement{slots: batch, err: c.r.t.grace()} }()
		}
		select {
		case s := <-graces:
			if s.err != nil {
				return s.err
			}
			inGrace = false
			c.waits.Add(1)
			c.settle(s)
		default:
		}
	}
	return nil
}

func (c *churn) settle(s settlement) {
	c.r.settle(s.slots, nil)
	c.recycled.Add(uint64(len(s.slots)))
}

// bind makes binding i, and says whether there was room for it.
func (c *churn) bind(i int, mtu uint16) bool {
	done := true
	for n := range c.rings[i].flows {
		w := c.rings[i].flows[n]
		w.MTU = mtu
		c.r.grant([]*want{&w})
		done = done && c.r.held[w.Key] != nil
	}
	c.r.gateways.resolve(c.rings[i].flows[0].via, Hop{Link: arrivalIf, Source: ourStation, Destination: ourStation, MTU: 1500}, "")
	return done
}
