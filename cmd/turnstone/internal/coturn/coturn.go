// Package coturn translates the configuration of a coturn server, turnserver.conf, to
// that of turnstone. It knows every key of coturn 4.6 and of those after it, and says of each line
// what became of it.
package coturn

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"turnstone/cmd/turnstone/internal/config"
)

// Fate is what became of a line.
type Fate string

// The fates.
const (
	Mapped    Fate = "mapped"    // it is a setting now
	Anyway    Fate = "anyway"    // it asks for what turnstone does without being told
	Dropped   Fate = "dropped"   // turnstone has no counterpart
	Overruled Fate = "overruled" // a later line says it again, and coturn takes the last
	Unknown   Fate = "unknown"   // it is no key of coturn, which ignores it too
	Absent    Fate = "absent"    // the file does not say it, and what coturn does then differs
)

// Line is what became of one line of the file. It holds no secret.
type Line struct {
	Line    int    `json:"line"` // from 1; 0 for what is absent
	Key     string `json:"key"`
	Fate    Fate   `json:"fate"`
	Setting string `json:"setting"` // what it is mapped to
	Reason  string `json:"reason"`
}

// Result is a configuration that has been translated.
type Result struct {
	Lines    []Line
	file     string
	settings map[string]*setting
}

// setting is a value for a setting of turnstone.
type setting struct {
	list    []string
	value   any    // a string, an int or a config.Duration, where it is no list
	sources []Line // where it comes from
}

// Import translates text, which is from a file of that name. Paths in it that are not absolute
// are taken to be from the directory dir. The error names every value that is wrong, with its line. The
// result is good for [config.CheckText].
func Import(file, dir, text string) (*Result, error) {
	t := &translation{dir: dir, result: &Result{file: file, settings: map[string]*setting{}}}
	t.entries = entries(text)
	var problems []error
	for i := range t.entries {
		e := &t.entries[i]
		v, err := t.translate(e)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s:%d: %s: %w", file, e.line, e.key, err))
			continue
		}
		t.result.Lines = append(t.result.Lines, Line{Line: e.line, Key: e.key, Fate: v.fate, Setting: v.setting, Reason: v.reason})
	}
	if err := t.finish(); err != nil && len(problems) == 0 {
		problems = append(problems, err)
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	slices.SortStableFunc(t.result.Lines, func(a, b Line) int { return cmp.Compare(a.Line, b.Line) })
	if err := config.CheckText("the result", []byte(t.result.TOML())); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return t.result, nil
}

// verdict is what a key makes of a line.
type verdict struct {
	fate    Fate
	setting string
	reason  string
}

// translation is a file on its way.
type translation struct {
	dir     string
	entries []entry
	result  *Result
}

// translate finds out what becomes of e.
func (t *translation) translate(e *entry) (verdict, error) {
	k, known := keys[e.key]
	if !known {
		return verdict{fate: Unknown, reason: "this is no key of coturn 4.6 or later"}, nil
	}
	if last := t.last(e.key); !repeats[e.key] && last.line != e.line {
		return verdict{fate: Overruled, reason: fmt.Sprintf("line %d says it again", last.line)}, nil
	}
	return k(t, e)
}

// last is the last line with a key, nil where there is none.
func (t *translation) last(key string) *entry {
	for i := len(t.entries) - 1; i >= 0; i-- {
		if t.entries[i].key == key {
			return &t.entries[i]
		}
	}
	return nil
}

// all are the lines with a key.
func (t *translation) all(key string) (out []*entry) {
	for i := range t.entries {
		if t.entries[i].key == key {
			out = append(out, &t.entries[i])
		}
	}
	return out
}

// on says whether the file turns a switch on. A value that is wrong is complained of where its line is translated.
func (t *translation) on(key string) bool {
	e := t.last(key)
	if e == nil {
		return false
	}
	on, _ := e.boolean()
	return on
}

// number is the number that the file gives for a key.
func (t *translation) number(key string, absent int) int {
	if e := t.last(key); e != nil {
		if n, err := e.number(); err == nil {
			return n
		}
	}
	return absent
}

// set gives a setting its value.
func (t *translation) set(key string, value any, e *entry) verdict {
	s := t.setting(key, e)
	s.value = value
	return verdict{fate: Mapped, setting: key}
}

// add adds to a setting that is a list.
func (t *translation) add(key string, e *entry, values ...string) verdict {
	s := t.setting(key, e)
	for _, v := range values {
		if !slices.Contains(s.list, v) {
			s.list = append(s.list, v)
		}
	}
	return verdict{fate: Mapped, setting: key}
}

func (t *translation) setting(key string, e *entry) *setting {
	s := t.result.settings[key]
	if s == nil {
		s = &setting{}
		t.result.settings[key] = s
	}
	if e != nil {
		s.sources = append(s.sources, Line{Line: e.line, Key: e.key})
	}
	return s
}

// absent says of a key that is not in the file that coturn would do something else.
func (t *translation) absent(key, reason string) {
	t.result.Lines = append(t.result.Lines, Line{Key: key, Fate: Absent, Reason: reason})
}
