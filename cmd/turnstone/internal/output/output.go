// Package output writes rows of structs as a table, JSON, JSON lines or CSV.
package output

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"
)

// Formats are the names of the formats.
var Formats = []string{"table", "json", "jsonl", "csv"}

// Writer writes rows of one struct type. Columns are its fields by their json tags;
// a field tagged table:"-" is left out of tables.
type Writer struct {
	format string
	out    io.Writer
	table  *tabwriter.Writer
	csv    *csv.Writer
	rows   []any // json: all of them
	header bool
}

// New makes a Writer to out. Format "" is a table on a terminal, else jsonl.
func New(out io.Writer, format string) (*Writer, error) {
	if format == "" {
		format = "jsonl"
		if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			format = "table"
		}
	}
	if !slices.Contains(Formats, format) {
		return nil, fmt.Errorf("unknown output format %q: one of %s", format, strings.Join(Formats, ", "))
	}
	return &Writer{
		format: format, out: out, rows: []any{},
		table: tabwriter.NewWriter(out, 0, 4, 2, ' ', 0), csv: csv.NewWriter(out),
	}, nil
}

// Row writes one row, a struct.
func (w *Writer) Row(row any) error {
	switch w.format {
	case "json":
		w.rows = append(w.rows, row)
		return nil
	case "jsonl":
		b, err := json.Marshal(row)
		if err != nil {
			return fmt.Errorf("write row: %w", err)
		}
		_, err = w.out.Write(append(b, '\n'))
		return err
	}
	names, cells := columns(row, w.format == "table")
	write := w.csv.Write
	if w.format == "table" {
		write = func(line []string) error {
			_, err := fmt.Fprintln(w.table, strings.Join(line, "\t"))
			return err
		}
		for i := range names {
			names[i] = strings.ToUpper(strings.ReplaceAll(names[i], "_", " "))
		}
	}
	if !w.header {
		w.header = true
		if err := write(names); err != nil {
			return err
		}
	}
	return write(cells)
}

// Flush writes out what has been held back so far.
func (w *Writer) Flush() error {
	w.csv.Flush()
	if err := w.csv.Error(); err != nil {
		return err
	}
	return w.table.Flush()
}

// Close ends the output.
func (w *Writer) Close() error {
	if w.format == "json" {
		enc := json.NewEncoder(w.out)
		enc.SetIndent("", "  ")
		return enc.Encode(w.rows)
	}
	return w.Flush()
}

// columns are the names and texts of a row's fields.
func columns(row any, table bool) (names, cells []string) {
	v := reflect.ValueOf(row)
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if table && f.Tag.Get("table") == "-" {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names = append(names, name)
		cells = append(cells, Text(v.Field(i).Interface()))
	}
	return names, cells
}

// Text is a value as one cell.
func Text(v any) string {
	switch v := v.(type) {
	case time.Time:
		return v.Format("2006-01-02T15:04:05.000Z07:00")
	case fmt.Stringer:
		return v.String()
	case string:
		return v
	case []string:
		return strings.Join(v, " ")
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		parts := make([]string, len(keys))
		for i, k := range keys {
			parts[i] = k + "=" + Text(v[k])
			if _, nested := v[k].(map[string]any); nested {
				parts[i] = k + "={" + Text(v[k]) + "}"
			}
		}
		return strings.Join(parts, " ")
	}
	if list := reflect.ValueOf(v); list.Kind() == reflect.Slice {
		parts := make([]string, list.Len())
		for i := range parts {
			parts[i] = Text(list.Index(i).Interface())
		}
		return strings.Join(parts, ",")
	}
	if b, err := json.Marshal(v); err == nil {
		return strings.Trim(string(b), `"`)
	}
	return fmt.Sprint(v)
}

// Object writes one struct: a line for each field in a table, else as Row does.
func Object(out io.Writer, format string, object any) error {
	w, err := New(out, format)
	if err != nil {
		return err
	}
	switch w.format {
	case "table":
		names, cells := columns(object, true)
		for i, n := range names {
			if _, err := fmt.Fprintf(w.table, "%s\t%s\n", strings.ReplaceAll(n, "_", " "), cells[i]); err != nil {
				return err
			}
		}
		return w.table.Flush()
	case "json":
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(object)
	}
	if err := w.Row(object); err != nil {
		return err
	}
	return w.Close()
}

// Table says whether w writes a table.
func (w *Writer) Table() bool { return w.format == "table" }

// Section writes rows of one type as a table of their own, behind an empty line; none is nothing.
func Section(out io.Writer, format string, rows []any) error {
	if len(rows) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(out); err != nil {
		return err
	}
	w, err := New(out, format)
	if err != nil {
		return err
	}
	for _, r := range rows {
		if err := w.Row(r); err != nil {
			return err
		}
	}
	return w.Close()
}
