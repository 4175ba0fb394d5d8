package store

import (
	"fmt"
	"testing"

	"turnstone/turn"
)

func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{2, 64, 512} {
		b.Run(fmt.Sprintf("events=%d", size), func(b *testing.B) {
			l := openTest(b, b.TempDir(), Options{})
			s := l.State()
			fill(b, l, s, 1, 2)
			b.ResetTimer()
			n := 0
			for b.Loop() {
				fill(b, l, s, 1, size)
				n += size
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// trafficLog is a log of about n events of calls that come and go, in records of size events.
func trafficLog(b *testing.B, n, size int) *Log {
	b.Helper()
	l := openTest(b, b.TempDir(), Options{})
	gen := newTraffic(1, l.State(), 2000)
	for done := 0; done < n; {
		r := gen.record(size)
		if err := l.Append(r); err != nil {
			b.Fatal(err)
		}
		done += len(r.Events)
	}
	return l
}

func BenchmarkReplay(b *testing.B) {
	for _, size := range []int{2, 16, 128} {
		b.Run(fmt.Sprintf("events=%d", size), func(b *testing.B) {
			l := trafficLog(b, 30_000, size)
			n := 0
			for b.Loop() {
				s, err := StateAt(l.Records(1), func(turn.Record) bool { return true })
				if err != nil {
					b.Fatal(err)
				}
				n += int(s.Seq())
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, size := range []int{2, 16, 128} {
		b.Run(fmt.Sprintf("events=%d", size), func(b *testing.B) {
			l := trafficLog(b, 30_000, size)
			n := 0
			for b.Loop() {
				r, err := Verify(Raw(l, 1))
				if err != nil {
					b.Fatal(err)
				}
				n += int(r.Events)
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
