package turn

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun/v3"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata")

// TestTranscripts runs the scenarios in testdata. A line is a comment, a command, or, behind
// two spaces, what came of the command before it. The commands:
//
//	user NAME PASSWORD          a static user; without a password: removed
//	secret S...                 the secrets of time-limited credentials
//	grace D                     how long past its expiry such a credential may refresh
//	client NAME USER ADDRESS    a client; USER is a static user, or limited:USER:SECRET:TTL
//	rules KEY=VALUE...          changes the rules
//	reload                      puts users and rules in force, and revokes what they forbid
//	NAME allocate|refresh|permit|bind|again ARGUMENT...
//	wait D                      lets time go by, and expire what is over then
//	oversleep D                 lets time go by, and expires nothing
//	expire                      expires what is over
//	reboot D [SKEW]             the host was down for D, and its wall clock is off by SKEW
//	crash                       the state is made anew from the records
//	snapshot                    the state is made anew from its image
//	close ID                    an operator ends an allocation
//	data CLIENT                 a client sends data
//	gone CLIENT                 a client's stream ends
//	usage ID CHANNEL PACKETS    usage is recorded
//	state                       shows the state
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 12 {
		t.Fatalf("got %d transcripts, %v, want a dozen", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(want))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			} else if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", file, diff)
			}
		})
	}
}

// play runs the commands of a transcript and writes it with what comes of them.
func play(t *testing.T, script string) string {
	p := &player{core: newCore(t), t: t, config: testGateConfig(), clients: map[string]*caller{}, last: map[string][]byte{}, tokens: map[string]ReservationToken{}, tickets: map[string][]byte{}}
	p.config.Users = nil
	for line := range strings.Lines(script) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "  ") {
			continue
		}
		p.out.WriteString(line + "\n")
		if line != "" && line[0] != '#' {
			p.command(strings.Fields(line))
			checkState(t, p.state, p.rules.MaxLifetime)
		}
	}
	if diff := cmp.Diff(p.state.Image(), fold(t, p.records).Image(), byAddress...); diff != "" {
		t.Errorf("the fold of the records is another state (-state +fold):\n%s", diff)
	}
	return p.out.String()
}

type player struct {
	*core
	t       *testing.T
	config  GateConfig
	clients map[string]*caller
	last    map[string][]byte           // the frame a client sent last
	tokens  map[string]ReservationToken // the token a client was given last
	tickets map[string][]byte           // and the ticket
	out     strings.Builder
}

func (p *player) printf(format string, a ...any) { fmt.Fprintf(&p.out, "  "+format+"\n", a...) }

func (p *player) events(list []Event) {
	for _, e := range list {
		p.printf("%s", describe(e))
	}
}

func (p *player) duration(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		p.t.Fatal(err)
	}
	return d
}

func (p *player) number(s string) int {
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return int(n)
}

func (p *player) command(f []string) {
	name, args := f[0], f[1:]
	if who := p.clients[name]; who != nil {
		p.request(name, who, args[0], args[1:])
		return
	}
	switch name {
	case "user":
		p.user(args)
	case "secret":
		p.config.Secrets = nil
		for _, s := range args {
			p.config.Secrets = append(p.config.Secrets, []byte(s))
		}
	case "grace":
		p.config.CredentialGrace = p.duration(args[0])
	case "client":
		p.clients[args[0]] = p.client(args[1], args[2])
	case "rules":
		for _, a := range args {
			key, value, _ := strings.Cut(a, "=")
			p.rule(key, value)
		}
	case "reload":
		p.gate = NewGate(p.config)
		p.events(p.reload())
	case "close":
		events := Close(p.state, AllocationID(p.number(args[0])), ReasonOperator)
		p.record(events...)
		p.events(events)
	case "data":
		events := Arrive(p.state, p.clients[args[0]].FiveTuple)
		p.record(events...)
		p.events(events)
	case "gone":
		events := Leave(p.state, p.clients[args[0]].FiveTuple, ReasonStreamClosed)
		p.record(events...)
		p.events(events)
	case "usage":
		n := uint64(p.number(args[2]))
		e := UsageRecorded{
			Allocation: AllocationID(p.number(args[0])), Channel: ChannelNumber(p.number(args[1])), Path: PathKernel,
			ToPeer: Count{Packets: n, Bytes: 100 * n}, ToClient: Count{Packets: n, Bytes: 100 * n},
		}
		if a := p.state.Allocation(e.Allocation); a != nil && a.Channel(e.Channel) != nil {
			e.Peer = a.Channel(e.Channel).Peer
		}
		p.record(e)
		p.events([]Event{e})
	case "state":
		p.show()
	default:
		p.time(name, args)
	}
}

// time runs the commands that are about time and death.
func (p *player) time(name string, args []string) {
	switch name {
	case "wait":
		p.events(p.wait(p.duration(args[0])))
	case "oversleep":
		p.lazy = true
		p.wait(p.duration(args[0]))
	case "expire":
		p.lazy = false
		p.events(p.expire())
	case "reboot":
		skew := time.Duration(0)
		if len(args) > 1 {
			skew = p.duration(args[1])
		}
		before := p.now
		p.reboot(p.duration(args[0]), skew)
		if p.now.Wall < before.Wall {
			p.record(ClockWentBack{Nanoseconds: uint64(before.Wall - p.now.Wall)})
			p.printf("ClockWentBack %v", time.Duration(before.Wall-p.now.Wall))
		}
		p.events(p.expire())
	case "crash":
		p.state = fold(p.t, p.records)
	case "snapshot":
		s, err := FromImage(cloneImage(p.state.Image()))
		if err != nil {
			p.t.Fatal(err)
		}
		p.state = s
	default:
		p.t.Fatalf("no command %q", name)
	}
}

func (p *player) user(args []string) {
	var left []User
	for _, u := range p.config.Users {
		if u.Name != args[0] {
			left = append(left, u)
		}
	}
	if p.config.Users = left; len(args) > 1 {
		p.config.Users = append(left, User{Name: args[0], Password: args[1]})
	}
}

func (p *player) client(user, address string) *caller {
	if parts := strings.Split(user, ":"); parts[0] == "limited" {
		expiry := p.now
		expiry.Wall += int64(p.duration(parts[3]))
		return timeLimitedCaller(parts[1], parts[2], expiry, address)
	}
	who := newCaller(user, "", address)
	for _, u := range p.config.Users {
		if u.Name == user {
			who.password = u.Password
		}
	}
	return who
}

func (p *player) rule(key, value string) {
	list := func() (out []netip.Prefix) {
		if value == "none" {
			return nil
		}
		return prefixes(strings.Split(value, ",")...)
	}
	switch key {
	case "relays":
		p.rules.Relays = nil
		for _, a := range strings.Split(value, ",") {
			p.rules.Relays = append(p.rules.Relays, Relay{IP: addr(a), External: addr(a)})
		}
	case "relay":
		ip, external, nat := strings.Cut(value, "/")
		l := Relay{IP: addr(ip), External: addr(ip)}
		if nat {
			l.External = addr(external)
		}
		p.rules.Relays = []Relay{l}
	case "ports":
		first, last, _ := strings.Cut(value, "-")
		p.rules.FirstPort, p.rules.LastPort = uint16(p.number(first)), uint16(p.number(last))
	case "per-user":
		p.rules.MaxPerOwner = p.number(value)
	case "total":
		p.rules.MaxAllocations = p.number(value)
	case "permissions":
		p.rules.MaxPermissions = p.number(value)
	case "channels":
		p.rules.MaxChannels = p.number(value)
	case "last-channel":
		p.rules.LastChannel = ChannelNumber(p.number(value))
	case "room":
		for _, r := range []Room{RoomFine, RoomLow, RoomNone} {
			if r.String() == value {
				p.rules.Storage = r
			}
		}
	case "alternates":
		p.rules.Alternates = nil
		for _, a := range strings.Split(value, ",") {
			p.rules.Alternates = append(p.rules.Alternates, Alternate{Address: addrPort(a)})
		}
	case "mobility":
		p.rules.Tickets = nil
	case "draining":
		p.rules.Draining = value == "yes"
	case "allow":
		p.rules.Policy.Allow = list()
	case "deny":
		p.rules.Policy.Deny = list()
	default:
		p.t.Fatalf("no rule %q", key)
	}
}

var transcriptMethods = map[string]stun.Method{
	"allocate": stun.MethodAllocate, "refresh": stun.MethodRefresh,
	"permit": stun.MethodCreatePermission, "bind": stun.MethodChannelBind,
}

func (p *player) request(name string, who *caller, verb string, args []string) {
	if verb != "again" {
		method, ok := transcriptMethods[verb]
		if !ok {
			p.t.Fatalf("no request %q", verb)
		}
		var attributes []stun.Setter
		plainAllocate := method == stun.MethodAllocate
		for _, a := range args {
			s := p.attribute(a)
			attributes = append(attributes, s...)
			plainAllocate = plainAllocate && !strings.HasPrefix(a, "transport=")
		}
		if plainAllocate {
			attributes = append(attributes, transport(17))
		}
		p.lastTx++
		p.last[name] = who.signed(p.gate, p.now, method, txid(p.lastTx), attributes)
	}
	got := p.send(who, p.last[name])
	if got == nil {
		p.printf("no answer")
		return
	}
	if got.token != (ReservationToken{}) {
		p.tokens[name] = got.token
	}
	if got.ticket != nil {
		p.tickets[name] = got.ticket
	}
	p.events(got.events)
	p.printf("%s", answerLine(got))
}

// attribute is KEY=VALUE, a channel number, the address of a peer, or the relayed address or the token of a client.
func (p *player) attribute(a string) []stun.Setter {
	key, value, _ := strings.Cut(a, "=")
	switch key {
	case "lifetime":
		return []stun.Setter{lifetime(uint32(p.number(value)))}
	case "family":
		return []stun.Setter{family(map[string]byte{"ipv4": 1, "ipv6": 2}[value])}
	case "additional":
		return []stun.Setter{additional(map[string]byte{"ipv4": 1, "ipv6": 2}[value])}
	case "transport":
		return []stun.Setter{transport(byte(p.number(value)))}
	case "even-port":
		return []stun.Setter{evenPort(0)}
	case "reserve":
		return []stun.Setter{evenPort(0x80)}
	case "token":
		return []stun.Setter{token(p.tokens[value])}
	case "mobile":
		return []stun.Setter{ticket(nil)}
	case "ticket":
		return []stun.Setter{ticket(p.tickets[value])}
	case "attribute":
		return []stun.Setter{set(stun.AttrType(p.number(value)))}
	case "relayed":
		return peers(p.rules.Shown(p.state.ByFiveTuple(p.clients[value].FiveTuple).Relayed[0]).String())
	}
	if strings.HasPrefix(a, "0x") {
		return []stun.Setter{channel(uint16(p.number(a)))}
	}
	return peers(a)
}

func answerLine(a *answerSeen) string {
	if a.code != 0 {
		line := fmt.Sprintf("<- %d %s", a.code, reasonPhrases[a.code])
		if len(a.unknown) > 0 {
			line += " " + a.unknown.String()
		}
		if len(a.servers) > 0 {
			line += fmt.Sprintf(" %v", a.servers)
		}
		return line
	}
	line := "<- success"
	if a.relayed.IsValid() {
		line += fmt.Sprintf(" relayed=%v", a.relayed)
	}
	if a.other.IsValid() {
		line += fmt.Sprintf(",%v", a.other)
	}
	if a.mapped.IsValid() {
		line += fmt.Sprintf(" mapped=%v", a.mapped)
	}
	if a.lacks != (lack{}) {
		line += fmt.Sprintf(" without-family=%d (%d %s)", a.lacks.family, a.lacks.code, reasonPhrases[int(a.lacks.code)])
	}
	if a.lifetime >= 0 {
		line += fmt.Sprintf(" lifetime=%d", a.lifetime)
	}
	if a.token != (ReservationToken{}) {
		line += fmt.Sprintf(" token=%v", a.token)
	}
	if a.ticket != nil {
		line += " ticket"
	}
	return line
}

// show writes the state; times are what is left.
func (p *player) show() {
	left := func(d Deadline) time.Duration { return d.Uptime - p.now.Uptime }
	p.printf("at event %d, %d remembered answers", p.state.Seq(), len(p.state.answers.live()))
	for a := range p.state.Allocations() {
		p.printf("allocation %d of %s, %v, relays %v, %v left", a.ID, a.Username, a.FiveTuple, a.Relayed, left(a.Deadline))
		if a.Adrift {
			p.printf("  adrift")
		}
		if a.moving() {
			p.printf("  moves to %v", a.Next)
		}
		for i, d := range a.Until {
			p.printf("  %v, %v left", a.Relayed[i], left(d))
		}
		for _, x := range a.Permissions {
			p.printf("  permission %v, %v left", x.Peer, left(x.Deadline))
		}
		for _, x := range a.Channels {
			p.printf("  channel %v to %v, %v left", x.Number, x.Peer, left(x.Deadline))
		}
		for _, x := range a.Usage {
			p.printf("  usage of %v to %v by %v: %+v, %+v", x.Channel, x.Peer, x.Path, x.ToPeer, x.ToClient)
		}
	}
	for _, r := range p.state.Reservations() {
		p.printf("%v is reserved for %s, %v left", r.Relayed, r.Username, left(r.Deadline))
	}
	if next, ok := p.state.NextDeadline(); ok {
		p.printf("next deadline in %v", next-p.now.Uptime)
	}
}
