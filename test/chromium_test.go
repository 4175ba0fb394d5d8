package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// TestChromiumCalls has Chromium call itself through the relay, which it reaches over each protocol.
func TestChromiumCalls(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	streams := onStreams(t)
	d := startDaemon(t, s, append(onLoopback, streams...)...)
	b := newBrowser(t, s, streams[1])
	for _, row := range []struct{ protocol, url string }{
		{"udp", "turn:" + server4 + "?transport=udp"},
		{"tcp", "turn:" + server4 + "?transport=tcp"},
		{"tls", "turns:" + certified + ":5349?transport=tcp"},
	} {
		t.Run(row.protocol, func(t *testing.T) {
			c := b.call(t, row.url)
			c.wantRelayed(d, row.protocol)
			c.wantFlow("the call flows")
			c.wantNoLoss()
			c.do("hangUp()")
			eventually(t, "the allocations end with the call", func() error {
				if n := d.status().Allocations; n != 0 {
					return fmt.Errorf("%d allocations", n)
				}
				return nil
			})
		})
	}
	d.stop()
	d.verify()
}

// TestChromiumCallOutlivesTheDaemon kills the daemon in the middle of a call, for long enough that both ends notice.
func TestChromiumCallOutlivesTheDaemon(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	d := startDaemon(t, s, onLoopback...)
	c := newBrowser(t, s).call(t, "turn:"+server4+"?transport=udp")
	before := c.wantRelayed(d, "udp")
	c.wantFlow("the call flows")
	d.kill()
	c.eventually("a second's worth of messages waits at each end", func(_ int, e, other callEnd) error {
		if e.Sent < other.Heard+100 {
			return errors.New("not yet")
		}
		return nil
	})
	d.start()
	c.wantFlow("the call flows again")
	if st := d.status(); st.ToPeer.Packets == 0 {
		t.Errorf("got %+v, want that the daemon relays again", st)
	}
	c.wantNoLoss()
	c.wantSamePath(before, c.wantRelayed(d, "udp"))
	d.stop()
	d.verify()
}

// TestChromiumCallByTheKernel has the kernel relay a call, also while the daemon is dead.
func TestChromiumCallByTheKernel(t *testing.T) {
	l := newLab(t)
	d := l.start()
	c := newBrowser(t, l.clients).call(t, "turn:"+labServer4+":3478?transport=udp")
	before := c.wantRelayed(d, "udp")
	c.wantFlow("the call flows")
	d.offloaded(6)
	c.wantKernel(d, func() { c.wantFlow("the kernel relays the call") })
	d.kill()
	c.wantFlow("the call flows with no daemon")
	d.start()
	c.wantKernel(d, func() { c.wantFlow("the kernel relays the call after a restart") })
	c.wantNoLoss()
	c.wantSamePath(before, c.wantRelayed(d, "udp"))
	d.wantSound()
}

// wantRelayed waits until both ends have chosen a way to each other, and checks that it leads through the relay's
// allocations, which they made over a protocol.
func (c *videoCall) wantRelayed(d *daemon, protocol string) [2]callEnd {
	c.t.Helper()
	c.eventually("both ends are connected", func(_ int, e, _ callEnd) error {
		if !slices.Contains(e.States, "connected") || !e.Local.addr().IsValid() {
			return errors.New("not yet")
		}
		return nil
	})
	over := map[string]string{}
	for _, a := range d.allocations() {
		for _, r := range a.Relayed {
			over[r] = a.Protocol
		}
	}
	ends := c.ends()
	for i, e := range ends {
		if e.Local.Type != "relay" || e.Remote.Type != "relay" || e.Local.RelayProtocol != protocol {
			c.t.Errorf("end %d: got the candidates %+v and %+v, want both relayed, by %s", i, e.Local, e.Remote, protocol)
		}
		if at := e.Local.addr(); over[at.String()] != protocol || ends[1-i].Remote.addr() != at {
			c.t.Errorf("end %d: got %v, and %v at the other end, want one of the relay's over %s: %v", i, at, ends[1-i].Remote.addr(), protocol, over)
		}
	}
	return ends
}

// wantFlow waits until sound, pictures and messages have come to both ends from now on.
func (c *videoCall) wantFlow(what string) {
	c.t.Helper()
	before := c.ends()
	c.eventually(what, func(i int, e, other callEnd) error {
		b, said := before[i], before[1-i].Sent
		if e.Heard < said+20 || e.Audio.Packets < b.Audio.Packets+20 || e.Video.Packets < b.Video.Packets+10 || e.Video.Frames < b.Video.Frames+10 ||
			e.BytesSent <= b.BytesSent || e.BytesReceived <= b.BytesReceived {
			return fmt.Errorf("before that %+v", b)
		}
		return nil
	})
}

// wantNoLoss has both ends send no more messages, and checks that each came to the other end in its turn.
func (c *videoCall) wantNoLoss() {
	c.t.Helper()
	c.do("fallSilent()")
	c.eventually("every message has come", func(_ int, e, other callEnd) error {
		if e.Heard < other.Sent {
			return fmt.Errorf("%d of %d", e.Heard, other.Sent)
		}
		return nil
	})
	for i, e := range c.ends() {
		if len(e.Astray) != 0 {
			c.t.Errorf("end %d: got messages %v out of turn", i, e.Astray)
		}
	}
}

// wantSamePath checks that ICE neither failed nor began anew since before.
func (c *videoCall) wantSamePath(before, after [2]callEnd) {
	c.t.Helper()
	for i, e := range after {
		began := 0
		for _, state := range e.States {
			switch state {
			case "failed", "closed":
				c.t.Errorf("end %d: got the states %v of ICE, want none of failed and closed", i, e.States)
			case "checking":
				began++
			}
		}
		if began != 1 || e.Local != before[i].Local || e.Remote != before[i].Remote {
			c.t.Errorf("end %d: got %+v to %+v and the states %v of ICE, want the same candidates as before, %+v to %+v",
				i, e.Local, e.Remote, e.States, before[i].Local, before[i].Remote)
		}
	}
}

// wantKernel has f wait for some of the call, and checks that all of that went from channel to channel in the kernel.
func (c *videoCall) wantKernel(d *daemon, f func()) {
	c.t.Helper()
	before, user, ends := d.kernel(), d.status(), c.ends()
	f()
	var received uint64
	for i, e := range c.ends() {
		received += e.Audio.Packets - ends[i].Audio.Packets + e.Video.Packets - ends[i].Video.Packets
	}
	after, userAfter := d.kernel(), d.status()
	if got := after.packets("to-channel") - before.packets("to-channel"); got < received {
		c.t.Errorf("the kernel relayed %d packets from channel to channel, want all %d of sound and pictures", got, received)
	}
	if user.ToPeer != userAfter.ToPeer || user.ToClient != userAfter.ToClient {
		c.t.Errorf("userspace relayed too: %+v, before %+v", userAfter, user)
	}
}

// TestChromiumRunsTheHowToPage has the page of docs/howto/webrtc-page.md call itself by the relay.
func TestChromiumRunsTheHowToPage(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	d := startDaemon(t, s, onLoopback...)
	page, err := filepath.Abs("../docs/howto/webrtc-page.html")
	if err != nil {
		t.Fatal(err)
	}
	servers, err := json.Marshal(map[string]any{"iceServers": []map[string]string{
		{"urls": "turn:" + server4 + "?transport=udp", "username": username, "credential": password},
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := newBrowser(t, s).ctx
	if err := chromedp.Do(ctx, chromedp.Navigate("file://"+page)); err != nil {
		t.Fatal(err)
	}
	c := &videoCall{t: t, ctx: ctx}
	c.do(fmt.Sprintf(`document.getElementById("servers").value = %q; document.getElementById("call").click()`, servers))
	text := func(id string) string {
		got, err := chromedp.Run(ctx, chromedp.Evaluate[string](fmt.Sprintf("document.getElementById(%q).textContent", id)))
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	eventually(t, "the page says that messages came back", func() error {
		if got := text("state"); !strings.HasPrefix(got, "relayed: 100 messages came back") {
			return fmt.Errorf("it says %q, and %q", got, text("notes"))
		}
		return nil
	})
	if got := text("notes"); !strings.Contains(got, "relay 127.0.0.1:") || !strings.Contains(got, ", to relay 127.0.0.1:") {
		t.Errorf("got %q, want that both ends are relayed", got)
	}
	if st := d.status(); st.ToPeer.Packets < 200 || st.ToClient.Packets < 200 {
		t.Errorf("got %+v, want all messages relayed both ways", st)
	}
	d.stop()
	d.verify()
}
