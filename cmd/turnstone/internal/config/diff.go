package config

import (
	"fmt"
	"reflect"
)

// Change is a setting that two configurations have different values of, as they are written in a file, secrets hidden.
type Change struct {
	Setting string `json:"setting"`
	Before  string `json:"before"`
	After   string `json:"after"`

	recorded [2]string
}

// Recorded are the values for the log: of secrets it says how many there are, and not whose.
func (c *Change) Recorded() (before, after string) { return c.recorded[0], c.recorded[1] }

// Diff is what changes from before to after. A secret alone can be another: then the values look the same but for a note.
func Diff(before, after *Config) []Change {
	out := []Change{}
	old := Settings(before)
	for i, s := range Settings(after) {
		if s.Equal(old[i]) {
			continue
		}
		c := Change{Setting: s.Key, Before: old[i].String(), After: s.String(), recorded: [2]string{old[i].recorded(), s.recorded()}}
		if c.Before == c.After {
			c.After += " (another secret)"
		}
		out = append(out, c)
	}
	return out
}

// Unnamed is changes with what the log has of them, in which no user is named.
func Unnamed(changes []Change) []Change {
	out := make([]Change, len(changes))
	for i, c := range changes {
		note := ""
		if c.recorded[0] == c.recorded[1] {
			note = " (others)"
		}
		out[i] = Change{Setting: c.Setting, Before: c.recorded[0], After: c.recorded[1] + note, recorded: c.recorded}
	}
	return out
}

// recorded is the value as the log has it.
func (s Setting) recorded() string {
	switch list, isList := s.value.Interface().([]string); {
	case s.Secret && isList:
		return fmt.Sprintf("%d secrets", len(list))
	case s.Secret && !s.value.IsZero():
		return "a secret"
	}
	return s.String()
}

// Keep sets the settings in c that fixed says so of to what they are in before, and yields the keys of those that differed.
func (c *Config) Keep(before *Config, fixed func(key string) bool) (kept []string) {
	kept = []string{}
	old := Settings(before)
	for i, s := range Settings(c) {
		if fixed(s.Key) && !s.Equal(old[i]) {
			s.value.Set(reflect.ValueOf(old[i].value.Interface()))
			kept = append(kept, s.Key)
		}
	}
	return kept
}
