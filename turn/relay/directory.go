package relay

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"turnstone/turn"
)

// Directory knows users that no configuration names.
type Directory interface {
	// Find asks for a user of a realm, for no longer than ctx lets it. That there is no such user is no error.
	Find(ctx context.Context, username, realm string) (Found, error)
}

// Found is what a directory says of a user.
type Found struct {
	Known bool
	User  turn.User // its password or its keys, where it is known
	Until time.Time // it is good for no longer; zero: as long as configured
}

// LookupConfig says how a [Directory] is asked.
type LookupConfig struct {
	Directory Directory     // nil for none: nobody is found
	Timeout   time.Duration // of one question
	Keep      time.Duration // for how long the keys of a user are kept
	Fresh     time.Duration // for how long an answer is not asked for again, whatever it was; at least a second
	Rate      int           // questions a second
}

// Bounds of what waits for a directory, and of what is kept of it.
const (
	asksAtOnce    = 16      // questions in flight
	maxAsked      = 1024    // users that are to be asked for
	maxWaiting    = 4096    // requests that wait
	maxWaitingOne = 16      // of them for one user
	maxWaitFrame  = 2 << 10 // bytes of a request that waits
	maxKnown      = 1 << 16
	maxAbsent     = 1 << 14
	sourceRate    = 20 // new users a second that one source may have asked for
	sourceBurst   = 100
)

// Lookups are the questions to a directory and what is kept of its answers. Gates read that by
// [Lookups.Look], and a server asks what they do not find. Requests wait for the answer outside of the shards. There
// is one question for a user at once, and they are bounded in number and rate, in all and for each source.
type Lookups struct {
	clock  func() time.Duration // of uptime
	queue  chan who
	source *limiter

	mu      sync.RWMutex // guards the fields below
	config  LookupConfig
	known   memory
	absent  memory
	asked   map[who]*question
	waiting int
	full    time.Duration // when the bucket of the rate is full again

	found, none, failed, refused atomic.Uint64
}

// who is a user of a realm, by the name that the gate looks up.
type who struct{ realm, username string }

// question is one that is asked, or will be.
type question struct {
	username string // as the directory knows it
	waiters  []origin
}

// origin is where a request came from.
type origin struct {
	listener *listener
	shard    int
	client   netip.AddrPort
	stream   *stream // nil for a datagram
	frame    []byte
}

// NewLookups makes Lookups for one server.
func NewLookups(c LookupConfig) *Lookups {
	return &Lookups{
		config: c.bounded(), queue: make(chan who, maxAsked), source: newLimiter(sourceRate, sourceBurst),
		clock: func() time.Duration { return time.Duration(uptime()) },
		known: newMemory(maxKnown), absent: newMemory(maxAbsent), asked: map[who]*question{},
	}
}

func (c LookupConfig) bounded() LookupConfig {
	c.Fresh = max(c.Fresh, time.Second)
	c.Keep = max(c.Keep, c.Fresh)
	return c
}

// Use has l ask as c says from now on. Whom another directory knew is asked for anew.
func (l *Lookups) Use(c LookupConfig) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.Directory != l.config.Directory {
		for w, k := range l.known.entries {
			k.until = 0
			l.known.entries[w] = k // if this one does not know the user, that is a loss
		}
		l.absent = newMemory(maxAbsent)
	}
	l.config = c.bounded()
}

// Look is what is known of a user, for a gate.
func (l *Lookups) Look(realm, username string) (turn.User, turn.Presence) {
	w := who{realm, username}
	l.mu.RLock()
	defer l.mu.RUnlock()
	now := l.clock()
	if k, ok := l.known.entries[w]; ok && now < k.until {
		if now < k.since+l.config.Fresh {
			return k.user, turn.Present
		}
		return k.user, turn.Dated
	}
	if k, ok := l.absent.entries[w]; ok && now < k.until {
		return turn.User{}, turn.Absent
	}
	return turn.User{}, turn.Unasked
}

// ask has o wait for what the directory says of w, which it knows as username. It says why not, where it does not.
func (l *Lookups) ask(w who, username string, o origin) (Drop, bool) {
	if len(o.frame) > maxWaitFrame {
		return DropMalformed, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.asked[w]
	switch {
	case l.waiting >= maxWaiting, q != nil && len(q.waiters) >= maxWaitingOne:
		return DropBusy, false
	case q != nil && o.stream == nil && q.has(o):
		return 0, true // a retransmission
	case q == nil && !l.allowed(o.client.Addr()):
		l.refused.Add(1)
		return DropRateLimited, false
	case q == nil:
		select {
		case l.queue <- w:
		default:
			return DropBusy, false
		}
		q = &question{username: username}
		l.asked[w] = q
	}
	o.frame = bytes.Clone(o.frame)
	q.waiters = append(q.waiters, o)
	l.waiting++
	return 0, true
}

func (q *question) has(o origin) bool {
	for _, w := range q.waiters {
		if w.client == o.client && w.listener == o.listener && bytes.Equal(w.frame, o.frame) {
			return true
		}
	}
	return false
}

// allowed takes a question from the rates, if they have one left.
func (l *Lookups) allowed(source netip.Addr) bool {
	now := l.clock()
	if l.config.Rate > 0 {
		each := time.Second / time.Duration(l.config.Rate)
		if l.full = max(l.full, now); l.full+each-now > time.Second {
			return false
		}
	}
	if !l.source.allow(source, int64(now)) {
		return false
	}
	if l.config.Rate > 0 {
		l.full += time.Second / time.Duration(l.config.Rate)
	}
	return true
}

// errOtherDirectory says that a directory is not the one any more that is to be asked.
var errOtherDirectory = errors.New("there is another directory, or none, since")

// find asks the directory, for no longer than c says.
func (c *LookupConfig) find(ctx context.Context, username, realm string) (Found, error) {
	if c.Directory == nil {
		return Found{}, errOtherDirectory
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	return c.Directory.Find(ctx, username, realm)
}

// answer asks the directory for w and keeps what it says. It yields who waited, and whether a user that was known is not any more.
func (l *Lookups) answer(ctx context.Context, w who) (waiters []origin, gone bool, err error) {
	l.mu.RLock()
	c, username := l.config, l.asked[w].username
	l.mu.RUnlock()
	found, err := c.find(ctx, username, w.realm)
	keep := c.Keep
	if !found.Until.IsZero() {
		keep = min(keep, time.Until(found.Until))
	}
	known := err == nil && found.Known && keep > 0
	if known {
		found.User.Name = username
		found.User = found.User.Keyed(w.realm)
		found.User.Name = w.username
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.config.Directory != c.Directory {
		err = errOtherDirectory
	}
	now := l.clock()
	switch {
	case err != nil:
		l.failed.Add(1)
	case known:
		l.found.Add(1)
		l.absent.forget(w)
		l.known.put(w, remembered{user: found.User, since: now, until: now + max(keep, c.Fresh)})
	default:
		l.none.Add(1)
		gone = l.known.forget(w)
		l.absent.put(w, remembered{since: now, until: now + c.Fresh})
	}
	waiters = l.asked[w].waiters
	l.waiting -= len(waiters)
	delete(l.asked, w)
	return waiters, gone, err
}

// remembered is an answer of a directory.
type remembered struct {
	user         turn.User
	since, until time.Duration
}

// memory keeps the latest answers, up to a number of them.
type memory struct {
	entries map[who]remembered
	order   []who // the oldest first; some may be gone
	max     int
}

func newMemory(most int) memory { return memory{entries: map[who]remembered{}, max: most} }

func (m *memory) put(w who, r remembered) {
	if _, there := m.entries[w]; !there {
		m.order = append(m.order, w)
	}
	m.entries[w] = r
	for len(m.entries) > m.max || len(m.order) > 2*m.max {
		delete(m.entries, m.order[0])
		m.order = m.order[1:]
	}
}

// forget says whether w was there.
func (m *memory) forget(w who) bool {
	_, there := m.entries[w]
	delete(m.entries, w)
	return there
}

// LookupCounters are what a directory was asked since the start.
type LookupCounters struct {
	Found, None, Failed uint64 // answers
	Refused             uint64 // requests that would have had more asked than the rates allow
	Waiting             int    // requests that wait now
}

// Counters reads the counters.
func (l *Lookups) Counters() LookupCounters {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return LookupCounters{
		Found: l.found.Load(), None: l.none.Load(), Failed: l.failed.Load(), Refused: l.refused.Load(), Waiting: l.waiting,
	}
}

// askAll asks the directory until ctx ends.
func (s *Server) askAll(ctx context.Context) error {
	for {
		select {
		case w := <-s.config.Lookups.queue:
			s.askOne(ctx, w)
		case <-ctx.Done():
			return nil
		}
	}
}

// askOne asks for one user, and lets those who wait go on: to the gate again, or where the directory said nothing, nowhere.
func (s *Server) askOne(ctx context.Context, w who) {
	waiters, gone, err := s.config.Lookups.answer(ctx, w)
	if err != nil && ctx.Err() == nil {
		s.sampled.Warn().Err(err).Msg("the directory of users does not answer: whoever it is asked for is not let in")
	}
	for _, o := range waiters {
		switch {
		case err == nil && o.stream != nil:
			o.stream.again(o.frame)
		case err == nil:
			s.admitAgain(o)
		default:
			s.stats.drop(DropDirectory)
			s.unavailable(o)
		}
	}
	if gone {
		s.revoke(ctx)
	}
}

// admitAgain is admit for a datagram that has waited.
func (s *Server) admitAgain(o origin) {
	reply := s.admit(o.listener, o.shard, o.client, o.frame, int64(s.clock().Uptime))
	if reply == nil {
		return
	}
	s.replies.mu.Lock()
	defer s.replies.mu.Unlock()
	s.replies.send(outgoing{listener: o.listener, shard: o.shard, client: o.client}, reply.Append(nil))
	s.replies.flush()
}

// unavailable ends a request that cannot be judged. A datagram gets no answer: its client repeats it,
// and may be luckier. On a stream nobody would.
func (s *Server) unavailable(o origin) {
	if o.stream == nil {
		return
	}
	if r := s.gate.Load().Unavailable(o.listener.fiveTuple(o.client), o.frame); r != nil {
		s.counted(r, o.client.Addr())
		o.stream.reply(r.Append(nil))
	}
	o.stream.answered()
}

// revoke ends what users hold that the directory knew, and does not know any more.
func (s *Server) revoke(ctx context.Context) {
	err := s.do(ctx, func(w *writer) error {
		w.apply(turn.Reconcile(w.state, &w.rules, s.gate.Load(), w.begin())...)
		return nil
	})
	if err != nil && ctx.Err() == nil {
		s.log.Error().Err(err).Msg("a user who is gone keeps what it holds until it is refreshed")
	}
}
