package test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a condition may take to come true.
const patience = 20 * time.Second

const (
	realm    = "example.org"
	username = "alice"
	password = "correct horse"
	server4  = "127.0.0.1:3478"
	server6  = "[::1]:3478"
	metrics  = "127.0.0.1:9478"
)

// onLoopback are flags of a daemon that relays between clients and peers on lo.
var onLoopback = []string{
	"--listen", "udp://" + server4, "--listen", "udp://" + server6, "--relay-ip", "127.0.0.1", "--relay-ip", "::1",
	"--realm", realm, "--user", username + ":" + password, "--metrics", metrics,
	"--allow-peer", "127.0.0.1/32", "--allow-peer", "::1/128", "--allow-peer", "127.0.0.0/8",
}

// daemon is a turnstone that a test runs, kills and starts again on one data directory.
type daemon struct {
	t           testing.TB
	space       *space
	dir         string
	flags       []string
	trace       []string     // command line that runs the daemon's, for strace
	prepare     func() error // changes what the thread hands down to the daemon it starts; nil for nothing
	attributes  syscall.SysProcAttr
	files       []*os.File // that it inherits, from descriptor 3 on
	environment []string   // besides that of the test
	binary      string     // empty: the one under test

	cmd   *exec.Cmd
	ended chan struct{} // closed when the process has ended

	mu     sync.Mutex // guards stdout
	stdout []string   // lines of the present process
}

// newDaemon describes a daemon with a data directory of its own. It does not start it.
func newDaemon(t testing.TB, s *space, flags ...string) *daemon {
	t.Helper()
	d := &daemon{t: t, space: s, dir: filepath.Join(t.TempDir(), "data"), flags: flags}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(d.stderr())
			t.Logf("the daemon said:\n%s", log[max(0, len(log)-8192):])
		}
	})
	return d
}

// startDaemon starts a daemon and waits until it is ready.
func startDaemon(t testing.TB, s *space, flags ...string) *daemon {
	t.Helper()
	d := newDaemon(t, s, flags...)
	d.start()
	return d
}

// stderr is the file with the log of all processes of d.
func (d *daemon) stderr() string { return filepath.Join(filepath.Dir(d.dir), "stderr") }

// start starts d and waits until it is ready.
func (d *daemon) start() {
	d.t.Helper()
	d.launch()
	d.await()
}

// launch starts d. It may not be ready yet.
func (d *daemon) launch() {
	d.t.Helper()
	args := append([]string{cmp.Or(d.binary, turnstoneBinary), "serve", "--data", d.dir}, d.flags...)
	args = append(append([]string(nil), d.trace...), args...)
	log, err := os.OpenFile(d.stderr(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	read, write, err := os.Pipe()
	if err != nil {
		d.t.Fatal(err)
	}
	cmd, ended := exec.Command(args[0], args[1:]...), make(chan struct{})
	cmd.Stdout, cmd.Stderr = write, log
	attributes := d.attributes
	attributes.Setpgid = true
	cmd.SysProcAttr = &attributes
	cmd.ExtraFiles, cmd.Env = d.files, append(os.Environ(), d.environment...)
	d.cmd, d.ended, d.stdout = cmd, ended, nil
	d.space.do(func() error {
		if d.prepare != nil {
			if err := d.prepare(); err != nil {
				return err
			}
		}
		return cmd.Start()
	})
	_ = write.Close()
	for _, f := range d.files {
		_ = f.Close()
	}
	d.files = nil
	d.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
	})
	go func() {
		defer close(ended)
		defer read.Close()
		for lines := bufio.NewScanner(read); lines.Scan(); {
			d.mu.Lock()
			d.stdout = append(d.stdout, lines.Text())
			d.mu.Unlock()
		}
		_ = cmd.Wait()
	}()
}

// await waits until d says that it is ready.
func (d *daemon) await() {
	d.t.Helper()
	eventually(d.t, "the daemon is ready", func() error {
		select {
		case <-d.ended:
			d.t.Fatalf("the daemon ended: %v", d.cmd.ProcessState)
		default:
		}
		if !strings.Contains(d.said(), "turnstone ready on ") {
			return errors.New("no ready line")
		}
		return nil
	})
}

// said is what the present process wrote to stdout.
func (d *daemon) said() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.stdout, "\n")
}

// signal sends s to the daemon and waits until it has ended. It yields the exit code, -1 for a kill.
func (d *daemon) signal(s syscall.Signal) int {
	d.t.Helper()
	if err := syscall.Kill(d.pid(), s); err != nil {
		d.t.Fatal(err)
	}
	return d.wait()
}

// pid is of the daemon itself, also where something runs it.
func (d *daemon) pid() int {
	if d.trace == nil {
		return d.cmd.Process.Pid
	}
	b, err := os.ReadFile(filepath.Join(d.dir, "lock"))
	if err != nil {
		d.t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		d.t.Fatal(err)
	}
	return pid
}

// wait waits until the process has ended and yields its exit code.
func (d *daemon) wait() int {
	d.t.Helper()
	select {
	case <-d.ended:
	case <-time.After(patience):
		d.t.Fatal("the daemon does not end")
	}
	return d.cmd.ProcessState.ExitCode()
}

func (d *daemon) kill() { d.t.Helper(); d.signal(syscall.SIGKILL) }

// stop ends d in good order.
func (d *daemon) stop() {
	d.t.Helper()
	if code := d.signal(syscall.SIGTERM); code != 0 {
		d.t.Errorf("exit code after SIGTERM: got %d, want 0", code)
	}
}

// command runs turnstone with args and yields its exit code and what it wrote.
func (d *daemon) command(args ...string) (code int, stdout, stderr string) {
	d.t.Helper()
	var out, errs strings.Builder
	cmd := exec.Command(turnstoneBinary, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	d.space.do(func() error {
		if err := cmd.Run(); cmd.ProcessState == nil {
			return err
		}
		return nil
	})
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// ask runs a command that must succeed on d's data and yields what it wrote.
func (d *daemon) ask(args ...string) string {
	d.t.Helper()
	code, out, errs := d.command(append(args, "--data", d.dir)...)
	if code != 0 {
		d.t.Fatalf("turnstone %s: exit code %d: %s", strings.Join(args, " "), code, errs)
	}
	return out
}

// status is what turnstone status says, as far as tests need it.
type status struct {
	Version     string            `json:"version"`
	PID         int               `json:"pid"`
	Ready       bool              `json:"ready"`
	Kernel      string            `json:"kernel"`
	Seq         uint64            `json:"seq"`
	Room        string            `json:"room"`
	Allocations int               `json:"allocations"`
	ToPeer      count             `json:"to_peer"` // in userspace
	ToClient    count             `json:"to_client"`
	Drops       map[string]uint64 `json:"drops"`
}

type count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

func (d *daemon) status() status {
	d.t.Helper()
	return decode[status](d.t, d.ask("status", "-o", "json"))
}

// allocation is what turnstone allocation list says, as far as tests need it.
type allocation struct {
	ID          uint64   `json:"id"`
	Protocol    string   `json:"protocol"`
	Client      string   `json:"client"`
	Relayed     []string `json:"relayed"`
	Username    string   `json:"username"`
	Permissions []struct {
		Peer string `json:"peer"`
	} `json:"permissions"`
	Channels []struct {
		Number string `json:"number"`
		Peer   string `json:"peer"`
	} `json:"channels"`
}

// allocations are the live ones by client.
func (d *daemon) allocations() map[string]allocation {
	d.t.Helper()
	byClient := map[string]allocation{}
	for _, a := range decode[[]allocation](d.t, d.ask("allocation", "list", "-o", "json")) {
		if _, twice := byClient[a.Client]; twice {
			d.t.Errorf("two allocations of client %s", a.Client)
		}
		byClient[a.Client] = a
	}
	return byClient
}

// event is a line of turnstone log dump.
type event struct {
	Seq   uint64         `json:"seq"`
	Time  time.Time      `json:"time"`
	Kind  string         `json:"kind"`
	Event map[string]any `json:"event"`
}

func (d *daemon) events() []event {
	d.t.Helper()
	return decode[[]event](d.t, d.ask("log", "dump", "-o", "json"))
}

// verify checks the log: of a daemon that runs its records, else the whole file.
func (d *daemon) verify() {
	d.t.Helper()
	d.ask("log", "verify")
}

// get asks the metrics listener for a path.
func (d *daemon) get(path string) (code int, body string) {
	d.t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (c net.Conn, err error) {
			d.space.do(func() error {
				c, err = net.DialTimeout("tcp", metrics, patience)
				return nil
			})
			return c, err
		},
	}}
	resp, err := client.Get("http://" + metrics + path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	if _, err := bufio.NewReader(resp.Body).WriteTo(&b); err != nil {
		d.t.Fatal(err)
	}
	return resp.StatusCode, b.String()
}

func decode[T any](t testing.TB, s string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatalf("%v in %.200s", err, s)
	}
	return v
}

// eventually waits until f yields nil.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	within(t, patience, what, f)
}

// within is eventually for what may take longer, or must not take as long.
func within(t testing.TB, limit time.Duration, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: not after %v: %v", what, limit, err)
}
