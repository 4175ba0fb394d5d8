package test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"testing"

	"turnstone/internal/testenv"

	"github.com/pion/stun/v3"
)

// kinds counts the events of d by their kind.
func (d *daemon) kinds() map[string]int {
	d.t.Helper()
	n := map[string]int{}
	for _, e := range d.events() {
		n[e.Kind]++
	}
	return n
}

// wantRefusal sends a request that is to be refused with a code, and yields the answer.
func (c *client) wantRefusal(code int, m *stun.Message) *stun.Message {
	c.t.Helper()
	answer, err := c.exchange(m, patience)
	if err == nil {
		err = refusalOf(answer)
	}
	if err != refusal(code) { //nolint:errorlint // it is compared as it is
		c.t.Fatalf("%v: got %v, want a refusal with %d", m.Type, err, code)
	}
	return answer
}

// TestDrainSendsClientsElsewhere drains a relay: who has an allocation keeps it, who wants one is told of another server, and
// the log has it before a client hears of it, also across a kill.
func TestDrainSendsClientsElsewhere(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	d := startDaemon(t, s, append(onLoopback, "--alternate-server", "127.0.0.77:3478", "--alternate-server", "[2001:db8::77]:3478")...)
	stays, peer := newClient(t, s, "127.0.0.1:20000", server4), addr("127.0.0.5:4000")
	stays.allocate()
	s.listen(peer)
	late := newClient(t, s, "127.0.0.1:20001", server4)
	d.ask("drain")
	ask := late.request(stun.MethodAllocate, transport())
	answer := late.wantRefusal(300, ask)
	var to stun.MappedAddress
	if err := to.GetFromAs(answer, stun.AttrAlternateServer); err != nil || to.String() != "127.0.0.77:3478" {
		t.Errorf("got ALTERNATE-SERVER %v, %v, want that of the client's family", to, err)
	}
	late.wantRefusal(401, build(stun.MethodAllocate, transport())) // nobody unknown is told
	stays.bind(0x4000, peer)
	stays.must(stays.request(stun.MethodRefresh, lifetime(600)))
	six := newClient(t, s, "[::1]:20002", server6)
	answer = six.wantRefusal(300, six.request(stun.MethodAllocate, transport()))
	if err := to.GetFromAs(answer, stun.AttrAlternateServer); err != nil || to.String() != "[2001:db8::77]:3478" {
		t.Errorf("got ALTERNATE-SERVER %v, %v, want that of the client's family", to, err)
	}
	if n := d.kinds()["ClientRedirected"]; n != 2 {
		t.Errorf("got %d redirects in the log, want 2", n)
	}
	d.kill()
	d.start()                  // it is not drained any more
	late.wantRefusal(300, ask) // but this is the same request
	late.allocate()            // and this is not
	stays.bind(0x4000, peer)   // what there was is there
	d.ask("drain")             // again
	late.bind(0x4001, peer)    // it has an allocation now
	d.ask("drain", "--cancel") // and everybody may
	six.allocate()             // have one
	if n := d.kinds()["ClientRedirected"]; n != 2 {
		t.Errorf("got %d redirects in the log, want no more than 2", n)
	}
	d.stop()
	d.verify()
}

// TestSignpost has coturn's client come to a relay that sends everybody elsewhere, where it is served.
func TestSignpost(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.start(exec.Command(testenv.Tool(t, "turnutils_peer"), "-L", "127.0.0.1", "-p", "3480"))
	elsewhere := slices.Clone(onLoopback)
	for i, flag := range elsewhere {
		switch flag {
		case "udp://" + server4:
			elsewhere[i] = "udp://127.0.0.1:3490"
		case "udp://" + server6:
			elsewhere[i] = "udp://[::1]:3490"
		case metrics:
			elsewhere[i] = "off"
		}
	}
	signpost := startDaemon(t, s, append(onLoopback, "--redirect", "always", "--alternate-server", "udp://127.0.0.1:3490")...)
	relay := startDaemon(t, s, elsewhere...)
	got := runUclient(t, s, "-u", username, "-w", password, "-e", "127.0.0.1", "-n", "20", "-c", "127.0.0.1")
	if want := (uclientTotals{sent: 20, received: 20}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if n := signpost.kinds()["ClientRedirected"]; n == 0 || signpost.status().Allocations != 0 {
		t.Errorf("got %d redirects and %d allocations at the signpost, want some and none", n, signpost.status().Allocations)
	}
	if relay.status().ToPeer.Packets != 20 {
		t.Errorf("the relay carried %d packets, want 20", relay.status().ToPeer.Packets)
	}
}

// TestQuotas asks for one allocation more than there may be: of a user, of a realm, in all.
func TestQuotas(t *testing.T) {
	for _, row := range []struct {
		name  string
		flags []string
		code  int
	}{
		{"OfAUser", []string{"--max-allocations-per-user", "2"}, 486},
		{"OfARealm", []string{"--max-allocations-per-realm", "2"}, 486},
		{"InAll", []string{"--max-allocations", "2"}, 508},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			d := startDaemon(t, s, append(onLoopback, row.flags...)...)
			var clients []*client
			for i := range 3 {
				clients = append(clients, newClient(t, s, fmt.Sprintf("127.0.0.1:%d", 20000+i), server4))
			}
			clients[0].allocate()
			clients[1].allocate()
			refused := clients[2].request(stun.MethodAllocate, transport())
			clients[2].wantRefusal(row.code, refused)
			d.kill()
			d.start()
			clients[2].wantRefusal(row.code, clients[2].request(stun.MethodAllocate, transport()))
			clients[0].must(clients[0].request(stun.MethodRefresh, lifetime(0)))
			if clients[2].allocate() == (netip.AddrPort{}) {
				t.Error("got no relayed address after one was given back")
			}
		})
	}
}
