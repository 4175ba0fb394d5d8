package kernel

import "testing"

// TestCutFrames cuts frames of every path and combination of families off at each byte, and cuts them in two
// at each byte: verdict, bytes and counters are the model's, and nothing that is cut off is relayed.
func TestCutFrames(t *testing.T) {
	l := newLab(t, Sizes{Channels: 4, Allocations: 4, Listeners: 1})
	var ran [Verdicts]int
	for _, path := range []Verdict{VerdictToPeer, VerdictToClient, VerdictToChannel} {
		for bits := range 8 {
			for _, tags := range [][]uint16{nil, {42}} {
				s := newScene(path, bits&1, bits>>1&1, bits>>2&1)
				s.in.tags = tags
				if tags != nil {
					s.flow.VLAN = tags[0]
				}
				if s.flow.Kind == ToPeer {
					s.in.padding = []byte{1, 2, 3}
				}
				s.last().Gateway = viaBuffers
				l.clear()
				s.bind(l)
				frame := s.in.bytes(t)
				for n := 14; n < len(frame); n++ {
					a := deliver(frame[:n:n])
					if got := l.hold(a); got.verdict.Relayed() {
						t.Fatalf("%v: relayed %d of %d bytes", path, n, len(frame))
					} else {
						ran[got.verdict]++
					}
					if l.cutsHead {
						a = deliver(frame)
						a.linear = n
						ran[l.hold(a).verdict]++
					}
				}
				l.settle()
			}
		}
	}
	for _, v := range []Verdict{VerdictNotOurs, VerdictLength} {
		if ran[v] < 100 {
			t.Errorf("%d frames cut were %v: want more", ran[v], v)
		}
	}
	t.Logf("frames cut: %v", ran)
}
