package test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun/v3"
)

// buildNext builds the daemon again, as another version.
var buildNext = sync.OnceValues(func() (string, error) {
	binary := turnstoneBinary + "-next"
	build := exec.Command("go", "build", "-ldflags", "-X main.release=next", "-o", binary, "turnstone/cmd/turnstone")
	out, err := build.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("build the next version: %w\n%s", err, out)
	}
	return binary, err
})

func nextBuild(t *testing.T) string {
	t.Helper()
	binary, err := buildNext()
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// after is a daemon that is to take over from d. It is not started.
func (d *daemon) after(binary string, flags ...string) *daemon {
	d.t.Helper()
	next := newDaemon(d.t, d.space, append(slices.Clone(d.flags), append(flags, "--takeover")...)...)
	next.dir, next.binary = d.dir, binary
	return next
}

// takes has next take over from d, which has to end well.
func (d *daemon) takes(next *daemon) {
	d.t.Helper()
	next.start()
	if code := d.wait(); code != 0 {
		d.t.Errorf("the daemon that was taken over from: exit code %d, want 0\n%s", code, d.log())
	}
}

// talkOn waits until so many more payloads have come back.
func (c *talker) talkOn(n int) {
	c.t.Helper()
	from := c.heardBack()
	eventually(c.t, "the talk goes on", func() error {
		if got := c.heardBack() - from; got < n {
			return fmt.Errorf("%d payloads came back, want %d", got, n)
		}
		return nil
	})
}

// TestTakeoverLosesNothingInUserspace has one build after the other take over while calls go on.
func TestTakeoverLosesNothingInUserspace(t *testing.T) {
	t.Parallel()
	binary := nextBuild(t)
	s := newSpace(t)
	d := startDaemon(t, s, onLoopback...)
	l := loopback(t, s)
	calls := []*talker{
		l.dial("127.0.0.1:0", server4, "127.0.0.1:0", 0x4001, 1),
		l.dial("[::1]:0", server6, "[::1]:0", 0x4002, 2),
	}
	d.ask("drain")
	var stops []func()
	for _, c := range calls {
		stops = append(stops, c.steady(2*time.Millisecond))
	}
	builds := []string{"", binary}
	for round := range 4 {
		calls[0].talkOn(100)
		next := d.after(builds[(round+1)%2])
		d.takes(next)
		d = next
		if got, isNext := d.status().Version, round%2 == 0; (got == "next") != isNext {
			t.Errorf("round %d: version %s runs", round, got)
		}
	}
	calls[0].talkOn(100)
	for i, stop := range stops {
		stop()
		calls[i].wantNoLoss()
		t.Logf("channel %#x: %d packets each way over 4 takeovers, none lost", calls[i].channel, calls[i].sent)
	}
	if code, body := d.get("/readyz"); code != 503 || !strings.Contains(body, "draining") {
		t.Errorf("/readyz: got %d %q, want 503: it drains as the first one did", code, body)
	}
	for _, c := range calls {
		c.must(c.request(stun.MethodRefresh))
	}
	d.stop()
	d.verify()
	if n := countEvents(d, "ServerStopped", "takeover"); n != 4 {
		t.Errorf("got %d takeovers in the log, want 4", n)
	}
}

func countEvents(d *daemon, kind, signal string) (n int) {
	d.t.Helper()
	for _, e := range d.events() {
		if e.Kind == kind && e.Event["signal"] == signal {
			n++
		}
	}
	return n
}

// TestTakeoverLosesNothingInTheKernel does so with calls that the kernel relays, and one that it does not.
func TestTakeoverLosesNothingInTheKernel(t *testing.T) {
	binary := nextBuild(t)
	l := newLab(t)
	d := l.start()
	calls := []*talker{
		l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, 1),
		l.dial("["+labClient6+"]:5002", "["+labServer6+"]:3478", labPeer4+":6002", 0x4002, 1),
	}
	d.offloaded(6)
	var stops []func()
	for _, c := range calls {
		stops = append(stops, c.steady(2*time.Millisecond))
	}
	builds := []string{"", binary}
	for round := range 3 {
		calls[0].talkOn(100)
		var more []string
		if round == 1 { // another layout of the maps
			more = []string{"--kernel-max-channels", "1024"}
		}
		next := d.after(builds[(round+1)%2], more...)
		d.takes(next)
		next.flags = d.flags
		d = next
	}
	calls[0].talkOn(100)
	for i, stop := range stops {
		stop()
		calls[i].wantNoLoss()
		t.Logf("channel %#x: %d packets each way over 3 takeovers, none lost", calls[i].channel, calls[i].sent)
	}
	if st := d.status(); st.ToPeer.Packets != 0 || st.ToClient.Packets != 0 {
		t.Errorf("userspace relayed %+v", st)
	}
	d.wantSound()
	d.stop()
}

// TestTakeoverThatFailsChangesNothing has whoever wants to take over fail, before and after the daemon stopped for it.
func TestTakeoverThatFailsChangesNothing(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	d := startDaemon(t, s, onLoopback...)
	c := loopback(t, s).dial("127.0.0.1:0", server4, "127.0.0.1:0", 0x4001, 1)
	stop := c.steady(2 * time.Millisecond)
	c.talkOn(50)

	s.listen(addr("127.0.0.1:3999"))
	taken := d.after("", "--listen", "udp://127.0.0.1:3999")
	taken.launch()
	if code := taken.wait(); code != 1 || !strings.Contains(taken.log(), "the daemon that runs goes on") {
		t.Errorf("a listener that is taken: exit code %d and\n%s", code, taken.log())
	}
	wrong := d.after("", "--realm", "")
	wrong.launch()
	if code := wrong.wait(); code != 2 {
		t.Errorf("a configuration that is wrong: exit code %d, want 2", code)
	}
	c.talkOn(50)

	for _, after := range []string{"offer", "go", "sockets"} {
		started := d.status().PID
		d.giveUp(after)
		eventually(t, "the daemon goes on", func() error {
			code, out, _ := d.command("status", "-o", "json", "--data", d.dir)
			if code != 0 || !decode[status](t, out).Ready {
				return errors.New("not yet")
			}
			return nil
		})
		c.talkOn(50)
		if pid := d.status().PID; pid != started {
			t.Errorf("given up after %s: pid %d goes on, want %d", after, pid, started)
		}
	}
	next := d.after("")
	d.takes(next)
	c.talkOn(50)
	stop()
	c.wantNoLoss()
	t.Logf("%d packets each way over 2 takeovers that failed late and one that did not, none lost", c.sent)
	c.must(c.request(stun.MethodRefresh))
	next.stop()
	next.verify()
}

// giveUp takes over from d up to a point, and leaves.
func (d *daemon) giveUp(after string) {
	d.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(d.dir, "admin.sock"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer conn.Close()
	say := func(text string) {
		if _, err := conn.Write([]byte(text)); err != nil {
			d.t.Fatal(err)
		}
	}
	say("POST /v1/takeover HTTP/1.1\r\nHost: turnstone\r\nConnection: Upgrade\r\nUpgrade: turnstone-takeover/1\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		d.t.Fatalf("got %v and %v, want 101", resp, err)
	}
	defer resp.Body.Close()
	if _, err := r.ReadString('\n'); err != nil || after == "offer" {
		return
	}
	say("{\"go\":true}\n")
	if after == "go" {
		return
	}
	if _, err := r.ReadString('\n'); err != nil {
		d.t.Fatal(err)
	}
	say("{\"taken\":true}\n")
}

// TestTakeoverOfNobodyStarts has a daemon start that was to take over, where there is none.
func TestTakeoverOfNobodyStarts(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, newSpace(t), append(slices.Clone(onLoopback), "--takeover")...)
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d.start()
	d.stop()
}
