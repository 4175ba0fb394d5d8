package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"turnstone/internal/testenv"
)

// programs builds turnstone and the demo where everybody may run them.
func programs(t *testing.T) (turnstone, demo string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "demo-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	turnstone, demo = filepath.Join(dir, "turnstone"), filepath.Join(dir, "demo")
	for to, from := range map[string]string{turnstone: "turnstone/cmd/turnstone", demo: "turnstone/demo"} {
		if out, err := exec.Command("go", "build", "-o", to, from).CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", from, err, out)
		}
	}
	return turnstone, demo
}

var over = regexp.MustCompile(`the call is over: (\d+) packets sent, (\d+) came back, (\d+) lost`)

// TestDemo runs the demo as root, where the kernel relays and nothing may be lost, and as nobody.
func TestDemo(t *testing.T) {
	testenv.Root(t)
	turnstone, demo := programs(t)
	for _, row := range []struct {
		name string
		user uint32
		want []string // in what it shows
	}{
		{"Root", 0, []string{"the kernel has the channel", "daemon dead", ", 0 lost", "ChannelBound", "root "}},
		{"Nobody", 65534, []string{"without root", "kill -9", "ChannelBound", "root "}},
	} {
		t.Run(row.name, func(t *testing.T) {
			cmd := exec.Command(demo, "-turnstone", turnstone, "-talk", "1s")
			if row.user != 0 {
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: row.user, Gid: row.user}}
			}
			cmd.Dir = filepath.Dir(demo)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, w := range row.want {
				if !strings.Contains(string(out), w) {
					t.Errorf("it does not show %q:\n%s", w, out)
				}
			}
			if m := over.FindSubmatch(out); m == nil || string(m[2]) == "0" {
				t.Errorf("nothing came back:\n%s", out)
			}
			if pins, _ := filepath.Glob("/sys/fs/bpf/turnstone/demo-*"); len(pins) > 0 {
				t.Errorf("it left %v behind", pins)
			}
		})
	}
}

// TestPicture reads the picture as XML, with all that was shown in it, and an end that needs no animation.
func TestPicture(t *testing.T) {
	s := newScreen(io.Discard)
	s.say("$ turnstone serve --user <alice>")
	for range rows + 5 {
		s.say("a line & more")
	}
	var words strings.Builder
	animated := 0
	for d := xml.NewDecoder(strings.NewReader(string(s.svg()))); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch x := token.(type) {
		case xml.CharData:
			words.Write(x)
		case xml.StartElement:
			if x.Name.Local == "animate" {
				animated++
			}
		}
	}
	if got := strings.ReplaceAll(words.String(), "\u00a0", " "); !strings.Contains(got, "--user <alice>") || strings.Count(got, "a line & more") != rows+5 {
		t.Errorf("text of the picture: got %q", got)
	}
	if animated != rows+6 {
		t.Errorf("got %d lines that appear, want %d", animated, rows+6)
	}
	if want := "translate(0 -108)"; !strings.Contains(string(s.svg()), want) {
		t.Errorf("the picture does not stand at its end, %s", want)
	}
}

// TestLongOutputsAreCut leaves the middle of a long table out and says so.
func TestLongOutputsAreCut(t *testing.T) {
	s := newScreen(io.Discard)
	s.lines(strings.Repeat("row\n", 40) + "last\n")
	if n := len(s.shown); n != tableLines {
		t.Errorf("got %d lines, want %d", n, tableLines)
	}
	if got := s.shown[tableLines-2].text; got != "... 28 more" {
		t.Errorf("got %q", got)
	}
	if got := s.shown[tableLines-1].text; got != "last" {
		t.Errorf("got %q, want the last line", got)
	}
}
