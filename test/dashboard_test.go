package test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"turnstone/internal/shape"
	"turnstone/internal/shape/calls"
	"turnstone/store"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// dashboard is a page of a browser that shows one.
type dashboard struct {
	t   testing.TB
	ctx context.Context
	url string

	mu       sync.Mutex // guards what follows
	requests []string
	problems []string // errors on the console, and what could not be loaded
}

// dashboard opens url in a page of its own.
func (b *browser) dashboard(t testing.TB, url string) *dashboard {
	t.Helper()
	ctx, leave := chromedp.NewContext(b.ctx)
	t.Cleanup(leave)
	p := &dashboard{t: t, ctx: ctx, url: url}
	if err := chromedp.Listen(ctx, p.note); err != nil {
		t.Fatal(err)
	}
	p.act(chromedp.Navigate(url))
	p.eventually("the page is loaded", `document.documentElement.dataset.ready === ""`)
	return p
}

func (p *dashboard) note(ev any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch ev := ev.(type) {
	case *network.EventRequestWillBeSent:
		p.requests = append(p.requests, ev.Request.URL)
	case *log.EventEntryAdded:
		p.problems = append(p.problems, ev.Entry.Text+" "+ev.Entry.URL)
	case *runtime.EventExceptionThrown:
		p.problems = append(p.problems, ev.ExceptionDetails.Text)
	case *runtime.EventConsoleAPICalled:
		p.problems = append(p.problems, "console."+string(ev.Type))
	}
}

// wantClean checks that the page asked nobody else, and that the browser had nothing to complain of.
func (p *dashboard) wantClean() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.requests {
		if !strings.HasPrefix(r, p.url) {
			p.t.Errorf("the page asks for %s", r)
		}
	}
	if len(p.requests) < 5 || len(p.problems) > 0 {
		p.t.Errorf("got %d requests and the problems %q, want some and none", len(p.requests), p.problems)
	}
}

// forgive waits for a problem with text, and forgets it.
func (p *dashboard) forgive(text string) {
	p.t.Helper()
	eventually(p.t, "the browser says "+text, func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		i := slices.IndexFunc(p.problems, func(s string) bool { return strings.Contains(s, text) })
		if i < 0 {
			return fmt.Errorf("got %q", p.problems)
		}
		p.problems = slices.Delete(p.problems, i, i+1)
		return nil
	})
}

func (p *dashboard) act(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	if err := chromedp.Do(p.ctx, steps...); err != nil {
		p.t.Fatal(err)
	}
}

func valueOf[T any](p *dashboard, expression string) T {
	p.t.Helper()
	v, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

func (p *dashboard) text(id string) string {
	p.t.Helper()
	return valueOf[string](p, fmt.Sprintf("document.getElementById(%q).textContent", id))
}

func (p *dashboard) eventually(what, condition string) {
	p.t.Helper()
	eventually(p.t, what, func() error {
		if !valueOf[bool](p, "!!("+condition+")") {
			return fmt.Errorf("the page says %q", valueOf[string](p, "document.body.innerText"))
		}
		return nil
	})
}

// press presses keys, one after the other.
func (p *dashboard) press(keys ...string) {
	p.t.Helper()
	for _, k := range keys {
		p.act(chromedp.KeyEvent(k))
	}
}

// tabTo goes on by the tabulator until the element id has the focus.
func (p *dashboard) tabTo(id string) {
	p.t.Helper()
	for range 60 {
		if valueOf[string](p, "document.activeElement.id") == id {
			return
		}
		p.press(kb.Tab)
	}
	p.t.Fatalf("the tabulator does not lead to %s", id)
}

// scheme has the page be dark or light, and yields the colours of its background and its text.
func (p *dashboard) scheme(name string) [2]string {
	p.t.Helper()
	p.act(func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}},
		})
		return chromedp.Void{}, err
	})
	return valueOf[[2]string](p, "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
}

// picture keeps a picture of the page for the documentation, where $TURNSTONE_PICTURES says so.
func (p *dashboard) picture(name string) {
	p.t.Helper()
	dir := os.Getenv("TURNSTONE_PICTURES")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), png, 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// serveLog has turnstone replay --serve show a log, and yields where.
func serveLog(t testing.TB, s *space, file string) string {
	t.Helper()
	cmd := exec.Command(turnstoneBinary, "replay", "--serve", "--db", file, "--listen", "127.0.0.1:0")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.start(cmd)
	line, err := bufio.NewReader(stderr).ReadString('\n')
	url, ok := strings.CutPrefix(strings.TrimSuffix(strings.TrimSpace(line), ", until interrupted"), "dashboard on ")
	if err != nil || !ok {
		t.Fatalf("replay --serve says %q, %v", line, err)
	}
	return url
}

// TestChromiumDashboardOfALog goes through a log in a browser: by its slider, by playing it, by searching, with a keyboard alone.
func TestChromiumDashboardOfALog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	state, err := shape.Write(t.Context(), dir, 4000, shape.Options{
		Options: calls.Options{Seed: 1, Allocations: 80}, Store: store.Options{SegmentSize: 128 << 10},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := newSpace(t)
	p := newBrowser(t, s).dashboard(t, serveLog(t, s, shape.File(dir)))
	atEnd := fmt.Sprintf("%d of %d allocations", state.Len(), state.Len())
	if got := p.text("found"); !strings.HasPrefix(got, atEnd) {
		t.Fatalf("got %q, want %s", got, atEnd)
	}
	p.eventually("the traffic before is shown", drawn("charts")+` && document.getElementById("traffic-note").textContent.includes("by the usage in the log")`)
	p.wantNames(
		"banner", "main", "heading Turnstone", "region Moment", "slider Moment of the log", "button Play", "combobox Speed", "region Allocations",
		"search", "searchbox Search", "table allocations at this moment", "columnheader Client", "navigation Pages of allocations", "status",
		"region Traffic in the half hour before",
	)

	last := valueOf[float64](p, "Number(slider.value)")
	p.tabTo("slider")
	p.press(kb.ArrowLeft, kb.ArrowLeft, kb.PageDown)
	p.eventually("the keys move the slider, and the state follows", fmt.Sprintf(
		`Number(slider.value) < %f && !where.textContent.startsWith("event %d ")`, last, state.Seq()))
	p.press(kb.Home)
	p.eventually("the first moment is shown", `/^event [1-9] of/.test(where.textContent) && slider.value === slider.min`)
	p.tabTo("play")
	p.press(kb.Enter)
	p.eventually("it plays", `play.textContent === "Pause" && !/^event [1-9] of/.test(where.textContent)`)
	p.press(kb.Enter)
	p.eventually("it pauses", `play.textContent === "Play"`)
	p.tabTo("end")
	p.press(kb.Enter)
	p.eventually("the end is shown", fmt.Sprintf("found.textContent.startsWith(%q)", atEnd))
	p.act(chromedp.Evaluate[chromedp.Void]("document.getElementById('back').focus()"))
	p.press(kb.Enter)
	p.eventually("an event back", fmt.Sprintf(`!where.textContent.startsWith("event %d ")`, state.Seq()))
	p.tabTo("forth")
	p.press(kb.Enter)
	p.eventually("an event forth", fmt.Sprintf(`where.textContent.startsWith("event %d ")`, state.Seq()))

	client := ""
	for a := range state.Allocations() {
		client = a.FiveTuple.Client.String()
	}
	p.tabTo("text")
	p.press(strings.Split(client, "")...)
	p.eventually("the client is found", `found.textContent.startsWith("1 of ") && list.querySelectorAll("tbody tr").length === 1`)
	if got := valueOf[string](p, `list.querySelector("tbody").textContent`); !strings.Contains(got, client) {
		t.Errorf("got %q, want an allocation of %s", got, client)
	}
	p.act(chromedp.Evaluate[chromedp.Void](`list.querySelector("button").focus()`))
	p.press(kb.Enter)
	p.eventually("it is shown with what it holds", `!one.hidden && one.textContent.includes("Permissions") && document.activeElement.getAttribute("aria-expanded") === "true"`)

	p.wantHistory()

	dark, light := p.scheme("dark"), p.scheme("light")
	if dark == light || dark[0] != "rgb(20, 24, 28)" || light[0] != "rgb(255, 255, 255)" {
		t.Errorf("got the colours %q when dark and %q when light", dark, light)
	}
	for _, width := range []int64{375, 320, 1280} {
		p.act(chromedp.EmulateViewport(width, 800))
		if got := valueOf[int64](p, "document.documentElement.scrollWidth"); got > width {
			t.Errorf("the page is %d wide on a screen of %d", got, width)
		}
	}
	p.wantClean()
}

// wantNames checks the tree that a screen reader goes by: it has these roles with their names, and no control without one.
func (p *dashboard) wantNames(names ...string) {
	p.t.Helper()
	tree, err := chromedp.Run(p.ctx, func(ctx context.Context, t *chromedp.Target) (accessibility.GetFullAXTreeResult, error) {
		return cdp.Call(ctx, t, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	})
	if err != nil {
		p.t.Fatal(err)
	}
	var got []string
	for _, n := range tree.Nodes {
		if n.Ignored || n.Role == nil {
			continue
		}
		role, name := strings.Trim(string(n.Role.Value), `"`), ""
		if n.Name != nil {
			name = strings.Trim(string(n.Name.Value), `"`)
		}
		got = append(got, strings.TrimSpace(role+" "+name))
		if name == "" && slices.Contains([]string{"button", "slider", "combobox", "searchbox", "region", "table", "link", "navigation", "dialog", "alertdialog", "textbox", "img"}, role) {
			p.t.Errorf("a %s has no name", role)
		}
	}
	for _, want := range names {
		if !slices.Contains(got, want) {
			role, _, _ := strings.Cut(want, " ")
			p.t.Errorf("a screen reader finds no %q among %q", want, slices.DeleteFunc(slices.Clone(got), func(one string) bool { return !strings.HasPrefix(one, role) }))
		}
	}
}

// drawn says of the charts in an element that there are some, and that something is in them.
func drawn(id string) string {
	return fmt.Sprintf(`[...document.querySelectorAll("#%s polyline")].some((l) => l.getAttribute("points").split(" ").some((at) => Number(at.split(",")[1]) < 90))`, id)
}

// wantHistory opens the history of the allocation that is shown, and that of one of its channels, with the keyboard alone.
func (p *dashboard) wantHistory() {
	p.t.Helper()
	id := valueOf[string](p, `one.querySelector("button").dataset.key.split(" ")[1]`)
	p.act(chromedp.Evaluate[chromedp.Void](`one.querySelector("button").focus()`))
	p.press(kb.Enter)
	p.eventually("its history is shown, and has the focus", `document.activeElement.id === "history" && document.querySelector("#history-events tbody tr")`+
		` && document.getElementById("history-about").textContent.endsWith("up to the end of the log")`)
	if got := p.text("history-events"); !strings.Contains(got, "AllocationCreated") || !strings.Contains(got, "ChannelBound") {
		p.t.Errorf("got the history %q, want all of it", got)
	}
	p.wantNames("region History of allocation "+id, "table events", "columnheader What", "button Leave the history")
	current := `document.querySelector("#history-events [aria-current] button").textContent`
	first := valueOf[string](p, `document.querySelector("#history-events button").textContent`)
	if got := valueOf[string](p, current); got == first {
		p.t.Errorf("event %s is the last one of the allocation at the end of the log, want a later one", got)
	}
	p.act(chromedp.Evaluate[chromedp.Void](`document.querySelector("#history-events button").focus()`))
	p.press(kb.Enter)
	p.eventually("the moment of an event is shown, and marked in the history", fmt.Sprintf(`where.textContent.startsWith("event %s ") && %s === %q`, first, current, first))
	p.tabTo("end")
	p.press(kb.Enter)
	p.eventually("the end is shown", `one.querySelector("[data-key*=' 0x']")`)
	p.act(chromedp.Evaluate[chromedp.Void](`one.querySelector("[data-key*=' 0x']").focus()`))
	key := valueOf[string](p, `document.activeElement.dataset.key`)
	channel := key[strings.LastIndex(key, " ")+1:]
	p.press(kb.Enter)
	p.eventually("the history of a channel is shown", fmt.Sprintf(`document.getElementById("history-title").textContent === "History of channel %s of allocation %s" &&
		document.getElementById("history-events").textContent.includes("channel %s to ")`, channel, id, channel))
	p.tabTo("history-close")
	p.press(kb.Enter)
	p.eventually("the history is left, and the focus is where it was", fmt.Sprintf(`document.getElementById("history").hidden && document.activeElement.dataset.key === %q`, key))
	p.tabTo("number")
	p.press("1", kb.Enter)
	p.eventually("the history of an allocation that is long gone", `document.getElementById("history-title").textContent === "History of allocation 1" &&
		document.getElementById("history-about").textContent.endsWith("that is all")`)
	p.act(chromedp.Evaluate[chromedp.Void](`location.hash = "allocation=999999"`))
	p.eventually("there is no such allocation", `document.getElementById("history-about").textContent === "allocation 999999: there is nothing of it in the log" &&
		document.querySelectorAll("#history-events tbody tr").length === 0`)
	p.forgive("404")
	p.act(chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`location.hash = "allocation=%s"`, id)))
	p.eventually("an address leads to a history", fmt.Sprintf(`document.getElementById("history-title").textContent === "History of allocation %s"`, id))
}

const token = "0123456789abcdef"

// TestChromiumDashboardOfADaemon watches a call in the dashboard of the daemon that relays it.
func TestChromiumDashboardOfADaemon(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	d := startDaemon(t, s, append(slices.Clone(onLoopback), "--dashboard-token", token)...)
	b := newBrowser(t, s)
	c := b.call(t, "turn:"+server4+"?transport=udp")
	c.wantRelayed(d, "udp")
	p := b.dashboard(t, "http://127.0.0.1:9479/")
	p.act(chromedp.EmulateViewport(1000, 900))
	p.eventually("the call is there, and its traffic both ways", `/^[2-9] of/.test(found.textContent) &&
		[...charts.querySelectorAll("li")].filter((l) => /[1-9].* [kM]bit\/s/.test(l.textContent)).length >= 2 &&
		charts.querySelector("polyline").getAttribute("points").split(" ").length >= 8 && facts.textContent.includes("userspace")`)
	p.picture("dashboard.png")
	p.act(chromedp.EmulateViewport(375, 800))
	if got := valueOf[int64](p, "document.documentElement.scrollWidth"); got > 375 {
		t.Errorf("the page is %d wide on a screen of 375", got)
	}
	c.do("hangUp()")
	p.eventually("it follows the log: nobody is there any more", `found.textContent.startsWith("0 of 0 ")`)
	p.act(chromedp.Evaluate[chromedp.Void](`slider.focus()`))
	p.press(kb.Home)
	p.eventually("nobody was there at first", `/^event [1-4] of/.test(where.textContent) && found.textContent.startsWith("0 of 0 ")`)
	p.act(chromedp.Evaluate[chromedp.Void](`speed.value = 10; play.click()`))
	p.eventually("the call is there again when the log is played", `/^[2-9] of/.test(found.textContent)`)
	p.eventually("it plays to the end", `play.textContent === "Play" && found.textContent.startsWith("0 of 0 ")`)
	p.eventually("the traffic of that time is in the log", drawn("charts")+` && document.getElementById("traffic-title").textContent === "Traffic in the half hour before"`)
	p.act(chromedp.Evaluate[chromedp.Void](`location.hash = "allocation=1"`))
	p.eventually("the history of an allocation that is gone", drawn("history-charts")+` && document.getElementById("history-events").textContent.includes("AllocationDeleted")`)
	p.act(chromedp.EmulateViewport(1000, 900))
	p.act(chromedp.Evaluate[chromedp.Void](`document.getElementById("history").scrollIntoView()`))
	p.picture("dashboard-history.png")
	p.wantClean()
	d.stop()
	d.verify()
}

// TestChromiumDashboardForAnOperator ends an allocation in the dashboard, with the keyboard alone.
func TestChromiumDashboardForAnOperator(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	d := startDaemon(t, s, append(slices.Clone(onLoopback), "--dashboard-token", token)...)
	b := newBrowser(t, s)
	c := b.call(t, "turn:"+server4+"?transport=udp")
	c.wantRelayed(d, "udp")
	p := b.dashboard(t, "http://127.0.0.1:9479/")
	p.eventually("the call is there", `list.querySelectorAll("tbody tr").length >= 2`)
	p.act(chromedp.Evaluate[chromedp.Void](`list.querySelector("button").focus()`))
	p.press(kb.Enter)
	p.eventually("an allocation is shown, which nobody may close yet", `!one.hidden && !one.textContent.includes("Close allocation")`)
	p.act(chromedp.Evaluate[chromedp.Void](`document.getElementById("sign").focus()`))
	p.press(kb.Enter)
	p.eventually("the token is asked for", `document.activeElement.id === "token" && document.getElementById("sign-dialog").open`)
	p.wantNames("dialog Sign in", "textbox The dashboard-token of the daemon", "button Cancel")
	p.press(strings.Split("wrong", "")...)
	p.press(kb.Enter)
	p.eventually("a wrong token is refused", `document.getElementById("sign-error").textContent === "this is not the token"`)
	p.forgive("401")
	p.press(kb.Escape)
	p.eventually("nothing was kept", `!document.getElementById("sign-dialog").open && sessionStorage.length === 0 && document.getElementById("sign").textContent === "Sign in"`)
	p.act(chromedp.Evaluate[chromedp.Void](`document.getElementById("sign").focus()`))
	p.press(kb.Enter)
	p.press(strings.Split(token, "")...)
	p.press(kb.Enter)
	p.eventually("the operator is signed in", `document.getElementById("sign").textContent === "Sign out" && one.textContent.includes("Close allocation")`)
	if got := valueOf[string](p, `document.cookie + location.href + Object.keys(localStorage)`); strings.Contains(got, token) {
		t.Errorf("the token is in %q", got)
	}
	p.act(chromedp.Evaluate[chromedp.Void](`one.querySelector("[data-key^=close]").focus()`))
	id := valueOf[string](p, `document.activeElement.dataset.key.split(" ")[1]`)
	p.press(kb.Enter)
	p.eventually("it is asked again, and Cancel has the focus", `window["confirm-dialog"].open && document.activeElement.id === "confirm-cancel"`)
	p.wantNames("alertdialog Close allocation "+id+"?", "button Close the allocation")
	p.picture("dashboard-close.png")
	p.press(kb.Enter)
	p.eventually("nothing is done, and the focus is where it was", fmt.Sprintf(`!window["confirm-dialog"].open && document.activeElement.dataset.key === "close %s"`, id))
	if got := valueOf[string](p, `found.textContent`); strings.HasPrefix(got, "0 ") {
		t.Errorf("got %q, want that the call goes on", got)
	}
	p.press(kb.Enter)
	p.tabTo("confirm-do")
	p.press(kb.Enter)
	p.eventually("it is closed", fmt.Sprintf(`document.getElementById("said").textContent === "allocation %s is closed" && !document.querySelector("[data-key='allocation %s']")`, id, id))
	_, dump, _ := d.command("log", "dump", "--data", d.dir)
	for _, want := range []string{
		fmt.Sprintf(`"kind":"OperatorActed","event":{"what":"close allocation %s, in the dashboard, from 127.0.0.1"}`, id),
		fmt.Sprintf(`"kind":"AllocationDeleted","event":{"allocation":%s,"reason":"operator"}`, id),
	} {
		if !strings.Contains(dump, want) {
			t.Errorf("the log has no %s in\n%s", want, dump)
		}
	}
	p.act(chromedp.Evaluate[chromedp.Void](`document.getElementById("sign").focus()`))
	p.press(kb.Enter)
	p.eventually("the operator has signed out", `document.getElementById("sign").textContent === "Sign in" && sessionStorage.length === 0`)
	p.act(chromedp.EmulateViewport(375, 800))
	if got := valueOf[int64](p, "document.documentElement.scrollWidth"); got > 375 {
		t.Errorf("the page is %d wide on a screen of 375", got)
	}
	p.wantClean()
	d.stop()
	d.verify()
}
