package config

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// Setting is one setting of a Config.
type Setting struct {
	Key    string // in the file: section.name
	Flag   string
	Arg    string // what its value is called in the help
	Env    string
	Doc    string
	Secret bool
	field  string
	value  reflect.Value
}

// Settings walks the settings of c in the order they are declared.
func Settings(c *Config) []Setting {
	var out []Setting
	var walk func(v reflect.Value, section string)
	walk = func(v reflect.Value, section string) {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			name := f.Tag.Get("toml")
			if f.Tag.Get("flag") == "" {
				walk(v.Field(i), name+".")
				continue
			}
			out = append(out, Setting{
				Key: section + name, Flag: f.Tag.Get("flag"), Arg: f.Tag.Get("arg"), Env: envPrefix + f.Tag.Get("env"),
				Doc: f.Tag.Get("doc"), Secret: f.Tag.Get("secret") != "", field: f.Name, value: v.Field(i),
			})
		}
	}
	walk(reflect.ValueOf(c).Elem(), "")
	return out
}

// Repeats says whether the setting is a list: its flag may be given several times.
func (s Setting) Repeats() bool { return s.value.Kind() == reflect.Slice }

// Value is the value, with secrets hidden: a string, a number or a list of strings.
func (s Setting) Value() any {
	switch v := s.value.Interface().(type) {
	case []string:
		out := make([]string, len(v))
		for i, x := range v {
			out[i] = x
			if s.Secret {
				out[i] = hidden(x)
			}
		}
		return out
	case string:
		if s.Secret && v != "" {
			return "<hidden>"
		}
		return v
	case Duration:
		return v.String()
	case Size:
		return v.String()
	default:
		return v
	}
}

// Equal says whether s and other have the same value, secrets included.
func (s Setting) Equal(other Setting) bool {
	return reflect.DeepEqual(s.value.Interface(), other.value.Interface())
}

// hidden is a secret as it may be shown: of NAME:PASSWORD the name.
func hidden(s string) string {
	if name, _, named := strings.Cut(s, ":"); named {
		return name + ":<hidden>"
	}
	return "<hidden>"
}

// String is the value as it is written in a file, secrets hidden.
func (s Setting) String() string {
	switch v := s.Value().(type) {
	case []string:
		quoted := make([]string, len(v))
		for i, x := range v {
			quoted[i] = fmt.Sprintf("%q", x)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	case string:
		return fmt.Sprintf("%q", v)
	default:
		return fmt.Sprint(v)
	}
}

// MarshalJSON is the value, secrets hidden.
func (s Setting) MarshalJSON() ([]byte, error) { return json.Marshal(s.Value()) }

// Flags adds a flag for every setting to set.
func Flags(set *pflag.FlagSet) {
	c := Default()
	set.SortFlags = false
	FileFlag(set)
	for _, s := range Settings(&c) {
		set.Var(&flagValue{setting: s, value: s.value}, s.Flag, s.Doc)
	}
}

// FileFlag adds the flag that names the file.
func FileFlag(set *pflag.FlagSet) {
	set.String("config", "", "The configuration `FILE` (TOML); $"+envPrefix+"CONFIG names it too.")
}

// flagValue is the value of a setting on the command line.
type flagValue struct {
	setting Setting
	value   reflect.Value
	given   bool
}

// Set takes a value; the first of a list replaces the default.
func (v *flagValue) Set(text string) error {
	defer func() { v.given = true }()
	switch p := v.value.Addr().Interface().(type) {
	case *[]string:
		if !v.given {
			*p = nil
		}
		*p = append(*p, text)
	case *string:
		*p = text
	case *Duration:
		return p.UnmarshalText([]byte(text))
	case *Size:
		return p.UnmarshalText([]byte(text))
	case *int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is no number", text)
		}
		*p = n
	}
	return nil
}

// Type is what the help calls the value.
func (v *flagValue) Type() string { return v.setting.Arg }

// String is the default in the help.
func (v *flagValue) String() string {
	if v.setting.Arg == "" { // pflag asks a zero value too
		return ""
	}
	if list, ok := v.setting.Value().([]string); ok {
		return strings.Join(list, ", ")
	}
	return fmt.Sprint(v.setting.Value())
}
