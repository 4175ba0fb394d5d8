package config

import (
	"encoding"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"

	"github.com/caarlos0/env/v11"
	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/pflag"
)

const envPrefix = "TURNSTONE_"

// Setting is one setting of a Config.
type Setting struct {
	Key    string // in the file: section.name
	Flag   string
	Env    string
	Doc    string
	Secret bool
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
				Key: section + name, Flag: f.Tag.Get("flag"), Env: envPrefix + f.Tag.Get("env"),
				Doc: f.Tag.Get("doc"), Secret: f.Tag.Get("secret") != "", value: v.Field(i),
			})
		}
	}
	walk(reflect.ValueOf(c).Elem(), "")
	return out
}

// String is the value as it is written in a file, secrets hidden.
func (s Setting) String() string {
	if s.Secret && !s.value.IsZero() {
		return `["<hidden>"]`
	}
	switch v := s.value.Interface().(type) {
	case []string:
		quoted := make([]string, len(v))
		for i, x := range v {
			quoted[i] = fmt.Sprintf("%q", x)
		}
		return "[" + strings.Join(quoted, ", ") + "]"
	case string:
		return fmt.Sprintf("%q", v)
	case Duration:
		return fmt.Sprintf("%q", v)
	default:
		return fmt.Sprint(v)
	}
}

// Flags adds a flag for every setting to set.
func Flags(set *pflag.FlagSet) {
	c := Default()
	set.String("config", "", "configuration file (TOML)")
	for _, s := range Settings(&c) {
		usage := s.Doc
		switch v := s.value.Interface().(type) {
		case []string:
			set.StringArray(s.Flag, v, usage)
		case string:
			set.String(s.Flag, v, usage)
		case int:
			set.Int(s.Flag, v, usage)
		case Duration:
			set.String(s.Flag, v.String(), usage)
		}
	}
}

// Origins says where the value of each setting comes from, by key.
type Origins map[string]string

// Load reads the configuration: defaults, over them the file that --config names, over it the
// environment, over it the flags.
func Load(set *pflag.FlagSet) (Config, Origins, error) {
	c := Default()
	origins := Origins{}
	for _, s := range Settings(&c) {
		origins[s.Key] = "default"
	}
	file, err := set.GetString("config")
	if err != nil {
		return c, nil, err
	}
	if file == "" {
		file = os.Getenv(envPrefix + "CONFIG")
	}
	if file != "" {
		if err := readFile(&c, file, origins); err != nil {
			return c, nil, err
		}
	}
	if err := readEnvironment(&c, origins); err != nil {
		return c, nil, err
	}
	return c, origins, readFlags(&c, set, origins)
}

// readFile reads a file strictly: an unknown key is an error that shows its line.
func readFile(c *Config, file string, origins Origins) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	dec := toml.NewDecoder(strings.NewReader(string(b))).DisallowUnknownFields()
	if err := dec.Decode(c); err != nil {
		var strict *toml.StrictMissingError
		var decode *toml.DecodeError
		switch {
		case errors.As(err, &strict):
			return fmt.Errorf("%s: unknown setting\n%s", file, strict.String())
		case errors.As(err, &decode):
			return fmt.Errorf("%s: %w\n%s", file, err, decode.String())
		}
		return fmt.Errorf("%s: %w", file, err)
	}
	var given map[string]any
	if err := toml.Unmarshal(b, &given); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for key := range origins {
		section, name, nested := strings.Cut(key, ".")
		at := given
		if nested {
			at, _ = given[section].(map[string]any)
			section = name
		}
		if _, ok := at[section]; ok {
			origins[key] = file
		}
	}
	return nil
}

// Environment reads what the environment sets into c.
func Environment(c *Config) error {
	if err := env.ParseWithOptions(c, env.Options{Prefix: envPrefix}); err != nil {
		return fmt.Errorf("environment: %w", err)
	}
	return nil
}

func readEnvironment(c *Config, origins Origins) error {
	if err := Environment(c); err != nil {
		return err
	}
	for _, s := range Settings(c) {
		if _, set := os.LookupEnv(s.Env); set {
			origins[s.Key] = "$" + s.Env
		}
	}
	return nil
}

func readFlags(c *Config, set *pflag.FlagSet, origins Origins) error {
	for _, s := range Settings(c) {
		if !set.Changed(s.Flag) {
			continue
		}
		origins[s.Key] = "--" + s.Flag
		var err error
		switch v := s.value.Addr().Interface().(type) {
		case *[]string:
			*v, err = set.GetStringArray(s.Flag)
		case *string:
			*v, err = set.GetString(s.Flag)
		case *int:
			*v, err = set.GetInt(s.Flag)
		case encoding.TextUnmarshaler:
			var text string
			if text, err = set.GetString(s.Flag); err == nil {
				err = v.UnmarshalText([]byte(text))
			}
		}
		if err != nil {
			return fmt.Errorf("--%s: %w", s.Flag, err)
		}
	}
	return nil
}
