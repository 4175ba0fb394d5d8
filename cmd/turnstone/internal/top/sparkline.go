package top

import "slices"

// levels are the heights of a sparkline's columns.
var levels = []rune("▁▂▃▄▅▆▇█")

// sparkline draws the last values, one a column, against the largest of them. Only zero has the lowest level, unless all are.
func sparkline(values []float64, width int) string {
	values = values[max(0, len(values)-width):]
	if len(values) == 0 {
		return ""
	}
	most := slices.Max(values)
	out := make([]rune, len(values))
	for i, v := range values {
		level := 0
		if v > 0 {
			level = min(1+int(v/most*float64(len(levels)-1)), len(levels)-1)
		}
		out[i] = levels[level]
	}
	return string(out)
}
