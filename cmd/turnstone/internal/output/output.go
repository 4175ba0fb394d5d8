// Package output writes structs as tables, JSON, JSON lines or CSV.
package output

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/term"
)

// Format names a format. The zero Format is a table on a terminal, else JSON lines. It
// is the value of a flag.
type Format string

// The formats.
const (
	Table Format = "table"
	JSON  Format = "json"
	JSONL Format = "jsonl"
	CSV   Format = "csv"
)

// Formats are all formats.
var Formats = []string{string(Table), string(JSON), string(JSONL), string(CSV)}

func (f *Format) String() string { return string(*f) }

// Set takes the name of a format.
func (f *Format) Set(s string) error {
	if !slices.Contains(Formats, s) {
		return fmt.Errorf("want one of %s", strings.Join(Formats, ", "))
	}
	*f = Format(s)
	return nil
}

// Type is what the help calls the value.
func (*Format) Type() string { return "FORMAT" }

// For is f, or what the zero Format stands for when it is written to out.
func (f Format) For(out io.Writer) Format {
	if f != "" {
		return f
	}
	if Terminal(out) {
		return Table
	}
	return JSONL
}

// Writer writes rows, all of one struct type, as they come. Columns are the fields by
// their json tags; the table tag of a field says where in tables it is: "-" nowhere,
// "list" only in rows, "detail" only in objects. A struct in a field has a column for
// each of its own, a list of structs is its length.
type Writer struct {
	format Format
	out    io.Writer
	table  table
	csv    *csv.Writer
	rows   int
}

// New makes a Writer to out.
func New(out io.Writer, f Format) *Writer {
	return &Writer{format: f.For(out), out: out, table: table{out: out}, csv: csv.NewWriter(out)}
}

// Row writes one row, a struct.
func (w *Writer) Row(row any) error {
	w.rows++
	switch w.format {
	case JSON:
		return w.jsonRow(row)
	case JSONL:
		return json.NewEncoder(w.out).Encode(row)
	}
	if w.rows == 1 {
		if err := w.header(row); err != nil {
			return err
		}
	}
	if w.format == CSV {
		_, cells := split(columns(row, inCSV))
		return w.csv.Write(cells)
	}
	_, cells := split(columns(row, inList))
	w.table.add(cells)
	return nil
}

// header writes the names of the columns of row.
func (w *Writer) header(row any) error {
	if w.format == CSV {
		names, _ := split(columns(row, inCSV))
		return w.csv.Write(names)
	}
	names, _ := split(columns(row, inList))
	for i := range names {
		names[i] = strings.ToUpper(spaced(names[i]))
	}
	w.table.add(names)
	return nil
}

// jsonRow writes an element of an array that Close ends.
func (w *Writer) jsonRow(row any) error {
	b, err := json.MarshalIndent(row, "  ", "  ")
	if err != nil {
		return err
	}
	before := ",\n  "
	if w.rows == 1 {
		before = "[\n  "
	}
	_, err = fmt.Fprintf(w.out, "%s%s", before, b)
	return err
}

// Flush writes out what has been held back so far.
func (w *Writer) Flush() error {
	w.csv.Flush()
	if err := w.csv.Error(); err != nil {
		return err
	}
	return w.table.flush()
}

// Close ends the output.
func (w *Writer) Close() error {
	if w.format == JSON {
		end := "\n]\n"
		if w.rows == 0 {
			end = "[]\n"
		}
		_, err := io.WriteString(w.out, end)
		return err
	}
	return w.Flush()
}

// Rows writes a list of rows. A table or CSV of none still has its header.
func Rows[T any](out io.Writer, f Format, rows []T) error {
	w := New(out, f)
	if len(rows) == 0 && (w.format == Table || w.format == CSV) {
		var none T
		if err := w.header(none); err != nil {
			return err
		}
	}
	for _, r := range rows {
		if err := w.Row(r); err != nil {
			return err
		}
	}
	return w.Close()
}

// Object writes one struct: a line for each field in a table, else as a row.
func Object(out io.Writer, f Format, object any) error {
	switch f.For(out) {
	case Table:
		t := table{out: out}
		for _, c := range columns(object, inObject) {
			t.add([]string{spaced(c.name), c.text})
		}
		return t.flush()
	case JSON:
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(object)
	}
	w := New(out, f)
	if err := w.Row(object); err != nil {
		return err
	}
	return w.Close()
}

// Section writes rows that belong to an object, where the format is a table: under
// an empty line and a title, and nothing where there are none. Other formats have them in the object.
func Section[T any](out io.Writer, f Format, title string, rows []T) error {
	if f.For(out) != Table || len(rows) == 0 {
		return nil
	}
	if _, err := fmt.Fprintf(out, "\n%s\n", title); err != nil {
		return err
	}
	return Rows(out, Table, rows)
}

func spaced(name string) string { return strings.ReplaceAll(name, "_", " ") }

// Terminal says whether people read w.
func Terminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
