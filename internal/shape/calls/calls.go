// Package calls makes the records of a busy relay: thousands of calls of minutes each that come and go, with
// permissions, channels, refreshes and usage, of clients that say goodbye and of clients that vanish. What it
// makes folds, and is the same for the same options.
package calls

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"turnstone/turn"
)

// Options say what the relay is like. The zero Options are a relay with 10,000 allocations at a time.
type Options struct {
	Seed         uint64
	Allocations  int           // alive at a time, once that many have come; 0: 10,000
	Users        int           // 0: 500
	Clients      int           // addresses they come from; 0: 20,000
	Peers        int           // addresses; 0: 20,000
	Commit       time.Duration // from one record to the next; 0: 10 ms
	RestartEvery int           // events after which the server restarts; every other time the host does too; 0: never
	ClockBack    bool          // every other time the host restarts its clock is an hour behind
}

func (o Options) withDefaults() Options {
	set := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	set(&o.Allocations, 10_000)
	set(&o.Users, 500)
	set(&o.Clients, 20_000)
	set(&o.Peers, 20_000)
	if o.Commit == 0 {
		o.Commit = 10 * time.Millisecond
	}
	return o
}

// Start is when a log of Calls begins.
var Start = time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)

// What calls are like.
const (
	lifetime     = 600 * time.Second // of an allocation
	duration     = 240 * time.Second // of a call, on average
	briefest     = 5 * time.Second
	lingers      = 330 * time.Second // an allocation is there for so long, on average
	permitAgain  = 240 * time.Second
	bindAgain    = 540 * time.Second
	refreshAgain = 480 * time.Second
	usageAgain   = 300 * time.Second
	expireLimit  = 1024
)

// Calls makes records.
type Calls struct {
	options  Options
	rng      *rand.Rand
	state    *turn.State
	elapsed  time.Duration // since the log began
	booted   time.Duration // when the host did, on that clock
	shift    time.Duration // of the wall clock
	boot     turn.BootID
	arrival  time.Duration // of the next call
	minute   time.Duration // at which refusals are counted next
	restart  turn.Seq      // at which the server restarts next, 0 for never
	restarts int
	last     turn.AllocationID
	tx       uint64
	waiting  queue
	record   turn.Record
}

// New makes Calls.
func New(o Options) *Calls {
	o = o.withDefaults()
	c := &Calls{options: o, rng: rand.New(rand.NewPCG(o.Seed, 0x7475726e)), state: turn.NewState(), restart: turn.Seq(o.RestartEvery)}
	c.reboot(time.Hour)
	return c
}

// State is the fold of the records made so far. It is for reading only.
func (c *Calls) State() *turn.State { return c.state }

// Next is the next record.
func (c *Calls) Next() turn.Record {
	if c.state.Seq() == 0 {
		return c.began()
	}
	if c.restart > 0 && c.state.Seq() >= c.restart {
		return c.restarted()
	}
	for {
		c.elapsed += c.options.Commit/2 + time.Duration(c.rng.Int64N(int64(c.options.Commit)))
		c.begin()
		for _, e := range turn.Expire(c.state, c.moment(), expireLimit) {
			c.add(e)
		}
		for c.arrival <= c.elapsed {
			c.arrive()
		}
		for len(c.waiting) > 0 && c.waiting[0].at <= c.elapsed {
			c.step(c.waiting[0])
		}
		if c.minute <= c.elapsed {
			c.refuse()
		}
		if len(c.record.Events) > 0 {
			return c.record
		}
	}
}

// Record is a record of these events, at the moment of the last one. It is for what the store says of itself.
func (c *Calls) Record(events ...turn.Event) turn.Record {
	c.begin()
	for _, e := range events {
		c.add(e)
	}
	return c.record
}

func (c *Calls) moment() turn.Moment {
	return turn.Moment{Boot: c.boot, Uptime: c.elapsed - c.booted, Wall: Start.UnixNano() + int64(c.elapsed+c.shift)}
}

func (c *Calls) begin() { c.record = turn.Record{First: c.state.Seq() + 1, Moment: c.moment()} }

// add puts e into the record and the state.
func (c *Calls) add(e turn.Event) {
	if len(c.record.Events) == 0 {
		c.state.Begin(c.record.Moment)
	}
	if err := c.state.Apply(e); err != nil {
		panic(fmt.Sprintf("calls: %v", err)) // a bug of this package
	}
	c.record.Events = append(c.record.Events, e)
}

// reboot has the host boot anew, so long before now.
func (c *Calls) reboot(before time.Duration) {
	for i := range c.boot {
		c.boot[i] = byte(c.rng.Uint32())
	}
	c.booted = c.elapsed - before
}

func (c *Calls) began() turn.Record {
	var log turn.LogID
	for i := range log {
		log[i] = byte(c.rng.Uint32())
	}
	return c.Record(turn.EpochBegan{Log: log, Epoch: 1}, turn.ServerStarted{Version: "v0.1.0", PID: 4711},
		turn.ConfigChanged{Digest: c.digest()}, turn.ProgramAttached{Interface: "eth0", Mode: "native", Layout: c.digest()})
}

func (c *Calls) digest() (d [32]byte) {
	for i := range d {
		d[i] = byte(c.rng.Uint32())
	}
	return d
}

// restarted is the first record of the server's next run.
func (c *Calls) restarted() turn.Record {
	c.restart += turn.Seq(c.options.RestartEvery)
	c.restarts++
	c.elapsed += 2 * time.Second
	before := c.moment().Wall
	started := []turn.Event{turn.ServerStarted{Version: "v0.1.0", PID: 4711 + uint32(c.restarts)}}
	if c.restarts%2 == 0 {
		c.elapsed += 40 * time.Second
		c.reboot(10 * time.Second)
		if c.options.ClockBack && c.restarts%4 == 0 {
			c.shift -= time.Hour
			started = append([]turn.Event{turn.ClockWentBack{Nanoseconds: uint64(before - c.moment().Wall)}}, started...)
		}
	}
	return c.Record(started...)
}

// refuse counts what was refused in the last minute.
func (c *Calls) refuse() {
	c.minute += time.Minute
	var list []turn.Attempt
	for i := range c.rng.IntN(4) {
		one := turn.Attempt{Client: c.client(false), Username: c.user(), Realm: "example.org", Method: 3, Code: 486, Count: 1 + c.rng.Uint64N(20)}
		if i == 2 {
			one.Method, one.Code, one.Peer = 8, 403, netip.AddrFrom4([4]byte{169, 254, 169, 254})
		}
		list = append(list, one)
	}
	if len(list) > 0 {
		c.add(turn.AttemptsRefused{Since: c.moment().Wall - int64(time.Minute), Attempts: list})
	}
}

// arrive has the next call come, and says when the one after it does.
func (c *Calls) arrive() {
	wait := lingers / time.Duration(c.options.Allocations)
	c.arrival += time.Duration(c.rng.ExpFloat64() * float64(wait))
	if call := c.invite(); call != nil {
		heap.Push(&c.waiting, call)
	}
}

// queue is the calls by when they do something next.
type queue []*call

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].id < q[j].id
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(*call)) }

func (q *queue) Pop() any {
	last := len(*q) - 1
	one := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return one
}
