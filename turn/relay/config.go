package relay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"turnstone/turn"

	"github.com/pion/transport/v3"
	"github.com/rs/zerolog"
)

// Log is what the server needs of the event log. Append makes a record durable: after
// an error nobody knows whether it is, and only Recover, which yields what is, goes on.
type Log interface {
	Append(turn.Record) error
	Recover() (*turn.State, error)
	Room() turn.Room
}

// Datapath is a relay outside this process that carries what the log grants.
// Withdraw returns when nothing is relayed any more that the events up to
// a sequence revoked, Settle when nothing of it is in use by a packet on its way either.
type Datapath interface {
	Withdraw(ctx context.Context, up turn.Seq) error
	Settle(ctx context.Context, up turn.Seq) error
}

// Settings are what a reload replaces.
type Settings struct {
	Listeners   []Listener // at a reload nil: those there are
	Streams     Streams    // of listeners that are not UDP; at a reload without TLS: that there is
	Caps        turn.Caps  // in each direction
	Gate        *turn.Gate
	Rules       turn.Rules
	UnauthRate  int // answers a second to a source nobody authenticated, 0: no limit
	UnauthBurst int
	ICMP        ICMP                 // who is told of ICMP errors
	Digest      [32]byte             // of the configuration they come from
	Changed     []turn.SettingChange // what a reload is for, told to the log
}

// Config is what a server is made of.
type Config struct {
	Settings
	Log       Log
	State     *turn.State   // the fold of Log; the server's from then on
	Datapath  Datapath      // nil: there is none but userspace
	Lookups   *Lookups      // of the gates in Settings, nil for none
	Inherited []Socket      // of an earlier process, the server's from then on; it closes those it has no use for
	Keeper    Keeper        // nil: sockets end with the process
	Net       transport.Net // nil: real sockets
	Logger    zerolog.Logger
	Clock     func() turn.Moment // nil: the host's
	Entropy   io.Reader          // nil: crypto/rand
	Version   string
	PID       int
	Shards    int // loops over sockets; 0: one for each CPU
}

var (
	errNoListener    = errors.New("there is no address to listen on")
	errNoCertificate = errors.New("there is no certificate")
)

// check says what is wrong with listeners, which are served with streams.
func (t *Settings) check() error {
	if len(t.Listeners) == 0 {
		return errNoListener
	}
	for _, l := range t.Listeners {
		if (l.Protocol == turn.TLS || l.Protocol == turn.DTLS) && (t.Streams.TLS == nil || t.Streams.TLS.GetCertificate == nil) {
			return fmt.Errorf("listen on %v/%v: %w", l.Protocol, l.Address, errNoCertificate)
		}
		if !l.Address.IsValid() || l.Address.Addr().IsUnspecified() {
			return fmt.Errorf("listen on %v: not one address", l.Address)
		}
	}
	return nil
}

func (c *Config) check() error {
	if err := c.Settings.check(); err != nil {
		return err
	}
	if c.Clock == nil {
		clock, err := HostClock()
		if err != nil {
			return err
		}
		c.Clock = clock
	}
	if c.Entropy == nil {
		c.Entropy = rand.Reader
	}
	return nil
}

// surroundings are what the data path knows of the host's own addresses, and the caps.
type surroundings struct {
	rules   turn.Rules
	icmp    ICMP
	caps    turn.Caps
	metered bool                    // there are any
	guarded map[netip.Addr]struct{} // where only live allocations are reachable
}

func newSurroundings(t *Settings) *surroundings {
	r := t.Rules
	s := &surroundings{rules: r, icmp: t.ICMP, caps: t.Caps, metered: t.Caps != (turn.Caps{}), guarded: map[netip.Addr]struct{}{}}
	own := r.Own
	for _, l := range r.Relays {
		own = append(own[:len(own):len(own)], l.IP)
	}
	for _, a := range own {
		if r.Guarded(a) {
			s.guarded[a] = struct{}{}
		}
	}
	return s
}

func (s *surroundings) private(a netip.AddrPort) netip.AddrPort { return s.rules.Private(a) }
func (s *surroundings) shown(a netip.AddrPort) netip.AddrPort   { return s.rules.Shown(a) }

// reachable says whether a peer may be sent to, and heard: on an address of
// this host only live allocations are.
func (s *Server) reachable(peer netip.AddrPort) bool {
	if _, guarded := s.surroundings.Load().guarded[peer.Addr()]; !guarded {
		return true
	}
	return s.flows.relayed.get(peer) != nil
}
