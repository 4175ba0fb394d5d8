package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"turnstone/cmd/turnstone/internal/config"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// documents yields the texts that users read, by name.
func documents(t *testing.T) map[string]string {
	t.Helper()
	files := []string{"README.md"}
	for _, pattern := range []string{"docs/*.md", "docs/howto/*.md"} {
		found, err := filepath.Glob("../../" + pattern)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) < 5 {
			t.Fatalf("%s: found only %v", pattern, found)
		}
		for _, f := range found {
			files = append(files, strings.TrimPrefix(f, "../../"))
		}
	}
	out := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile("../../" + f)
		if err != nil {
			t.Fatal(err)
		}
		out[f] = string(text)
	}
	return out
}

var (
	codeLine   = regexp.MustCompile("(?m)^(?: {4}|\t)?(?:\\$ )?(?:bin/|\\./)?(turnstone .*)$")
	inlineCode = regexp.MustCompile("`(turnstone [^`]+)`")
	// saidLine is what the daemon, failing commands and prose say, not a command.
	saidLine = regexp.MustCompile(`^turnstone (ready on |[a-z -]*:( |$)|[A-Z0-9])`)
	endOfOne = regexp.MustCompile(`\s(#|\||>|&|;).*$`)
)

// commandsIn yields the invocations of turnstone in a text.
func commandsIn(text string) []string {
	var out []string
	for _, pattern := range []*regexp.Regexp{codeLine, inlineCode} {
		for _, m := range pattern.FindAllStringSubmatch(text, -1) {
			if line := strings.ReplaceAll(m[1], "\n", " "); !saidLine.MatchString(line) {
				out = append(out, endOfOne.ReplaceAllString(line, ""))
			}
		}
	}
	return out
}

// wrongIn says what of an invocation there is not.
func wrongIn(root *cobra.Command, line string) string {
	words := strings.Fields(line)[1:]
	cmd := root
	for len(words) > 0 && cmd.HasSubCommands() && !strings.HasPrefix(words[0], "-") {
		var next *cobra.Command
		for name := range strings.SplitSeq(words[0], "|") {
			i := slices.IndexFunc(cmd.Commands(), func(sub *cobra.Command) bool { return sub.Name() == name })
			if i < 0 {
				return "no command " + name
			}
			next = cmd.Commands()[i]
		}
		cmd, words = next, words[1:]
	}
	cmd.InitDefaultHelpFlag()
	for _, w := range words {
		name, _, _ := strings.Cut(w, "=")
		name = strings.Trim(name, `"'[](),.:`)
		var f *pflag.Flag
		switch {
		case strings.HasPrefix(name, "--") && len(name) > 2:
			f = cmd.Flags().Lookup(name[2:])
		case len(name) == 2 && name[0] == '-' && name[1] != '-':
			f = cmd.Flags().ShorthandLookup(name[1:])
		default:
			continue
		}
		if f == nil {
			return cmd.CommandPath() + " has no " + name
		}
	}
	return ""
}

func TestCommandsInTheDocsExist(t *testing.T) {
	root := newRoot(func() string { return "" })
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	n := 0
	for name, text := range documents(t) {
		for _, line := range commandsIn(text) {
			n++
			if problem := wrongIn(root, line); problem != "" {
				t.Errorf("%s: %s: %s", name, line, problem)
			}
		}
	}
	if n < 100 {
		t.Errorf("%d commands: the search misses some", n)
	}
}

func TestWrongCommandsAreFound(t *testing.T) {
	root := newRoot(func() string { return "" })
	for line, want := range map[string]string{
		"turnstone servee":                     "no command servee",
		"turnstone log dmp -o table":           "no command dmp",
		"turnstone log dump|dmp":               "no command dmp",
		"turnstone log dump --outputt table":   "turnstone log dump has no --outputt",
		"turnstone status -x":                  "turnstone status has no -x",
		"turnstone log dump -o table":          "",
		"turnstone serve --listen=udp://[::1]": "",
	} {
		if got := wrongIn(root, line); got != want {
			t.Errorf("%s: got %q, want %q", line, got, want)
		}
	}
	said := "    $ turnstone log verify | head\n    turnstone log verify: event 4: no\nturnstone ready on udp://192.0.2.1\nsee `turnstone log\nstat -o json`\n"
	if got := commandsIn(said); len(got) != 2 || got[0] != "turnstone log verify" || got[1] != "turnstone log stat -o json" {
		t.Errorf("got the commands %q", got)
	}
}

// TestReadmeHasEveryCommand holds the table of commands in the README to the commands there are, both ways.
func TestReadmeHasEveryCommand(t *testing.T) {
	_, text, _ := strings.Cut(documents(t)["README.md"], "## Commands")
	text, _, _ = strings.Cut(text, "## More")
	listed := map[string]bool{}
	for _, row := range regexp.MustCompile(`(?m)^\| (.*?[^\\]) \| `).FindAllStringSubmatch(text, -1) {
		for _, code := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			words := strings.Fields(strings.ReplaceAll(code[1], `\|`, "|"))
			var path []string
			for _, w := range words {
				if strings.HasPrefix(w, "-") || strings.ToLower(w) != w || strings.Contains(w, ".") {
					break
				}
				path = append(path, w)
			}
			last := strings.Split(path[len(path)-1], "|")
			for _, name := range last {
				listed[strings.Join(append(path[:len(path)-1:len(path)-1], name), " ")] = true
			}
		}
	}
	there := map[string]bool{}
	for _, cmd := range commands(t) {
		path := strings.TrimPrefix(cmd.CommandPath(), "turnstone ")
		if cmd.Hidden || path == "help" {
			continue
		}
		if strings.HasPrefix(path, "completion ") {
			path = "completion"
		}
		there[path] = true
		if !listed[path] {
			t.Errorf("the README does not list %s", path)
		}
	}
	for path := range listed {
		if !there[path] && path != "completion" {
			t.Errorf("the README lists %s, which is no command", path)
		}
	}
}

// TestConfigurationsInTheDocsAreGood holds that what readers paste into a file is a configuration.
func TestConfigurationsInTheDocsAreGood(t *testing.T) {
	n := 0
	for name, text := range documents(t) {
		for _, m := range regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(text, -1) {
			n++
			if err := config.CheckText(name, []byte(m[1])); err != nil {
				t.Errorf("%v\n%s", err, m[1])
			}
		}
	}
	if n < 8 {
		t.Errorf("%d configurations: the search misses some", n)
	}
}
