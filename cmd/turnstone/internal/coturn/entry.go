package coturn

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"turnstone/cmd/turnstone/internal/config"
)

// entry is a line that is no comment: KEY, KEY=VALUE or KEY VALUE.
type entry struct {
	line  int
	key   string
	value string // as coturn sees it: a comment behind a value is part of it
}

// entries are the lines of text that say something.
func entries(text string) (out []entry) {
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		e := entry{line: i + 1, key: line}
		if end := strings.IndexAny(line, " =\t"); end >= 0 {
			e.key, e.value = line[:end], strings.TrimLeft(line[end:], " =\t")
		}
		if rest, quoted := strings.CutPrefix(e.value, `"`); quoted {
			e.value = strings.TrimSuffix(rest, `"`)
		}
		out = append(out, e)
	}
	return out
}

var comment = regexp.MustCompile(`(^|\s+)#.*$`)

// word is the value without a comment: what is read as a number or an address has none.
func (e *entry) word() string {
	return strings.TrimSuffix(comment.ReplaceAllString(e.value, ""), `"`)
}

// text is the value as it stands, which must be possible in TOML.
func (e *entry) text() (string, error) {
	switch {
	case e.value == "":
		return "", errors.New("it has no value")
	case !utf8.ValidString(e.value) || strings.ContainsFunc(e.value, unicode.IsControl):
		return "", errors.New("its value is no text in UTF-8")
	}
	return e.value, nil
}

// boolean is the value of a switch, which is on where it has none.
func (e *entry) boolean() (bool, error) {
	w := strings.ToLower(e.word())
	switch {
	case w == "", w == "on", w[0] == 'y', w[0] == 't', '1' <= w[0] && w[0] <= '9':
		return true, nil
	case w == "off", w[0] == 'n', w[0] == 'f', w[0] == '0':
		return false, nil
	}
	return false, fmt.Errorf("%q is none of on, off, yes, no, true, false, 1, 0", w)
}

// number is a value that is not negative.
func (e *entry) number() (int, error) {
	n, err := strconv.Atoi(e.word())
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is no number", e.word())
	}
	return n, nil
}

// seconds is a value in seconds, absent where there is none.
func (e *entry) seconds(absent int) (config.Duration, error) {
	n := absent
	if e.word() != "" {
		var err error
		if n, err = e.number(); err != nil {
			return 0, err
		}
	}
	return config.Duration(time.Duration(n) * time.Second), nil
}

func (e *entry) port() (int, error) {
	n, err := e.number()
	if err == nil && n > 65535 {
		err = fmt.Errorf("%d is no port", n)
	}
	return n, err
}

// address is an IP address. coturn would look up a name once at start.
func (e *entry) address() (netip.Addr, error) { return address(e.word()) }

func address(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q is no address like 192.0.2.1: a name has to be looked up first", s)
	}
	return a.Unmap(), nil
}
