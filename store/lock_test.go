package store

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"turnstone/turn"
)

func init() {
	children["hold"] = holdChild
	children["read"] = readChild
}

// holdChild has the log in args[0] open, and appends to it, until it is killed.
func holdChild(args []string) error {
	l, err := Open(args[0], tiny)
	if err != nil {
		return err
	}
	gen := newTraffic(3, l.State(), 20)
	for i := 0; ; i++ {
		if err := l.Append(gen.record(8)); err != nil {
			return err
		}
		if i == 20 {
			fmt.Println("open")
		}
	}
}

// readChild reads the log in args[0], over and over, until its input ends. ErrInUse is what it may meet.
func readChild(args []string) error {
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		ended <- err
	}()
	reads := 0
	for {
		select {
		case err := <-ended:
			fmt.Println(reads)
			return err
		default:
		}
		err := readOnce(filepath.Join(args[0], FileName))
		if err == nil {
			reads++
		} else if !errors.Is(err, ErrInUse) {
			return err
		}
		if reads == 1 && err == nil {
			fmt.Println("read")
		}
	}
}

func readOnce(file string) error {
	r, err := OpenReader(file)
	if err != nil {
		return err
	}
	if _, err := r.Stat(); err != nil {
		return err
	}
	_, err = r.Verify()
	return err
}

// child is another process with a part to play.
type child struct {
	cmd    *exec.Cmd
	in     io.Closer
	out    *bufio.Reader
	errors *strings.Builder
}

// startChild starts one and waits for its first line.
func startChild(t *testing.T, name, dir string) *child {
	t.Helper()
	c := &child{cmd: exec.Command(os.Args[0], dir), errors: &strings.Builder{}}
	c.cmd.Env = append(os.Environ(), childEnv+"="+name)
	c.cmd.Stderr = c.errors
	in, err := c.cmd.StdinPipe()
	must(t, err)
	out, err := c.cmd.StdoutPipe()
	must(t, err)
	c.in, c.out = in, bufio.NewReader(out)
	must(t, c.cmd.Start())
	t.Cleanup(func() { _, _ = c.cmd.Process.Kill(), c.cmd.Wait() })
	if _, err := c.out.ReadString('\n'); err != nil {
		t.Fatalf("child %s: %v\n%s", name, err, c.errors)
	}
	return c
}

func TestSecondDaemonIsRefusedUntilTheFirstIsDead(t *testing.T) {
	dir := t.TempDir()
	c := startChild(t, "hold", dir)
	start := time.Now()
	_, err := Open(dir, tiny)
	var locked *LockedError
	if !errors.As(err, &locked) || locked.PID != c.cmd.Process.Pid || !strings.Contains(err.Error(), fmt.Sprint(locked.PID)) {
		t.Errorf("open a log that pid %d has: %v, want a *LockedError with its pid", c.cmd.Process.Pid, err)
	}
	for name, read := range map[string]func(string) error{
		"OpenReader": func(file string) error { _, err := OpenReader(file); return err },
		"Schema":     func(file string) error { _, err := Schema(file); return err },
		"Migrate":    func(file string) error { _, err := Migrate(file); return err },
	} {
		if err := read(filepath.Join(dir, FileName)); !errors.Is(err, ErrInUse) {
			t.Errorf("%s of a live log: %v, want %v", name, err, ErrInUse)
		}
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("the refusals took %v, want at most 1s", took)
	}
	must(t, c.cmd.Process.Kill())
	_ = c.cmd.Wait()
	l, err := Open(dir, tiny)
	if err != nil {
		t.Fatalf("open after the other was killed: %v", err)
	}
	if seq := l.State().Seq(); seq < 21 {
		t.Errorf("the log ends at %d, want at least the 21 records that were appended", seq)
	}
	must(t, l.Close())
	verifyFile(t, dir)
}

func TestReadersNeverKeepADaemonFromStarting(t *testing.T) {
	dir, s := filled(t, 21, 300)
	readers := []*child{startChild(t, "read", dir), startChild(t, "read", dir)}
	for range 20 {
		l, err := Open(dir, tiny)
		if err != nil {
			t.Fatalf("open beside readers: %v", err)
		}
		appendTest(t, l, l.State(), s.Moment(), turn.ServerStopped{Signal: "terminated"})
		must(t, l.Close())
	}
	for _, c := range readers {
		must(t, c.in.Close())
		rest, err := io.ReadAll(c.out)
		if err = errors.Join(err, c.cmd.Wait()); err != nil {
			t.Errorf("a reader: %v\n%s", err, c.errors)
		}
		t.Logf("a reader went through the log %s times", strings.TrimSpace(string(rest)))
	}
}
