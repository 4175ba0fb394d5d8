package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"turnstone/audit"
	"turnstone/store"
	"turnstone/turn"
)

const (
	auditRepeats = 7
	auditGoal    = 100 // ms, of the whole command
)

// measureAudit times what an abuse desk types, from the start of the command to its end, of the file of a generated log
// and of a daemon that has it. The index is made first, and that is timed too.
func measureAudit(ctx context.Context, l *lab, _ kind, r recorder) error {
	if err := l.generated(ctx); err != nil {
		return err
	}
	questions, err := auditQuestions(l.log.file)
	if err != nil {
		return err
	}
	index := filepath.Join(filepath.Dir(l.log.file), audit.FileName)
	if err := os.Remove(index); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	file := []string{"--db", l.log.file}
	took, most, err := l.audited(ctx, append(questions[0].flags, file...))
	if err != nil {
		return err
	}
	r.add("making the index", "events/s", float64(l.log.events)/took.Seconds(), nil)
	r.add("memory of that, at most", "MiB", float64(most)/(1<<20), nil)
	size, err := os.Stat(index)
	if err != nil {
		return err
	}
	r.add("size of the index", "bytes/event", float64(size.Size())/float64(l.log.events), nil)
	if err := l.timeAudits(ctx, r, "file", questions, file); err != nil {
		return err
	}
	return l.withAuditDaemon(ctx, index, func(socket string) error {
		return l.timeAudits(ctx, r, "daemon", questions, []string{"--admin-socket", socket})
	})
}

// auditQuestion is what is asked for, and the flags that ask.
type auditQuestion struct {
	name  string
	flags []string
}

// auditQuestions are about a call in the middle of the log.
func auditQuestions(file string) ([]auditQuestion, error) {
	reader, err := store.OpenReader(file)
	if err != nil {
		return nil, err
	}
	last, _, err := reader.Head()
	if err != nil {
		return nil, err
	}
	made := map[turn.AllocationID]turn.AllocationCreated{}
	for rec, err := range reader.Records(last / 2) {
		if err != nil {
			return nil, err
		}
		for _, e := range rec.Events {
			if c, ok := e.(turn.AllocationCreated); ok {
				made[c.Allocation] = c
			}
			b, ok := e.(turn.ChannelBound)
			c, known := made[b.Allocation]
			if !ok || !known {
				continue
			}
			at := rec.Moment.WallTime().Add(5 * time.Second).Format(time.RFC3339)
			from, to := rec.Moment.WallTime().Add(-time.Hour).Format(time.RFC3339), rec.Moment.WallTime().Add(time.Hour).Format(time.RFC3339)
			return []auditQuestion{
				{"relayed address, at", []string{"--relayed", c.Relayed[0].String(), "--at", at}},
				{"port, at", []string{"--port", fmt.Sprint(c.Relayed[0].Port()), "--at", at}},
				{"client", []string{"--client", c.FiveTuple.Client.Addr().String()}},
				{"user, two hours", []string{"--user", turn.Owner(c.Username), "--from", from, "--to", to}},
				{"peer", []string{"--peer", b.Peer.Addr().String()}},
				{"peer and channel, two hours", []string{"--peer", b.Peer.String(), "--channel", b.Channel.String(), "--from", from, "--to", to}},
				{"allocation", []string{"--allocation", b.Allocation.String()}},
				{"everybody, at", []string{"--at", at, "--limit", "20"}},
				{"refused of a user", []string{"--refused", "--user", turn.Owner(c.Username), "--limit", "20"}},
			}, nil
		}
	}
	return nil, errors.New("no call is in the middle of the log")
}

// timeAudits asks every question some times, and reports the median of each and the slowest of these.
func (l *lab) timeAudits(ctx context.Context, r recorder, of string, questions []auditQuestion, where []string) error {
	slowest := 0.0
	for _, q := range questions {
		var times []float64
		for range auditRepeats {
			took, _, err := l.audited(ctx, append(slices.Clone(q.flags), where...))
			if err != nil {
				return err
			}
			times = append(times, float64(took.Microseconds())/1000)
		}
		slices.Sort(times)
		median := times[len(times)/2]
		slowest = max(slowest, median)
		r.add(of+": "+q.name, "ms", median, nil)
	}
	r.add(of+": the slowest of these", "ms", slowest, atMost(auditGoal, "under 100 ms"))
	return nil
}

// audited runs turnstone audit, and yields how long it took and how much memory, in bytes. That nothing matches is no failure.
func (l *lab) audited(ctx context.Context, flags []string) (time.Duration, int64, error) {
	c := exec.CommandContext(ctx, l.binary, append([]string{"audit", "-o", "jsonl"}, flags...)...)
	var said strings.Builder
	c.Stderr = &said
	began := time.Now()
	err := c.Run()
	took := time.Since(began)
	if err != nil && !strings.Contains(said.String(), "matches: searched") {
		return 0, 0, fmt.Errorf("%s: %w: %s", c, err, said.String())
	}
	most := int64(0)
	if u, ok := c.ProcessState.SysUsage().(*syscall.Rusage); ok {
		most = u.Maxrss << 10
	}
	return took, most, nil
}

// withAuditDaemon runs a daemon on a copy of the log and its index: it adds to the log.
func (l *lab) withAuditDaemon(ctx context.Context, index string, f func(socket string) error) (err error) {
	dir, err := os.MkdirTemp(l.dir, "audit-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{l.log.file, index} {
		if err := copyTo(name, filepath.Join(dir, filepath.Base(name))); err != nil {
			return err
		}
	}
	free, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	listen := free.LocalAddr().String()
	_ = free.Close()
	socket := filepath.Join(dir, "admin.sock")
	daemon := exec.CommandContext(ctx, l.binary, "serve", "--listen", "udp://"+listen, "--data", dir, "--admin-socket", socket,
		"--user", username+":"+password, "--metrics", "off", "--kernel", "off", "--log-level", "error")
	out, err := daemon.StdoutPipe()
	if err != nil {
		return err
	}
	if err := daemon.Start(); err != nil {
		return err
	}
	defer func() {
		_ = daemon.Process.Signal(syscall.SIGTERM)
		_, _ = io.Copy(io.Discard, out)
		err = errors.Join(err, daemon.Wait())
	}()
	for lines := bufio.NewScanner(out); ; {
		if !lines.Scan() {
			return errors.New("the daemon does not get ready")
		}
		if strings.HasPrefix(lines.Text(), "turnstone ready") {
			break
		}
	}
	return f(socket)
}

func copyTo(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
