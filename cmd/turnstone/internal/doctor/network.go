package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"turnstone/turn/relay"

	"golang.org/x/sys/unix"
)

// checkDaemon says whether a daemon runs, and how it is.
func checkDaemon(f *Facts) []Row {
	const check = "daemon"
	d := f.Daemon
	switch {
	case errors.Is(d.Err, errNothing):
		return []Row{ok(check, "not running: what it would find is judged")}
	case d.Err != nil:
		return []Row{skip(check, d.Err)}
	}
	st := d.Value.Status
	r := ok(check, "running (pid %d), relayed by %s", st.PID, st.Kernel)
	switch {
	case !st.Ready:
		r.Seen = fmt.Sprintf("running (pid %d), and not ready", st.PID)
		return []Row{r.as(Fail, "turnstone status and the log say why")}
	case !f.off() && strings.HasPrefix(st.Kernel, "userspace"):
		return []Row{r.as(f.bad(), "remove what the rows below name, and restart the daemon: it costs no call")}
	case st.Draining:
		return []Row{r.as(Warn, "turnstone drain --cancel makes new allocations again")}
	}
	return []Row{r}
}

// checkNamespaces says so where the daemon sees another host than this command.
func checkNamespaces(f *Facts) []Row {
	if len(f.Process.Elsewhere) == 0 {
		return nil
	}
	enter := ""
	for _, kind := range f.Process.Elsewhere {
		option := kind
		if kind == "mnt" {
			option = "mount"
		}
		enter += fmt.Sprintf(" --%s=/proc/%d/ns/%s", option, f.Process.PID, kind)
	}
	return []Row{ok("namespaces", "the daemon runs in other namespaces than this command: %s", strings.Join(f.Process.Elsewhere, ", ")).
		as(Warn, "nsenter%s turnstone doctor", enter)}
}

func checkListeners(f *Facts) (rows []Row) {
	const check = "listen"
	if f.Daemon.Err == nil {
		return nil // it listens
	}
	if f.Taken.Err != nil {
		return []Row{skip(check, f.Taken.Err)}
	}
	for _, t := range f.Taken.Value {
		r := ok(check, "%v: %s", t.Address, t.Err)
		port := t.Address.Port()
		switch {
		case errors.Is(t.Err, unix.EADDRINUSE):
			r.Seen = fmt.Sprintf("%v is taken by another program", t.Address)
			r = r.as(Fail, "ss -ulpn 'sport = :%d' names it: stop it, or listen elsewhere", port)
		case errors.Is(t.Err, fs.ErrPermission):
			r.Seen = fmt.Sprintf("%v: this user may not listen on a port below 1024", t.Address)
			r = r.as(Warn, "AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit, or a port from 1024 on")
		default:
			r = r.as(Fail, "listen on an address that this host has")
		}
		rows = append(rows, r)
	}
	if len(rows) == 0 {
		rows = []Row{ok(check, "%s can be listened on", count(len(f.Listeners), "address"))}
	}
	return rows
}

// checkReversePath is about rp_filter, which the kernel's relaying is not subject to and userspace is.
func checkReversePath(f *Facts) []Row {
	const check, strict = "rp-filter", 1
	if f.Reverse.Err != nil {
		return []Row{skip(check, f.Reverse.Err)}
	}
	names := slices.Sorted(maps.Keys(f.Reverse.Value))
	var rows []Row
	for _, name := range names {
		if f.Reverse.Value[name] == strict && len(names) > 1 {
			rows = append(rows, ok(check, "strict: userspace loses datagrams whose way back leads over another interface, which the kernel relays").on(name).
				as(Warn, "sysctl -w net.ipv4.conf.%[1]s.rp_filter=2 (and net.ipv4.conf.all.rp_filter, if that is 1), where routes are not symmetric", name))
		}
	}
	if len(rows) == 0 {
		rows = []Row{ok(check, "loses nothing of ours")}
	}
	return rows
}

// checkBuffers is about the sockets of listeners, which ask for a large buffer.
func checkBuffers(f *Facts) []Row {
	const check, want = "socket-buffers", relay.ListenerBuffer
	switch {
	case f.Process.has(capNetAdmin):
		return []Row{ok(check, "%s sets what it wants (CAP_NET_ADMIN)", f.Process.who())}
	case f.Receive.Err != nil:
		return []Row{skip(check, f.Receive.Err)}
	case f.Receive.Value < want:
		return []Row{ok(check, "net.core.rmem_max is %d: a listener gets no more, and loses datagrams in a burst", f.Receive.Value).
			as(Warn, "sysctl -w net.core.rmem_max=%[1]d net.core.wmem_max=%[1]d", want)}
	}
	return []Row{ok(check, "net.core.rmem_max is %d", f.Receive.Value)}
}
