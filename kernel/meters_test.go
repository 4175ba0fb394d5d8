package kernel

import (
	"testing"

	"turnstone/turn"
)

// shares has the server take the meters of an allocation of a user.
func shares(m *meters, id turn.AllocationID, user string) (toPeer turn.Words, number uint32) {
	words, number := m.shared(id, turn.HolderOf("example.org", user))
	return words[0], number
}

func TestMetersAreSharedByScope(t *testing.T) {
	tables, _, _ := memoryTables(64, 64)
	m := newMeters(tables, testCaps)
	a, first := shares(m, 1, "alice")
	b, second := shares(m, 2, "1700000000:alice")
	c, third := shares(m, 3, "bob")
	if a[turn.ScopeAllocation] == b[turn.ScopeAllocation] || a[turn.ScopeUser] != b[turn.ScopeUser] || a[turn.ScopeTotal] != b[turn.ScopeTotal] {
		t.Error("two allocations of a user are to have words of their own, one of the user and one of all")
	}
	if a[turn.ScopeUser] == c[turn.ScopeUser] || a[turn.ScopeTotal] != c[turn.ScopeTotal] {
		t.Error("two users are to have words of their own, and one of all")
	}
	number, ok := m.take(1, turn.HolderOf("example.org", "alice"), 0)
	if !ok || &tables.meters[number].Full != a[turn.ScopeAllocation] {
		t.Errorf("got meter %d for a flow, want that which the server takes from", number)
	}
	*a[turn.ScopeUser] = 12345
	m.release(first)
	m.release(number)
	if again, _ := shares(m, 4, "alice"); again[turn.ScopeUser] != b[turn.ScopeUser] || *again[turn.ScopeUser] != 12345 {
		t.Error("the word of a user is another one although an allocation has it")
	}
	m.release(second)
	m.release(third)
	if len(m.of) != 3 || len(m.by) != 3 {
		t.Errorf("got %d pairs, want those of an allocation, a user and all", len(m.of))
	}
}

// TestUsersKeepAWordWhereAllocationsHaveNone has room for five pairs.
func TestUsersKeepAWordWhereAllocationsHaveNone(t *testing.T) {
	tables, _, _ := memoryTables(12, 12)
	m := newMeters(tables, testCaps)
	a, _ := shares(m, 1, "alice") // three
	_, second := shares(m, 2, "alice")
	_, third := shares(m, 3, "alice")
	d, fourth := shares(m, 4, "alice")
	if d[turn.ScopeAllocation] != nil || d[turn.ScopeUser] != a[turn.ScopeUser] || d[turn.ScopeTotal] != a[turn.ScopeTotal] {
		t.Errorf("got words %v without room for another allocation, want those of the user and of all: %v", d, a)
	}
	e, fifth := shares(m, 5, "bob")
	if e[turn.ScopeAllocation] != nil || e[turn.ScopeUser] != nil || e[turn.ScopeTotal] != a[turn.ScopeTotal] {
		t.Errorf("got words %v without room for another user, want that of all", e)
	}
	if _, ok := m.take(4, turn.HolderOf("example.org", "alice"), 0); ok {
		t.Error("a flow got a meter that is not there")
	}
	for _, n := range []uint32{second, third, fourth, fifth} {
		m.release(n)
	}
	if len(m.of) != 3 {
		t.Errorf("got %d pairs, want the first three", len(m.of))
	}
}

// TestMetersOfAnEarlierRun are taken over with what was taken from them, unless their rate is another.
func TestMetersOfAnEarlierRun(t *testing.T) {
	tables, _, _ := memoryTables(64, 64)
	alice := turn.HolderOf("example.org", "alice")
	words, number := newMeters(tables, testCaps).shared(1, alice)
	for s := range words[0] {
		*words[0][s] = uint64(100 + s)
	}
	changed := testCaps
	changed[turn.ScopeUser] = turn.NewCap(1 << 20)
	m := newMeters(tables, changed)
	if !m.adopt(1, alice, number) {
		t.Fatal("the meter is not adopted")
	}
	again, same := m.shared(1, alice)
	if again != words || same != number {
		t.Errorf("got meter %d and words %v, want %d and %v: the wider ones are those that it names", same, again, number, words)
	}
	for s, want := range [turn.Scopes]uint64{100, 0, 102} {
		if got := *words[0][s]; got != want {
			t.Errorf("scope %d is full at %d, want %d", s, got, want)
		}
	}
	if m.adopt(2, alice, number) {
		t.Error("the meter of another allocation is adopted")
	}
}

// TestMetersOfAnotherLayout count on, those of a rate that is another now excepted.
func TestMetersOfAnotherLayout(t *testing.T) {
	before, _, _ := memoryTables(64, 64)
	alice := turn.HolderOf("example.org", "alice")
	words, number := newMeters(before, testCaps).shared(1, alice)
	for s := range words[0] {
		*words[0][s], *words[1][s] = uint64(100+s), 1<<60
	}
	now, _, _ := memoryTables(32, 32)
	changed := testCaps
	changed[turn.ScopeUser] = turn.NewCap(1 << 20)
	m := newMeters(now, changed)
	m.shared(2, turn.HolderOf("example.org", "bob")) // other numbers than before
	words, _ = m.shared(1, alice)
	*words[0][turn.ScopeTotal] = 500
	m.drain(before.meters, 1, 0, number)
	m.drain(before.meters, 3, 0, number)
	m.drain(before.meters, 1, 1, uint32(len(before.meters)))
	for s, want := range [turn.Scopes]uint64{100, 0, 500} {
		if got := *words[0][s]; got != want || *words[1][s] != 0 {
			t.Errorf("scope %d is full at %d and %d, want %d and 0", s, got, *words[1][s], want)
		}
	}
}
