package kernel

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// silentLog is a log that holds a state and in which nothing happens.
type silentLog struct{ last turn.Seq }

func (l silentLog) Tail(ctx context.Context, _ turn.Seq) iter.Seq2[turn.Record, error] {
	return func(yield func(turn.Record, error) bool) {
		<-ctx.Done()
		yield(turn.Record{}, ctx.Err())
	}
}

func (l silentLog) Head() (turn.Seq, [32]byte) { return l.last, [32]byte{1} }

func (l silentLog) ChainAt(turn.Seq) ([32]byte, bool, error) { return [32]byte{1}, true, nil }

// crowd is a state of n allocations with so many channels each, to peers behind a router.
func crowd(tb testing.TB, n, channels int) *turn.State {
	tb.Helper()
	s := turn.NewState()
	record := func(events ...turn.Event) {
		if err := s.Fold(turn.Record{First: s.Seq() + 1, Moment: at(1), Events: events}); err != nil {
			tb.Fatal(err)
		}
	}
	record(turn.EpochBegan{Log: turn.LogID{7}, Epoch: 1})
	server := netip.AddrPortFrom(host4, 3478)
	for i := range n {
		events := []turn.Event{turn.AllocationCreated{
			Allocation: turn.AllocationID(i + 1), Transport: 17, Username: "alice", Realm: "example.org", Lifetime: 600,
			FiveTuple: turn.FiveTuple{Client: netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), 5000), Server: server, Protocol: turn.UDP},
			Relayed:   []netip.AddrPort{netip.AddrPortFrom(second4, uint16(49152+i%16384))},
		}}
		for c := range channels {
			events = append(events, turn.ChannelBound{
				Allocation: turn.AllocationID(i + 1), Channel: turn.ChannelNumber(0x4000 + c),
				Peer: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i), byte(c)}), uint16(1024+i)),
			})
		}
		record(events...)
	}
	return s
}

// crowdConfig is a datapath for it in n.
func crowdConfig(tb testing.TB, s *turn.State, channels uint32) Config {
	tb.Helper()
	c := Config{
		Instance: fmt.Sprintf("crowd-%d", os.Getpid()), Log: silentLog{s.Seq()}, State: s, Mode: XDPNative, Logger: zerolog.Nop(),
		Listeners: []netip.AddrPort{netip.AddrPortFrom(host4, 3478)}, Relays: []netip.Addr{second4}, RelayFirst: 49152, RelayLast: 65535,
		Sizes: Sizes{Channels: channels, Allocations: channels, Listeners: 1},
	}
	tb.Cleanup(func() { removeInstance(tb, c.Instance) })
	return c
}

func removeInstance(tb testing.TB, instance string) {
	tb.Helper()
	if err := os.RemoveAll(filepath.Join(DefaultRoot, instance)); err != nil {
		tb.Error(err)
	}
}

// BenchmarkRebuild makes the maps for 100,000 channels from nothing, and takes them over from an earlier run. On a busy machine the
// processor time says more than the time that passes.
func BenchmarkRebuild(b *testing.B) {
	n := newNetwork(b)
	n.via(netip.MustParsePrefix("0.0.0.0/0"), router4)
	for i, end := range n.ends { // a veth sends natively to an end with a program alone
		n.attach(n.far[i], end.Attrs().Index, n.references(nil).SinkFrame)
	}
	s := crowd(b, 1000, 100)
	var used time.Duration
	open := func(b *testing.B) {
		before := processTime(b)
		defer func() { used += processTime(b) - before }()
		n.in(n.ns, func() error {
			d, err := Open(crowdConfig(b, s, 131072))
			if err != nil {
				return err
			}
			if got := len(d.r.held); got < 200_000 {
				return fmt.Errorf("%d flows are in the maps, want two for each of 100,000 channels: %v", got, d.status().Absent)
			}
			return d.close()
		})
	}
	b.Run("fresh", func(b *testing.B) {
		used = 0
		for b.Loop() {
			b.StopTimer()
			removeInstance(b, fmt.Sprintf("crowd-%d", os.Getpid()))
			b.StartTimer()
			open(b)
		}
		b.ReportMetric(float64(used.Milliseconds())/float64(b.N), "cpu-ms/op")
	})
	b.Run("taken-over", func(b *testing.B) {
		open(b)
		used = 0
		for b.Loop() {
			open(b)
		}
		b.ReportMetric(float64(used.Milliseconds())/float64(b.N), "cpu-ms/op")
	})
}

// processTime is what this process has used of processors.
func processTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
