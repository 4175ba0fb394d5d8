package kernel

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"slices"
	"time"

	"turnstone/bpf"
	"turnstone/turn"

	"github.com/cilium/ebpf/rlimit"
	"github.com/rs/zerolog"
)

// Log is what the datapath follows: durable records, and where the chain stood.
type Log interface {
	// Tail yields the records from the one that holds from, and goes on with what is committed.
	Tail(ctx context.Context, from turn.Seq) iter.Seq2[turn.Record, error]
	// Head is the last durable sequence and the hash of the record that ends there.
	Head() (turn.Seq, [32]byte)
	// ChainAt is the hash of the record that ends at a sequence, false where none does or it is gone.
	ChainAt(turn.Seq) ([32]byte, bool, error)
}

// Recorder has events recorded in the log. It returns when they are durable.
type Recorder func(ctx context.Context, events ...turn.Event) error

// Config is what a Datapath is made of.
type Config struct {
	Root     string // of the pins; empty: DefaultRoot
	Instance string
	Log      Log
	State    *turn.State // the fold of Log; the Datapath's from then on

	Listeners  []netip.AddrPort // over UDP
	Relays     []netip.Addr     // relayed transport addresses are made of
	RelayFirst uint16
	RelayLast  uint16
	Interfaces []string // empty: those that hold the addresses of Listeners and Relays
	Mode       XDPMode  // empty: native where that is safe, else generic
	Sizes      Sizes
	Caps       turn.Caps // in each direction
	Logger     zerolog.Logger
}

// Datapath keeps the kernel's relay equal to the log. Open makes it and brings the maps up to date; Run
// follows the log. The other methods may be called from any goroutine while Run runs.
type Datapath struct {
	config   Config
	log      zerolog.Logger
	layout   [32]byte
	loaded   Settings // of the program
	pins     *pins
	objects  *bpf.TurnstoneObjects
	tables   *tables
	router   *Router
	attached *attachments
	r        *reconciler

	records  chan turn.Record
	requests chan func()
	settled  chan settlement
	walks    chan walk
	events   events
	verdicts verdictCounters
	waiters  []waiter
	applied  turn.Seq
	free     turn.Seq // up to which everything revoked has settled
	inGrace  bool
	walking  bool
	ticks    int
	counting []turn.AllocationID // whose usage is still to be told in this round
	probes   []pathMTU           // whose MTU is still to be asked for in this round
	repaired drift
	failures uint64
	done     chan struct{}
}

// Open loads the program, takes over what an earlier run left, brings the maps to what the log grants, and
// attaches or replaces the program. Its error says why the kernel cannot relay here.
func Open(c Config) (d *Datapath, err error) {
	if c.Root == "" {
		c.Root = DefaultRoot
	}
	d = &Datapath{
		config: c, log: c.Logger, records: make(chan turn.Record, 256), requests: make(chan func()),
		settled: make(chan settlement, 1), walks: make(chan walk, 1), done: make(chan struct{}),
	}
	d.events.wake = make(chan struct{}, 1)
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if d.router, err = NewRouter(); err != nil {
		return d, err
	}
	if err := d.fit(); err != nil {
		return d, err
	}
	_ = rlimit.RemoveMemlock() // needed before Linux 5.11 only
	if d.pins, err = openPins(c.Root, c.Instance); err != nil {
		return d, err
	}
	if err := d.load(); err != nil {
		return d, err
	}
	if err := d.witness(); err != nil {
		return d, err
	}
	if err := d.take(); err != nil {
		return d, err
	}
	return d, nil
}

// load makes or opens the maps and loads the program.
func (d *Datapath) load() error {
	d.loaded = d.settings()
	spec, err := blueprint(d.config.Sizes, d.loaded)
	if err != nil {
		return err
	}
	if d.layout, err = layout(spec); err != nil {
		return err
	}
	if d.objects, _, err = d.pins.open(spec, d.layout); err != nil {
		return err
	}
	d.verdicts.cpus = d.objects.Cpus
	if err := calibrate(d.objects.BootClock); err != nil {
		return err
	}
	if d.tables, err = openTables(&d.objects.TurnstoneMaps); err != nil {
		return err
	}
	d.attached = &attachments{
		pins: d.pins, router: d.router, wish: d.config.Mode, prog: d.objects.Turnstone,
		ifs: d.objects.Interfaces, egress: d.objects.Egress, layout: d.layout, at: map[int]*attachment{},
		report: func(e turn.Event) { d.events.add(e) }, note: d.noteAttachment,
	}
	d.r = newReconciler(d.tables, &host{d}, d.config.State, d.config.Listeners, d.config.Caps)
	d.r.gateways.egress = d.attached.port
	d.applied = d.config.State.Seq()
	return d.r.load()
}

// settings are those of the configuration. Relayed addresses that were granted by another stay relayed.
func (d *Datapath) settings() Settings {
	s := Settings{RelayFirst: d.config.RelayFirst, RelayLast: d.config.RelayLast}
	if d.config.State != nil {
		for a := range d.config.State.Allocations() {
			for _, r := range a.Relayed {
				s.RelayFirst, s.RelayLast = min(s.RelayFirst, r.Port()), max(s.RelayLast, r.Port())
			}
		}
	}
	for _, l := range d.config.Listeners {
		if !slices.Contains(s.ListenerPorts, l.Port()) {
			s.ListenerPorts = append(s.ListenerPorts, l.Port())
		}
	}
	return s
}

// witness compares what the maps were made of with the log. Maps that know more than the log does were
// made of what it has lost: it was rolled back.
func (d *Datapath) witness() error {
	m := d.tables.meta
	switch {
	case m.Log == [16]byte{}:
		return nil
	case turn.LogID(m.Log) != d.config.State.Log():
		d.log.Warn().Str("log", turn.LogID(m.Log).String()).Msg("the kernel's maps belong to another log: they are cleared")
		d.r.clearAll()
		return nil
	}
	last, _ := d.config.Log.Head()
	chain, known, err := d.config.Log.ChainAt(turn.Seq(m.Applied))
	if err != nil {
		return err
	}
	if m.Epoch == d.config.State.Epoch() && turn.Seq(m.Applied) <= last && (!known || chain == m.Chain) {
		return nil
	}
	d.log.Error().Uint64("kernel", m.Applied).Uint64("log", uint64(last)).
		Msg("the log was rolled back: the kernel's maps know of records that it does not have. They are cleared, and an epoch begins")
	d.r.clearAll()
	d.events.add(turn.EpochBegan{Log: d.config.State.Log(), Epoch: max(m.Epoch, d.config.State.Epoch()) + 1})
	return nil
}

// take makes the maps what the log wants, and has the program in force. Maps are filled before it is
// attached; what an earlier layout had is drained after it was replaced.
func (d *Datapath) take() error {
	old, err := d.pins.others(d.layout)
	if err != nil {
		return err
	}
	d.attached.plan(d.links())
	d.attached.placeAll()
	d.attached.sense()
	d.r.full()
	d.resolveAll()
	d.r.gateways.loaded()
	refused := d.attached.attach()
	if refused != nil {
		d.log.Warn().Err(refused).Msg("not every interface takes the program")
	}
	moved, _ := d.attached.sense()
	d.resolveAll() // by what mode and abilities each interface turned out to have
	if d.carries() == 0 {
		return d.nothingAttached()
	}
	if refused != nil || moved {
		d.r.full()
	}
	if err := d.tables.grace(); err != nil {
		return err
	}
	for _, dir := range old {
		d.drain(dir)
		if err := removeVersion(dir); err != nil {
			return err
		}
	}
	batch, hops := d.r.retire()
	d.events.add(d.r.settle(batch, hops)...)
	d.testify()
	return d.oops()
}

// carries counts the interfaces that have the program.
func (d *Datapath) carries() (n int) {
	for _, a := range d.attached.at {
		if a.mode != "" {
			n++
		}
	}
	return n
}

// UnavailableError says that no interface takes the program, and why.
type UnavailableError struct{ Interfaces []Interface }

func (e *UnavailableError) Error() string {
	text := "no interface takes the XDP program"
	for _, i := range e.Interfaces {
		text += fmt.Sprintf("; %s: %s", i.Name, i.Reason)
	}
	return text
}

func (d *Datapath) nothingAttached() error { return &UnavailableError{d.interfaces()} }

// oops logs what failed since the last time; the next tick tries again.
func (d *Datapath) oops() error {
	for _, err := range d.r.errs {
		d.failures++
		d.log.Error().Err(err).Msg("the kernel's maps could not be written: trying again")
	}
	d.r.errs = nil
	return nil
}

// links are the interfaces that the configuration and the addresses ask for.
func (d *Datapath) links() (links []Link) {
	add := func(l Link, ok bool) {
		if ok && l.Kind == LinkVLAN {
			if lower, found := d.router.Link(l.Parent); found {
				l = lower
			}
		}
		if ok && !slices.ContainsFunc(links, func(o Link) bool { return o.Index == l.Index }) {
			links = append(links, l)
		}
	}
	for _, name := range d.config.Interfaces {
		add(d.router.LinkByName(name))
	}
	if len(d.config.Interfaces) > 0 {
		return links
	}
	for _, l := range d.config.Listeners {
		add(d.router.LinkByAddress(l.Addr()))
	}
	for _, a := range d.config.Relays {
		add(d.router.LinkByAddress(a))
	}
	return links
}

// fit says at once where no interface will do.
func (d *Datapath) fit() error {
	var none []Interface
	for _, l := range d.links() {
		if l.Unfit == "" {
			return nil
		}
		none = append(none, Interface{Name: l.Name, Index: l.Index, Reason: l.Unfit})
	}
	return &UnavailableError{none}
}

// host is what the flows depend on besides the log.
type host struct{ d *Datapath }

func (h *host) arrival(local netip.AddrPort, listener bool) (vlan uint16, why Reason) {
	if !h.d.loaded.looks(local.Port(), listener) {
		return 0, ReasonPort
	}
	l, ok := h.d.router.LinkByAddress(local.Addr())
	if !ok {
		return 0, ReasonSource
	}
	index := l.Index
	if l.Kind == LinkVLAN {
		index, vlan = l.Parent, l.VLAN
	}
	if why = h.d.attached.usable(index); why == "" && vlan != 0 {
		why = h.d.attached.stripped(index)
	}
	return vlan, why
}

func (h *host) route(source, destination netip.Addr) (Route, Reason) {
	r, why := h.d.router.Route(source, destination)
	if why == "" {
		_, _, why = h.d.attached.port(r.Gateway.Link)
	}
	return r, why
}

func (h *host) isRelay(a netip.Addr) bool { return slices.Contains(h.d.config.Relays, a) }

func (h *host) metered() bool { return h.d.config.Caps != (turn.Caps{}) }

func (d *Datapath) noteAttachment(a *attachment, what string) {
	d.log.Info().Str("interface", a.link.Name).Str("mode", string(a.mode)).Str("reason", string(a.reason)).Msg("program " + what)
}

// resolveAll asks for the next hop of every gateway.
func (d *Datapath) resolveAll() {
	for via := range d.r.gateways.of {
		d.resolve(via)
	}
}

func (d *Datapath) resolve(via Gateway) {
	h, why := d.router.Hop(via)
	d.r.gateways.resolve(via, h, why)
}

// testify notes in the maps what they are the projection of. The hash is known of the head alone.
func (d *Datapath) testify() {
	seq, chain := d.config.Log.Head()
	if seq != d.applied {
		return
	}
	m := d.tables.meta
	m.Log, m.Layout, m.Epoch = d.r.state.Log(), d.layout, d.r.state.Epoch()
	m.Applied, m.Chain = uint64(seq), chain
}

// drain takes over what the counters of another layout say, where its maps can be read.
func (d *Datapath) drain(dir string) {
	if err := drainLayout(dir, d.r); err != nil && !errors.Is(err, os.ErrNotExist) {
		d.log.Warn().Err(err).Str("layout", dir).Msg("the counters of an earlier layout could not be read")
	}
}

// close lets go of everything and leaves it pinned.
func (d *Datapath) close() error {
	d.verdicts.close()
	var errs []error
	if d.attached != nil {
		errs = append(errs, d.attached.close())
	}
	if d.tables != nil {
		errs = append(errs, d.tables.close())
	}
	if d.objects != nil {
		errs = append(errs, d.objects.Close())
	}
	if d.router != nil {
		errs = append(errs, d.router.Close())
	}
	if d.pins != nil {
		errs = append(errs, d.pins.close())
	}
	return errors.Join(errs...)
}

// TakeMeters shares the meters of an allocation of a user: words to take from for what is relayed elsewhere, by
// direction, and what to give back. They are nil where there are none left.
func (d *Datapath) TakeMeters(id turn.AllocationID, user turn.Holder) (words [2]turn.Words, number uint32) {
	return d.r.meters.shared(id, user)
}

// ReleaseMeters is the opposite of TakeMeters.
func (d *Datapath) ReleaseMeters(number uint32) { d.r.meters.release(number) }

// usageEvery is how often usage that changed is told to the log.
const usageEvery = 5 * time.Minute
