package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	realm    = "bench"
	username = "bench"
	password = "bench"

	firstRelayPort = 10000
	lastRelayPort  = 65535
)

// kind is a server that can be measured. command makes a process that keeps what it
// has in dir, listens on listenAddress and relays from relayHost.
type kind struct {
	name    string
	command func(l *lab, dir string) *exec.Cmd
	version func(l *lab) string
}

// Names of the kinds, as the tables and -servers have them.
const (
	turnstoneName = "turnstone"
	coturnName    = "coturn"
	pionName      = "pion"
)

var allKinds = []kind{
	{turnstoneName, turnstoneCommand, turnstoneVersion},
	{coturnName, coturnCommand, coturnVersion},
	{pionName, pionCommand, pionVersion},
}

func turnstoneCommand(l *lab, dir string) *exec.Cmd {
	return exec.Command(l.binary, "serve",
		"--listen", "udp://"+listenAddress.String(), "--relay-ip", relayHost.Addr().String(),
		"--relay-ports", fmt.Sprintf("%d-%d", firstRelayPort, lastRelayPort), "--realm", realm,
		"--user", username+":"+password, "--allow-peer", peerAddresses.String(), "--data", filepath.Join(dir, "data"),
		"--admin-socket", filepath.Join(dir, "admin.sock"), "--metrics", "off", "--log-level", "warn", "--kernel", "off")
}

func turnstoneVersion(l *lab) string {
	out, err := exec.Command(l.binary, "version").Output()
	if err != nil {
		return "of unknown version"
	}
	words := strings.Fields(strings.TrimPrefix(strings.TrimSpace(string(out)), turnstoneName))
	return strings.Join(words[:min(len(words), 1)], " ")
}

// coturnCommand is the smallest configuration that relays UDP for one user, with no
// database and no log.
func coturnCommand(_ *lab, dir string) *exec.Cmd {
	return exec.Command("turnserver", "-n", "-L", listenAddress.Addr().String(), "-p", strconv.Itoa(int(listenAddress.Port())),
		"-E", relayHost.Addr().String(), "--min-port", strconv.Itoa(firstRelayPort), "--max-port", strconv.Itoa(lastRelayPort),
		"-a", "-u", username+":"+password, "-r", realm, "-b", filepath.Join(dir, "turndb"), "--pidfile", filepath.Join(dir, "pid"),
		"--no-cli", "--no-tcp", "--no-tls", "--no-dtls", "--no-tcp-relay", "--no-rfc5780", "--no-software-attribute",
		"--log-file", "/dev/null", "--no-stdout-log", "--simple-log")
}

func coturnVersion(*lab) string {
	out, err := exec.Command("turnserver", "--version").Output()
	if err != nil {
		return "(not installed)"
	}
	words := strings.Fields(string(out))
	if len(words) == 0 {
		return "of unknown version"
	}
	return words[len(words)-1]
}

// server is a process in the relay's namespace.
type server struct {
	kind    kind
	dir     string
	cmd     *exec.Cmd
	stderr  *os.File
	ready   chan time.Time // when turnstone said that it serves
	exited  chan struct{}
	network *network
}

// start starts a server of its own for a measurement and waits until it answers.
func (l *lab) start(ctx context.Context, k kind) (*server, error) {
	l.number++
	dir := filepath.Join(l.dir, fmt.Sprintf("%s-%d", k.name, l.number))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	s := &server{kind: k, dir: dir, network: l.net}
	if err := s.launch(l); err != nil {
		return nil, err
	}
	if err := s.waitAnswer(ctx); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// launch starts the process, again if it ended before.
func (s *server) launch(l *lab) (err error) {
	s.cmd = s.kind.command(l, s.dir)
	if s.stderr, err = os.OpenFile(filepath.Join(s.dir, "stderr"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600); err != nil {
		return err
	}
	s.cmd.Stderr = s.stderr
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	s.cmd.Stdout = in
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // with the namespace's thread
	err = l.net.relay.Do(s.cmd.Start)
	_ = in.Close()
	if err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", s.kind.name, err), out.Close(), s.stderr.Close())
	}
	s.ready, s.exited = make(chan time.Time, 1), make(chan struct{})
	go s.watch(out, s.cmd, s.ready, s.exited)
	return nil
}

// watch reads what the process says until it ends.
func (s *server) watch(out *os.File, cmd *exec.Cmd, ready chan<- time.Time, exited chan<- struct{}) {
	defer close(exited)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "turnstone ready") {
			ready <- time.Now()
		}
	}
	_ = out.Close()
	_ = cmd.Wait() // it was killed, or its stderr says what happened
}

// waitAnswer waits until the server answers a Binding request.
func (s *server) waitAnswer(ctx context.Context) error {
	c, err := newClients(s.network)
	if err != nil {
		return err
	}
	defer c.close()
	for began := time.Now(); time.Since(began) < 10*time.Second && ctx.Err() == nil; {
		select {
		case <-s.exited:
			return fmt.Errorf("%s ended: %s", s.kind.name, s.lastWords())
		default:
		}
		if ok, err := c.binding(20 * time.Millisecond); ok || err != nil {
			return err
		}
	}
	return errors.Join(fmt.Errorf("%s does not answer: %s", s.kind.name, s.lastWords()), ctx.Err())
}

// lastWords is the end of what the process wrote to stderr.
func (s *server) lastWords() string {
	b, err := os.ReadFile(filepath.Join(s.dir, "stderr"))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b[max(0, len(b)-1000):]))
}

// kill ends the process at once and waits for that.
func (s *server) kill() error {
	err := s.cmd.Process.Kill()
	<-s.exited
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	return errors.Join(err, s.stderr.Close())
}

// stop kills the process and removes what it kept.
func (s *server) stop() error {
	err := errors.Join(s.kill(), os.RemoveAll(s.dir))
	if s.kind.name == kernelName {
		err = errors.Join(err, s.network.removePins())
	}
	return err
}

// cpu is the processor time the process has used in all its threads.
func (s *server) cpu() (time.Duration, error) {
	var ts unix.Timespec
	clock := int32(^s.cmd.Process.Pid<<3 | 2) // CPUCLOCK_SCHED of the process, see clock_getcpuclockid(3)
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("processor time of %s: %w", s.kind.name, err)
	}
	return time.Duration(ts.Nano()), nil
}

// memory is what the process has resident, and the part of it that is no file's, in bytes.
func (s *server) memory() (resident, anonymous float64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	field := func(name string) (v float64) {
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, name+":"); ok {
				kb, e := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
				err = errors.Join(err, e)
				v = kb * 1024
			}
		}
		return v
	}
	return field("VmRSS"), field("RssAnon"), err
}
