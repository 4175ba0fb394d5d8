package main

import (
	"context"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/kernel"
	"turnstone/turn"
)

// Measure is for the admin interface.
func (d *served) Measure(ctx context.Context) (m admin.Measured, err error) {
	if m.Status, err = d.Status(ctx); err != nil {
		return m, err
	}
	c := d.relay.Counters()
	m.At = time.Now()
	m.Log = d.countLog()
	m.Log.Events, m.Log.Commits, m.Log.Recoveries = c.Events, c.Commits, c.Recoveries
	m.Log.Appending, m.Log.Committing = c.Appended.Sum, c.Committed.Sum
	m.Paths = []admin.PathCount{{Path: turn.PathUserspace, ToPeer: m.Status.ToPeer, ToClient: m.Status.ToClient}}
	if st, ok := d.measureKernel(); ok {
		m.Kernel = &st
		toPeer, toClient := st.Relayed()
		m.Paths = append(m.Paths, admin.PathCount{Path: turn.PathKernel, ToPeer: toPeer, ToClient: toClient})
	}
	m.Bindings = d.bindings(ctx)
	return m, nil
}

func (d *served) countLog() (c admin.LogCount) {
	c.Last, c.Size = d.position()
	c.Free, c.Room, c.Segments = d.store.FreeBytes(), d.store.Room().String(), d.store.Kept().Segments
	if s, err := d.store.LastSnapshot(); err == nil && s.At > 0 {
		c.Snapshot, c.SnapshotTime = s.At, time.Unix(0, s.Latest).UTC()
	}
	if p := d.checkpoints.newest.Load(); p != nil {
		c.Checkpoint, c.CheckpointTime = p.seq, p.at
	}
	return c
}

// bindings are those of all allocations, of either path.
func (d *served) bindings(ctx context.Context) (out []admin.Binding) {
	users := map[turn.AllocationID]string{}
	peers := map[turn.AllocationID]map[turn.ChannelNumber]string{}
	ctx, cancel := context.WithTimeout(ctx, scrapePatience)
	defer cancel()
	err := d.relay.View(ctx, func(s *turn.State) {
		for a := range s.Allocations() {
			users[a.ID], peers[a.ID] = a.Username, map[turn.ChannelNumber]string{}
			for _, c := range a.Channels {
				peers[a.ID][c.Number] = c.Peer.String()
			}
		}
	})
	if err != nil {
		return nil // the log is being opened again
	}
	for _, u := range d.relay.Traffic() {
		b := admin.Binding{Allocation: u.Allocation, Username: users[u.Allocation], Channel: u.Channel, Path: u.Path, ToPeer: u.ToPeer, ToClient: u.ToClient}
		if u.Peer.IsValid() {
			b.Peer = u.Peer.String()
		}
		out = append(out, b)
	}
	if d.kernel() == nil {
		return out
	}
	rows, err := d.KernelRows()
	if err != nil {
		return out // it is being changed, or may not be read: userspace's are there
	}
	return append(out, kernelBindings(rows, users, peers)...)
}

// kernelBindings puts the two directions of each channel together.
func kernelBindings(rows []kernel.Row, users map[turn.AllocationID]string, peers map[turn.AllocationID]map[turn.ChannelNumber]string) (out []admin.Binding) {
	type name struct {
		id      turn.AllocationID
		channel turn.ChannelNumber
	}
	at := map[name]int{}
	for _, r := range rows {
		n := name{r.Allocation, r.Channel}
		switch r.Kind {
		case kernel.Guard:
			continue
		case kernel.ToClient:
			n.channel = r.OutChannel
		}
		i, there := at[n]
		if !there {
			i = len(out)
			at[n] = i
			out = append(out, admin.Binding{Allocation: n.id, Username: users[n.id], Channel: n.channel, Peer: peers[n.id][n.channel], Path: turn.PathKernel})
		}
		c := turn.Count{Packets: r.Packets, Bytes: r.Bytes}
		if r.Kind == kernel.ToPeer {
			out[i].ToPeer = out[i].ToPeer.Plus(c)
		} else {
			out[i].ToClient = out[i].ToClient.Plus(c)
		}
	}
	return out
}
