package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/kernel"
	core "turnstone/turn"

	"github.com/charmbracelet/x/vt"
	"github.com/creack/pty"
	"github.com/pion/logging"
	"github.com/pion/turn/v4"
)

// terminal is a command on a pseudoterminal, and the screen it draws.
type terminal struct {
	t   *testing.T
	cmd *exec.Cmd
	pty *os.File

	mu     sync.Mutex // guards what is below
	screen *vt.Emulator
	raw    bytes.Buffer // all that was written
}

func inTerminal(t *testing.T, width, height int, env []string, name string, args ...string) *terminal {
	t.Helper()
	w := &terminal{t: t, cmd: exec.Command(name, args...), screen: vt.NewEmulator(width, height)}
	w.cmd.Env = append(os.Environ(), append([]string{"TERM=xterm-256color", "COLORTERM="}, env...)...)
	var err error
	if w.pty, err = pty.StartWithSize(w.cmd, &pty.Winsize{Rows: uint16(height), Cols: uint16(width)}); err != nil {
		t.Fatal(err)
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { _, _ = io.Copy(w.pty, w.screen) }) // answers to what the command asks the terminal
	pumps.Go(func() { _, _ = io.Copy(w, w.pty) })
	t.Cleanup(func() {
		_ = w.cmd.Process.Kill()
		_ = w.cmd.Wait()
		_ = w.screen.InputPipe().(io.Closer).Close()
		_ = w.pty.Close()
		pumps.Wait()
	})
	return w
}

// Write takes what the command draws.
func (w *terminal) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.raw.Write(b)
	return w.screen.Write(b)
}

// lines are the lines of the screen without the blanks at their ends.
func (w *terminal) lines() (out []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for line := range strings.SplitSeq(w.screen.String(), "\n") {
		out = append(out, strings.TrimRight(line, " "))
	}
	return out
}

func (w *terminal) text() string { return strings.Join(w.lines(), "\n") }

// await waits until the screen has all the texts.
func (w *terminal) await(texts ...string) {
	w.t.Helper()
	w.awaits(fmt.Sprintf("%q", texts), func(screen string) bool {
		for _, s := range texts {
			if !strings.Contains(screen, s) {
				return false
			}
		}
		return true
	})
}

func (w *terminal) awaits(what string, holds func(screen string) bool) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); !holds(w.text()); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("no %s within %v on the screen\n%s", what, patience, w.text())
		}
	}
}

func (w *terminal) keys(s string) {
	w.t.Helper()
	if _, err := w.pty.WriteString(s); err != nil {
		w.t.Fatal(err)
	}
}

func (w *terminal) resize(width, height int) {
	w.t.Helper()
	w.mu.Lock()
	w.screen.Resize(width, height)
	w.mu.Unlock()
	if err := pty.Setsize(w.pty, &pty.Winsize{Rows: uint16(height), Cols: uint16(width)}); err != nil {
		w.t.Fatal(err)
	}
}

// ends wants the command to end by itself with code 0.
func (w *terminal) ends() {
	w.t.Helper()
	done := make(chan error, 1)
	go func() { done <- w.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			w.t.Errorf("it ended with %v\n%s", err, w.text())
		}
	case <-time.After(patience):
		w.t.Fatalf("it did not end\n%s", w.text())
	}
}

// startDaemon starts a daemon and waits until it answers.
func startDaemon(t *testing.T, data string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("turnstone", append([]string{"serve", "--data", data, "--metrics", "off", "--kernel", "off"}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	awaitDaemon(t, data)
	return cmd
}

// awaitDaemon waits until the daemon of a data directory answers requests.
func awaitDaemon(t *testing.T, data string) {
	t.Helper()
	client := admin.NewClient(filepath.Join(data, "admin.sock"))
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if st, err := client.Status(t.Context()); err == nil && st.Ready {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no daemon within %v", patience)
		}
	}
}

// talk has a client send to a peer that sends everything back, until the test ends.
func talk(t *testing.T, server string) (peer string) {
	t.Helper()
	echo, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	local, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	quiet := logging.NewDefaultLoggerFactory()
	quiet.DefaultLogLevel = logging.LogLevelDisabled
	client, err := turn.NewClient(&turn.ClientConfig{
		TURNServerAddr: server, STUNServerAddr: server, Conn: local, Username: "alice", Password: "secret", Realm: "turnstone", LoggerFactory: quiet,
	})
	if err == nil {
		err = client.Listen()
	}
	var relayed net.PacketConn
	if err == nil {
		relayed, err = client.Allocate()
	}
	if err == nil {
		err = client.CreatePermission(echo.LocalAddr())
	}
	if err != nil {
		t.Fatal(err)
	}
	var busy sync.WaitGroup
	stop := make(chan struct{})
	busy.Go(func() {
		b := make([]byte, 1500)
		for {
			n, from, err := echo.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			_, _ = echo.WriteTo(b[:n], from)
		}
	})
	busy.Go(func() {
		ticks := time.NewTicker(5 * time.Millisecond)
		defer ticks.Stop()
		for {
			select {
			case <-stop:
				return
			case <-ticks.C:
				_, _ = relayed.WriteTo(make([]byte, 500), echo.LocalAddr())
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		echo.Close()
		local.Close()
		client.Close()
		busy.Wait()
	})
	return echo.LocalAddr().String()
}

// freePort is a UDP port of the loopback that nobody had.
func freePort(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().String()
}

// coloured is what sets a colour.
var coloured = regexp.MustCompile("\x1b\\[([0-9]+;)*(3[0-8]|4[0-8]|9[0-7]|10[0-7])[0-9;]*m")

func TestTopInATerminal(t *testing.T) {
	data, server := t.TempDir(), freePort(t)
	args := []string{"--listen", "udp://" + server, "--relay-ports", "20000-40000", "--allow-peer", "127.0.0.1", "--user", "alice:secret"}
	daemon := startDaemon(t, data, args...)
	peer := talk(t, server)
	w := inTerminal(t, 80, 24, []string{"NO_COLOR="}, "turnstone", "top", "--data", data, "--interval", "200ms")
	w.await("ready", "allocations 1", "PATH", "to peer", "to client", "LOG", "checkpoint", "KERNEL  userspace: kernel.mode is off", "alice", "0x4", peer, "q quit", "p pause")
	w.awaits("sparkline of both directions", func(screen string) bool {
		return strings.Count(screen, "█") >= 2
	})
	lines := w.lines()
	if len(lines) != 24 || !strings.Contains(lines[0], "turnstone") || !strings.Contains(lines[23], "every 200ms") {
		t.Errorf("got %d lines, want the title first and the keys last of 24\n%s", len(lines), w.text())
	}
	if strings.Contains(w.text(), "…") {
		t.Errorf("something is cut off in 80 columns\n%s", w.text())
	}
	w.mu.Lock()
	found := coloured.MatchString(w.raw.String())
	w.mu.Unlock()
	if !found {
		t.Error("no colour on a terminal that has it")
	}

	w.keys("p")
	w.await("paused")
	w.keys("p")
	w.awaits("end of the pause", func(screen string) bool { return !strings.Contains(screen, "paused") })

	w.resize(120, 40)
	w.awaits("last of 40 lines", func(string) bool { l := w.lines(); return len(l) == 40 && strings.Contains(l[39], "every 200ms") })
	w.resize(60, 10)
	w.awaits("last of 10 lines", func(string) bool {
		l := w.lines()
		return len(l) == 10 && strings.Contains(l[9], "every 200ms") && strings.Contains(l[0], "ready")
	})
	w.resize(80, 24)
	w.await(peer)

	_ = daemon.Process.Kill()
	_ = daemon.Wait()
	w.await("AWAY since", "allocations 1")
	startDaemon(t, data, args...)
	w.awaits("daemon that is back", func(screen string) bool {
		return !strings.Contains(screen, "AWAY") && strings.Contains(screen, "ready") && strings.Contains(screen, peer)
	})

	w.keys("q")
	w.ends()
}

func TestTopWithoutColour(t *testing.T) {
	data := t.TempDir()
	startDaemon(t, data, "--listen", "udp://"+freePort(t), "--user", "alice:secret")
	w := inTerminal(t, 80, 24, []string{"NO_COLOR=1"}, "turnstone", "top", "--data", data)
	w.await("ready", "nothing was relayed")
	w.keys("\x03")
	w.ends()
	w.mu.Lock()
	defer w.mu.Unlock()
	if found := coloured.FindString(w.raw.String()); found != "" {
		t.Errorf("got the colour %q in spite of NO_COLOR", found)
	}
}

func TestTopShowsTheKernel(t *testing.T) {
	ns, data, instance := vethSpace(t), t.TempDir(), fmt.Sprintf("top-%d", os.Getpid())
	startBesideKernel(t, ns, data, instance)
	awaitDaemon(t, data)
	w := inTerminal(t, 80, 24, nil, "turnstone", "top", "--data", data, "--interval", "200ms")
	w.await("kernel     to peer", "userspace  to client", "KERNEL  ", "relay generic", "slots ", " of ", "lag 0 events", "drift repaired 0", "passed up: ")
	w.keys("q")
	w.ends()
}

func TestKernelBindingsHaveBothDirections(t *testing.T) {
	rows := []kernel.Row{
		{Kind: kernel.Guard, Allocation: 1, Packets: 9},
		{Kind: kernel.ToPeer, Allocation: 1, Channel: 0x4000, Packets: 2, Bytes: 20},
		{Kind: kernel.ToClient, Allocation: 1, OutChannel: 0x4000, Packets: 3, Bytes: 30},
		{Kind: kernel.ToPeer, Allocation: 2, Channel: 0x4000, OutChannel: 0x4001, Packets: 4, Bytes: 40}, // to another allocation's channel
	}
	users := map[core.AllocationID]string{1: "alice", 2: "bob"}
	peers := map[core.AllocationID]map[core.ChannelNumber]string{1: {0x4000: "192.0.2.9:9"}}
	want := []admin.Binding{
		{Allocation: 1, Username: "alice", Channel: 0x4000, Peer: "192.0.2.9:9", Path: core.PathKernel, ToPeer: core.Count{Packets: 2, Bytes: 20}, ToClient: core.Count{Packets: 3, Bytes: 30}},
		{Allocation: 2, Username: "bob", Channel: 0x4000, Path: core.PathKernel, ToPeer: core.Count{Packets: 4, Bytes: 40}},
	}
	if got := kernelBindings(rows, users, peers); !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
