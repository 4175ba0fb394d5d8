package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// daemon is turnstone on the stage.
type daemon struct {
	program, dir string
	stage        *stage
	cmd          *exec.Cmd
	said         bytes.Buffer // on stderr
}

// startTime is how long a start may take.
const startTime = 20 * time.Second

// start runs it, and yields its line when it is ready.
func (d *daemon) start(ctx context.Context) (string, error) {
	args := append([]string{"serve", "--data", d.dir, "--metrics", "off", "--dashboard", "off", "--log-level", "warn"}, d.stage.arguments...)
	d.cmd = exec.Command(d.program, args...)
	d.said.Reset()
	d.cmd.Stderr = &d.said
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what a terminal's interrupt ends is the demo, which ends it
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := d.stage.relay.Do(d.cmd.Start); err != nil {
		return "", fmt.Errorf("start turnstone: %w", err)
	}
	lines := make(chan string, 1)
	go func() {
		defer close(lines)
		for scan := bufio.NewScanner(out); scan.Scan(); {
			if strings.HasPrefix(scan.Text(), "turnstone ready") {
				lines <- scan.Text()
			}
		}
	}()
	select {
	case line, ok := <-lines:
		if !ok {
			_ = d.cmd.Wait()
			return "", fmt.Errorf("turnstone does not start:\n%s", &d.said)
		}
		return line, nil
	case <-time.After(startTime):
		return "", errors.Join(errors.New("turnstone does not get ready"), d.kill())
	case <-ctx.Done():
		return "", errors.Join(context.Cause(ctx), d.kill())
	}
}

func (d *daemon) pid() int { return d.cmd.Process.Pid }

// kill gives it no time for anything.
func (d *daemon) kill() error {
	if err := d.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = d.cmd.Wait() // says that it was killed
	d.cmd = nil
	return nil
}

// end stops it and takes its program out of the kernel.
func (d *daemon) end() error {
	if d.cmd != nil {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		_ = d.cmd.Wait()
		d.cmd = nil
	}
	if !d.stage.kernel {
		return nil
	}
	_, err := d.ask(context.Background(), d.pinned("detach")...)
	return err
}

// ask runs a command of turnstone and yields what it writes.
func (d *daemon) ask(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, d.program, append(slices.Clone(args), "--data", d.dir)...)
	cmd.Env = append(os.Environ(), "NO_COLOR=1")
	var out, diagnostics bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diagnostics
	if err := d.stage.relay.Do(cmd.Run); err != nil {
		return "", fmt.Errorf("turnstone %s: %w\n%s", strings.Join(args, " "), err, &diagnostics)
	}
	return out.String(), nil
}

// pinned is a command about the kernel, also where no daemon answers.
func (d *daemon) pinned(command string) []string {
	at := slices.Index(d.stage.arguments, "--kernel-instance")
	return []string{"kernel", command, "-o", "json", "--kernel-instance", d.stage.arguments[at+1]}
}

// kernelStatus is what of kernel status is shown.
type kernelStatus struct {
	Verdicts []struct {
		Verdict string `json:"verdict"`
		Packets uint64 `json:"packets"`
	} `json:"verdicts"`
}

// carried is how many packets the kernel has relayed.
func (k kernelStatus) carried() (n uint64) {
	for _, v := range k.Verdicts {
		if v.Verdict == "to-peer" || v.Verdict == "to-client" {
			n += v.Packets
		}
	}
	return n
}

// kernel asks the daemon, or, while it is dead, the maps it left.
func (d *daemon) kernel(ctx context.Context) (k kernelStatus, err error) {
	out, err := d.ask(ctx, d.pinned("status")...)
	if err != nil {
		return k, err
	}
	if err := json.Unmarshal([]byte(out), &k); err != nil {
		return k, fmt.Errorf("kernel status: %w", err)
	}
	return k, nil
}
