package output

import (
	"encoding"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// place is where a column is written.
type place int

const (
	inCSV    place = iota
	inList         // a row of a table
	inObject       // a line of a table
)

type column struct{ name, text string }

// columns are the fields of a struct that p shows.
func columns(row any, p place) []column { return fieldColumns(reflect.ValueOf(row), "", p) }

func fieldColumns(v reflect.Value, prefix string, p place) []column {
	var out []column
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() || !shown(f.Tag.Get("table"), p) {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		out = append(out, cellColumns(v.Field(i), prefix+name, p)...)
	}
	return out
}

func shown(tag string, p place) bool {
	switch tag {
	case "-":
		return p == inCSV
	case "list":
		return p != inObject
	case "detail":
		return p != inList
	}
	return true
}

func cellColumns(v reflect.Value, name string, p place) []column {
	if nested(v) {
		return fieldColumns(v, name+"_", p)
	}
	if counts, ok := v.Interface().(map[string]uint64); ok && p == inCSV {
		var out []column
		for _, k := range slices.Sorted(maps.Keys(counts)) {
			out = append(out, column{name + "_" + k, fmt.Sprint(counts[k])})
		}
		return out
	}
	text := Text(v.Interface(), p != inCSV)
	if text == "" && p != inCSV {
		text = "-"
	}
	return []column{{name, text}}
}

// nested says whether v is a struct that is no text of its own.
func nested(v reflect.Value) bool {
	if v.Kind() != reflect.Struct {
		return false
	}
	switch v.Interface().(type) {
	case fmt.Stringer, encoding.TextMarshaler:
		return false
	}
	return true
}

func split(columns []column) (names, cells []string) {
	for _, c := range columns {
		names, cells = append(names, c.name), append(cells, c.text)
	}
	return names, cells
}

// Text is a value as one cell; table is for the eye, with what is zero left out.
func Text(v any, table bool) string {
	switch v := v.(type) {
	case time.Time:
		if v.IsZero() {
			return ""
		}
		return v.Format("2006-01-02T15:04:05.000Z07:00")
	case Fields:
		return v.text(table)
	case fmt.Stringer:
		return v.String()
	case string:
		return v
	case bool:
		if table {
			return map[bool]string{true: "yes", false: "no"}[v]
		}
	case map[string]uint64:
		return countsText(v)
	}
	if r := reflect.ValueOf(v); r.Kind() == reflect.Slice {
		return listText(r, table)
	}
	if b, err := json.Marshal(v); err == nil {
		return strings.Trim(string(b), `"`)
	}
	return fmt.Sprint(v)
}

// listText is a list of values, or how many structs there are.
func listText(list reflect.Value, table bool) string {
	if nested(reflect.Zero(list.Type().Elem())) {
		return fmt.Sprint(list.Len())
	}
	parts := make([]string, list.Len())
	for i := range parts {
		parts[i] = Text(list.Index(i).Interface(), table)
	}
	return strings.Join(parts, " ")
}

// countsText is the counts that are not zero.
func countsText(counts map[string]uint64) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		if counts[k] > 0 {
			parts = append(parts, fmt.Sprintf("%s=%d", k, counts[k]))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, " ")
}
