package coturn

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"turnstone/cmd/turnstone/internal/config"
)

// TOML is the configuration as a file of turnstone, with what could not be translated as comments at its end.
func (r *Result) TOML() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Translated from %s by turnstone config import.\n", printable(r.file))
	section := ""
	c := config.Default()
	for _, s := range config.Settings(&c) {
		v := r.settings[s.Key]
		if v == nil {
			continue
		}
		in, name, nested := strings.Cut(s.Key, ".")
		if !nested {
			in, name = "", s.Key
		}
		if in != section {
			section = in
			fmt.Fprintf(&b, "\n[%s]\n", in)
		}
		b.WriteString(v.remark())
		fmt.Fprintf(&b, "%s = %s\n", name, v.toml(s.Repeats()))
	}
	r.comments(&b, "What the file leaves to the server, where coturn does something else", Absent)
	r.comments(&b, "Not carried over", Dropped, Unknown)
	r.comments(&b, "Said twice", Overruled)
	r.comments(&b, "What turnstone does anyway", Anyway)
	return b.String()
}

// remark says what lines s comes from: those of one key together.
func (s *setting) remark() string {
	var parts []string
	for i, l := range s.sources {
		switch {
		case i > 0 && s.sources[i-1].Key == l.Key:
			parts[len(parts)-1] += fmt.Sprintf(", %d", l.Line)
		default:
			parts = append(parts, fmt.Sprintf("%s in line %d", l.Key, l.Line))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return "# " + strings.Join(parts, "; ") + "\n"
}

// comments lists the lines with one of the fates.
func (r *Result) comments(b *strings.Builder, title string, fates ...Fate) {
	for _, f := range fates {
		for _, l := range r.Lines {
			if l.Fate != f {
				continue
			}
			if title != "" {
				fmt.Fprintf(b, "\n# %s:\n", title)
				title = ""
			}
			if l.Line > 0 {
				fmt.Fprintf(b, "# line %d: ", l.Line)
			} else {
				b.WriteString("# ")
			}
			fmt.Fprintf(b, "%s: %s\n", printable(l.Key), l.Reason)
		}
	}
}

// toml is the value as it is written.
func (s *setting) toml(list bool) string {
	if !list {
		switch v := s.value.(type) {
		case string:
			return quoted(v)
		case config.Duration:
			return quoted(v.String())
		case nil:
			return quoted(s.list[0])
		default:
			return fmt.Sprint(v)
		}
	}
	if len(s.list) == 1 {
		return "[" + quoted(s.list[0]) + "]"
	}
	var b strings.Builder
	b.WriteString("[\n")
	for _, v := range s.list {
		fmt.Fprintf(&b, "    %s,\n", quoted(v))
	}
	return b.String() + "]"
}

// quoted is a basic string of TOML: what JSON escapes, TOML reads alike.
func quoted(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // strings always marshal
	return strings.TrimSuffix(b.String(), "\n")
}

// printable is s without what could end a comment.
func printable(s string) string {
	return strings.Trim(fmt.Sprintf("%q", s), `"`)
}
