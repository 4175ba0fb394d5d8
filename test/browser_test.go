package test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"turnstone/internal/testenv"

	"github.com/chromedp/chromedp"
)

// certified is the name for which a browser's certificates are, and which it resolves to 127.0.0.1.
const certified = "turn.example.org"

// browser is a Chromium in a space.
type browser struct {
	t   testing.TB
	ctx context.Context
}

// newBrowser starts a Chromium in s that trusts the certificates in files. It ends with the test.
func newBrowser(t testing.TB, s *space, trusted ...string) *browser {
	t.Helper()
	home := t.TempDir()
	for _, file := range trusted {
		trust(t, home, file)
	}
	nsenter, net := testenv.Tool(t, "nsenter"), fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), s.net)
	var said strings.Builder
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(testenv.Tool(t, "chromium")), chromedp.Env("HOME="+home), chromedp.CombinedOutput(&said),
		chromedp.ModifyCmdFunc(func(cmd *exec.Cmd) {
			cmd.Args = append([]string{nsenter, net, cmd.Path}, cmd.Args[1:]...)
			cmd.Path = nsenter
		}),
		chromedp.Flag("host-resolver-rules", "MAP "+certified+" 127.0.0.1"),
	)
	for _, name := range []string{
		"no-sandbox", "disable-gpu", "disable-quic", "disable-component-update", "allow-loopback-in-peer-connection",
		"use-fake-device-for-media-stream", "use-fake-ui-for-media-stream",
	} {
		options = append(options, chromedp.Flag(name, true))
	}
	ctx, end := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(func() {
		end()
		if t.Failed() {
			t.Logf("the browser said:\n%s", tail(said.String()))
		}
	})
	ctx, quit := chromedp.NewContext(ctx)
	t.Cleanup(quit)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start a browser: %v", err)
	}
	return &browser{t: t, ctx: ctx}
}

// trust has browsers of a home trust the certificate in file, for the names on it.
func trust(t testing.TB, home, file string) {
	t.Helper()
	db := filepath.Join(home, ".pki", "nssdb")
	if err := os.MkdirAll(db, 0o700); err != nil {
		t.Fatal(err)
	}
	certutil := testenv.Tool(t, "certutil")
	for _, args := range [][]string{
		{"-N", "--empty-password"},
		{"-A", "-n", certified, "-t", "P,,", "-i", file},
	} {
		if out, err := exec.Command(certutil, append(args, "-d", "sql:"+db)...).CombinedOutput(); err != nil {
			t.Fatalf("certutil %s: %v\n%s", args[0], err, out)
		}
	}
}

// videoCall is a call between two ends in one page, testdata/call.html.
type videoCall struct {
	t   testing.TB
	ctx context.Context
}

// call has two ends call each other by the TURN server at url.
func (b *browser) call(t testing.TB, url string) *videoCall {
	t.Helper()
	page, err := filepath.Abs("testdata/call.html")
	if err != nil {
		t.Fatal(err)
	}
	server, err := json.Marshal(map[string]string{"urls": url, "username": username, "credential": password})
	if err != nil {
		t.Fatal(err)
	}
	ctx, leave := chromedp.NewContext(b.ctx)
	t.Cleanup(leave)
	if err := chromedp.Do(ctx, chromedp.Navigate("file://"+page)); err != nil {
		t.Fatal(err)
	}
	c := &videoCall{t: t, ctx: ctx}
	c.do("call(" + string(server) + ")")
	return c
}

// do runs a function of the page to its end.
func (c *videoCall) do(expression string) {
	c.t.Helper()
	if _, err := chromedp.Run(c.ctx, chromedp.Evaluate[chromedp.Void](expression, chromedp.EvalAwaitPromise)); err != nil {
		c.t.Fatalf("%s: %v", expression, err)
	}
}

// callEnd is what an end of a call has seen so far.
type callEnd struct {
	States, Errors           []string // of ICE; in gathering candidates
	Sent, Heard              uint64   // messages
	Astray                   []uint64
	Local, Remote            callCandidate // of the pair in use
	BytesSent, BytesReceived uint64
	Audio, Video             struct{ Packets, Frames uint64 } // received, decoded
}

type callCandidate struct {
	Type          string
	Address       string
	Port          uint16
	RelayProtocol string // of local ones
}

func (c callCandidate) addr() netip.AddrPort {
	ip, _ := netip.ParseAddr(c.Address)
	return netip.AddrPortFrom(ip, c.Port)
}

// ends yields what both ends have seen.
func (c *videoCall) ends() [2]callEnd {
	c.t.Helper()
	ends, err := chromedp.Run(c.ctx, chromedp.Evaluate[[2]callEnd]("report()", chromedp.EvalAwaitPromise))
	if err != nil {
		c.t.Fatalf("report: %v", err)
	}
	return ends
}

// eventually waits until f yields nil for each end and its other one.
func (c *videoCall) eventually(what string, f func(i int, e, other callEnd) error) {
	c.t.Helper()
	eventually(c.t, what, func() error {
		ends := c.ends()
		for i, e := range ends {
			if err := f(i, e, ends[1-i]); err != nil {
				return fmt.Errorf("end %d: %w: %+v", i, err, e)
			}
		}
		return nil
	})
}
