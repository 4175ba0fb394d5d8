package store

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"turnstone/turn"
)

var boot = turn.BootID{1}

// at is a moment n milliseconds into the boot of the tests.
func at(n int) turn.Moment {
	return turn.Moment{Boot: boot, Uptime: time.Duration(n) * time.Millisecond, Wall: int64(1_700_000_000_000+n) * 1_000_000}
}

func tx(n int) (t turn.TransactionID) {
	copy(t[:], fmt.Sprintf("%012d", n))
	return t
}

// created is the n-th allocation of the tests.
func created(n int) turn.AllocationCreated {
	return turn.AllocationCreated{
		Allocation: turn.AllocationID(n), Tx: tx(n),
		FiveTuple: turn.FiveTuple{
			Client: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(n >> 16), byte(n >> 8)}), uint16(1024+n&255)),
			Server: netip.MustParseAddrPort("192.0.2.1:3478"), Protocol: turn.UDP,
		},
		Relayed:   []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(n >> 14), 2}), uint16(49152+n&16383))},
		Transport: 17, Username: "alice", Realm: "example.org", Lifetime: 600,
	}
}

func bound(n int, c turn.ChannelNumber) turn.ChannelBound {
	return turn.ChannelBound{
		Allocation: turn.AllocationID(n), Tx: tx(n<<8 + int(c)), Channel: c,
		Peer: netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(c)}), 4000),
	}
}

func openTest(t testing.TB, dir string, o Options) *Log {
	t.Helper()
	l, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// fill appends records of size events to l, allocations with one channel each, and folds them into s.
func fill(t testing.TB, l *Log, s *turn.State, records, size int) {
	t.Helper()
	if s.Seq() == 0 {
		appendTest(t, l, s, at(0), turn.EpochBegan{Log: turn.LogID{9}, Epoch: 1})
	}
	for range records {
		var events []turn.Event
		for i := 0; i < size; i += 2 {
			n := s.Len() + i/2 + 1
			events = append(events, created(n), bound(n, 0x4000))
		}
		appendTest(t, l, s, at(int(s.Seq())), events...)
	}
}

func appendTest(t testing.TB, l *Log, s *turn.State, m turn.Moment, events ...turn.Event) {
	t.Helper()
	r := turn.Record{First: s.Seq() + 1, Moment: m, Events: events}
	if err := s.Fold(r); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(r); err != nil {
		t.Fatal(err)
	}
}

func encoded(t testing.TB, s *turn.State) string {
	t.Helper()
	b, err := EncodeState(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReopenFoldsToTheSameState(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := l.State()
	live := encoded(t, s)
	_ = live
	fill(t, l, s, 50, 8)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again := openTest(t, dir, Options{})
	if encoded(t, again.State()) != encoded(t, s) {
		t.Error("the state after replay differs from the live one")
	}
}
