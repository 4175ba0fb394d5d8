package top

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"turnstone/kernel"
	"turnstone/turn"

	"charm.land/lipgloss/v2"
)

var (
	title = lipgloss.NewStyle().Bold(true)
	faint = lipgloss.NewStyle().Faint(true)
	good  = lipgloss.NewStyle().Foreground(lipgloss.Green)
	bad   = lipgloss.NewStyle().Foreground(lipgloss.Red).Bold(true)
	bars  = lipgloss.NewStyle().Foreground(lipgloss.Cyan)
)

// screen is the whole of it, in no more lines and columns than there are. The channels get what the rest leaves.
func (m *model) screen() string {
	top := append(m.head(), m.paths()...)
	top = append(top, m.log()...)
	top = append(top, m.kernel()...)
	if !m.seen {
		top = m.head()
	}
	lines := append(top, m.busiest(m.height-len(top)-1)...)
	lines = lines[:max(0, min(len(lines), m.height-1))]
	for len(lines) < m.height-1 {
		lines = append(lines, "")
	}
	lines = append(lines, m.foot())
	cut := lipgloss.NewStyle().MaxWidth(max(1, m.width))
	for i, l := range lines {
		lines[i] = cut.Render(l)
	}
	return strings.Join(lines, "\n")
}

func (m *model) head() []string {
	if !m.seen {
		return []string{title.Render("turnstone") + "  " + m.state(), ""}
	}
	t := m.now
	up := t.Time.Sub(t.Started).Truncate(time.Second)
	return []string{
		title.Render("turnstone "+t.Version) + fmt.Sprintf("  pid %d  up %v  ", t.PID, up) + m.state(),
		fmt.Sprintf("allocations %d  permissions %d  channels %d", t.Allocations, t.Permissions, t.Channels),
		"",
	}
}

// state is how the daemon is, in few words.
func (m *model) state() string {
	switch {
	case m.away != nil && m.seen:
		return bad.Render("AWAY since " + m.since.Format(time.TimeOnly) + ": asking again")
	case m.away != nil:
		return bad.Render("AWAY: " + m.away.Error())
	case !m.seen:
		return faint.Render("asking the daemon")
	case !m.now.Ready:
		return bad.Render("not ready")
	case m.now.Draining:
		return bad.Render("draining")
	}
	return good.Render("ready")
}

func (m *model) paths() []string {
	lines := []string{title.Render(fmt.Sprintf("%-10s %-9s %10s %10s", "PATH", "DIRECTION", "PACKETS/S", "BYTES/S"))}
	room := max(0, m.width-44)
	for _, p := range m.now.Paths {
		for _, toClient := range []bool{false, true} {
			r, way := p.ToPeer, "to peer"
			if toClient {
				r, way = p.ToClient, "to client"
			}
			line := fmt.Sprintf("%-10s %-9s %10s %10s  ", p.Path, way, short(r.Packets), short(r.Bytes))
			lines = append(lines, line+bars.Render(sparkline(m.history[series{p.Path, toClient}], room)))
		}
	}
	return append(lines, "")
}

func (m *model) log() []string {
	l := m.now.Log
	room := l.Room
	if room != turn.RoomFine.String() {
		room = bad.Render(room)
	}
	return []string{
		title.Render("LOG") + fmt.Sprintf("     event %d  +%s/s  commits %s/s  append %s  commit %s", l.Last, short(l.Events), short(l.Commits), latency(l.Append), latency(l.Commit)),
		fmt.Sprintf("        file %sB  free %sB  room %s  segments %d  recoveries %d", short(float64(l.Size)), short(float64(l.Free)), room, l.Segments, l.Recoveries),
		"        snapshot " + m.point(l.Snapshot, l.SnapshotTime) + "  checkpoint " + m.point(l.Checkpoint, l.CheckpointTime),
		"",
	}
}

// point is a point of the log and how long ago it was.
func (m *model) point(seq turn.Seq, at time.Time) string {
	if seq == 0 {
		return "none yet"
	}
	return fmt.Sprintf("%d (%v ago)", seq, m.now.Time.Sub(at).Truncate(time.Second))
}

func (m *model) kernel() []string {
	k := m.now.Kernel
	if k.Capacity == 0 {
		return append(m.wrapped("KERNEL", k.Datapath), "")
	}
	var on []string
	for _, i := range k.Interfaces {
		on = append(on, interfaceText(i))
	}
	drift := k.Drift.Added + k.Drift.Changed + k.Drift.Removed
	counts := fmt.Sprintf("drift repaired %d  write failures %d  without next hop %d", drift, k.Failures, k.Unresolved)
	if drift+k.Failures > 0 {
		counts = bad.Render(counts)
	}
	return append(m.wrapped("KERNEL", strings.Join(on, ", ")),
		fmt.Sprintf("        flows %d  slots %d of %d (%d%%)  lag %d events", k.Flows, k.Slots, k.Capacity, 100*k.Slots/k.Capacity, k.Lag),
		"        "+counts,
		"        passed up: "+passed(k.Verdicts, m.width-19),
		"",
	)
}

// wrapped is text beside a name, in as many lines as it takes.
func (m *model) wrapped(name, text string) []string {
	lines := strings.Split(lipgloss.Wrap(text, max(1, m.width-8), " "), "\n")
	for i := range lines {
		lines[i] = fmt.Sprintf("%-8s", "") + lines[i]
	}
	lines[0] = title.Render(name) + strings.TrimPrefix(lines[0], strings.Repeat(" ", len(name)))
	return lines
}

func interfaceText(i kernel.Interface) string {
	if i.Reason != "" {
		return i.Name + " not attached: " + string(i.Reason)
	}
	return i.Name + " " + string(i.Mode)
}

// passed names the verdicts that are given most, by packets a second, as many as room has columns for.
func passed(v map[string]float64, room int) string {
	if len(v) == 0 {
		return "nothing"
	}
	names := slices.SortedFunc(maps.Keys(v), func(a, b string) int { return cmp.Or(cmp.Compare(v[b], v[a]), cmp.Compare(a, b)) })
	out := ""
	for _, n := range names {
		more := n + " " + short(v[n]) + "/s"
		if out != "" {
			more = "  " + more
		}
		if len(out)+len(more) > room {
			break
		}
		out += more
	}
	return out
}

// busiest are the channels that relay most, in at most so many lines.
func (m *model) busiest(lines int) []string {
	if lines < 2 || !m.seen {
		return nil
	}
	user, peer := 14, 21
	if spare := m.width - 80; spare > 0 {
		user, peer = user+min(spare/2, 26), peer+min(spare-spare/2, 26)
	}
	row := func(id, name, channel, to, path, there, back string) string {
		return fmt.Sprintf("%6s %-*s %-6s %-*s %-9s %9s %9s", id, user, clip(name, user), channel, peer, clip(to, peer), path, there, back)
	}
	out := []string{title.Render(row("ID", "USER", "CHAN", "PEER", "PATH", "TO PEER", "TO CLIENT"))}
	for _, c := range m.now.Busiest {
		if len(out) == lines {
			break
		}
		channel := "-"
		if c.Channel != 0 {
			channel = c.Channel.String()
		}
		out = append(out, row(c.Allocation.String(), c.Username, channel, cmp.Or(c.Peer, "by indications"), c.Path.String(), short(c.ToPeer.Bytes), short(c.ToClient.Bytes)))
	}
	if len(out) == 1 {
		out = append(out, faint.Render("       nothing was relayed in this interval"))
	}
	return out
}

func (m *model) foot() string {
	text := m.help.View(m.keys) + faint.Render(fmt.Sprintf("   every %v", m.interval))
	if m.paused {
		text += bad.Render("   paused")
	}
	return text
}

// clip is s in at most n columns of ASCII: what it loses is marked.
func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// short is a number in at most six columns, by powers of 1000.
func short(v float64) string {
	for _, unit := range []string{"", "k", "M", "G", "T"} {
		if v < 999.5 || unit == "T" {
			if unit == "" || v >= 99.95 {
				return fmt.Sprintf("%.0f%s", v, unit)
			}
			return fmt.Sprintf("%.1f%s", v, unit)
		}
		v /= 1000
	}
	return ""
}

// latency is a mean in seconds, nothing where there was none.
func latency(s float64) string {
	if s == 0 {
		return "-"
	}
	switch ms := s * 1000; {
	case ms >= 100:
		return fmt.Sprintf("%.0fms", ms)
	case ms >= 1:
		return fmt.Sprintf("%.1fms", ms)
	default:
		return fmt.Sprintf("%.2fms", ms)
	}
}
