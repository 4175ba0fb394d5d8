package output

import (
	"io"
	"strings"
	"unicode/utf8"
)

// table aligns columns. Widths only grow, so that what is written after a flush stays
// in line with what was written before.
type table struct {
	out    io.Writer
	lines  [][]string
	widths []int
}

func (t *table) add(cells []string) {
	for i, c := range cells {
		if i == len(t.widths) {
			t.widths = append(t.widths, 0)
		}
		t.widths[i] = max(t.widths[i], utf8.RuneCountInString(c))
	}
	t.lines = append(t.lines, cells)
}

func (t *table) flush() error {
	var b strings.Builder
	for _, line := range t.lines {
		for i, c := range line {
			b.WriteString(c)
			if i < len(line)-1 {
				b.WriteString(strings.Repeat(" ", t.widths[i]-utf8.RuneCountInString(c)+2))
			}
		}
		b.WriteByte('\n')
	}
	t.lines = t.lines[:0]
	_, err := io.WriteString(t.out, b.String())
	return err
}
