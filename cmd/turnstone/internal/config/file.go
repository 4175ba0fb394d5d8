package config

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// readFile reads a file strictly: an unknown key is an error that shows its line.
func readFile(c *Config, file string, origins Origins) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	return decode(c, file, b, origins)
}

// decode reads the text of a file.
func decode(c *Config, file string, b []byte, origins Origins) error {
	if err := toml.NewDecoder(strings.NewReader(string(b))).DisallowUnknownFields().Decode(c); err != nil {
		return fileError(file, string(b), err)
	}
	var given map[string]any
	if err := toml.Unmarshal(b, &given); err != nil {
		return fileError(file, string(b), err)
	}
	for _, s := range Settings(c) {
		v, ok := lookup(given, s.Key)
		if !ok {
			continue
		}
		origins[s.Key] = file
		if n, number := v.(int64); number && s.value.Type() == reflect.TypeFor[Duration]() {
			return fmt.Errorf("%s: %s = %d: %s", file, s.Key, n, wantDuration)
		}
	}
	return nil
}

const wantDuration = `want a duration like "10m" or "1h30m"`

// lookup is the value of a key, section.name or name.
func lookup(given map[string]any, key string) (any, bool) {
	section, name, nested := strings.Cut(key, ".")
	if nested {
		given, _ = given[section].(map[string]any)
		section = name
	}
	v, ok := given[section]
	return v, ok
}

// fileError says what is wrong and shows the line it is in: that one alone, and without
// what may be a secret. The library would show its neighbours too.
func fileError(file, text string, err error) error {
	var strict *toml.StrictMissingError
	var decode *toml.DecodeError
	switch {
	case errors.As(err, &strict):
		var problems []error
		for i := range strict.Errors {
			e := &strict.Errors[i]
			problems = append(problems, lineError(file, text, e, fmt.Sprintf("there is no setting %q", strings.Join(e.Key(), "."))))
		}
		return errors.Join(problems...)
	case errors.As(err, &decode):
		return lineError(file, text, decode, decodeProblem(decode))
	}
	return fmt.Errorf("%s: %w", file, err)
}

// decodeProblem says what is wrong in the words of the file.
func decodeProblem(e *toml.DecodeError) string {
	key := strings.Join(e.Key(), ".")
	c := Default()
	for _, s := range Settings(&c) {
		if s.Key != key {
			continue
		}
		switch s.value.Interface().(type) {
		case []string:
			return key + ": want a list of strings"
		case string:
			return key + ": want a string"
		case int:
			return key + ": want a number"
		case Duration:
			return key + ": " + wantDuration
		}
	}
	return strings.TrimPrefix(e.Error(), "toml: ")
}

func lineError(file, text string, e *toml.DecodeError, problem string) error {
	row, column := e.Position()
	lines := strings.Split(text, "\n")
	line := ""
	if row >= 1 && row <= len(lines) {
		line = withoutSecrets(lines, row-1)
	}
	return fmt.Errorf("%s:%d:%d: %s\n%5d | %s", file, row, column, problem, row, line)
}

var (
	secretLine = regexp.MustCompile(`(?i)user|secret|pass|auth|cred|token`)
	harmless   = regexp.MustCompile(`^\s*(auth\.)?(nonce-lifetime|credential-grace|users-file)\s*=`)
	tableLine  = regexp.MustCompile(`^\s*\[([^\]"']*)\]\s*(#.*)?$`)
	keyOf      = regexp.MustCompile(`^\s*[\w.-]+\s*=`)
)

// withoutSecrets is line i without its value where that may be a secret: in the section
// auth, and where something looks like one.
func withoutSecrets(lines []string, i int) string {
	section := ""
	for _, l := range lines[:i+1] {
		if m := tableLine.FindStringSubmatch(l); m != nil {
			section = m[1]
		}
	}
	line := strings.TrimRight(lines[i], "\r")
	if harmless.MatchString(line) || tableLine.MatchString(line) || !secretLine.MatchString(section+line) {
		return line
	}
	return strings.TrimLeft(keyOf.FindString(line)+" <hidden>", " ")
}
