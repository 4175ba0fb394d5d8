package turnstone_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

var (
	linkTo  = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	fenced  = regexp.MustCompile("(?s)```.*?```")
)

// anchors yields what links to parts of a text may name, as GitHub makes it of headings.
func anchors(text string) map[string]bool {
	out := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
		var name strings.Builder
		for _, r := range strings.ToLower(m[1]) {
			switch {
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				name.WriteRune(r)
			case r == ' ':
				name.WriteByte('-')
			}
		}
		out[name.String()] = true
	}
	return out
}

// documents yields the names of all texts for readers.
func documents(t *testing.T) []string {
	t.Helper()
	files := []string{"README.md"}
	for _, pattern := range []string{"docs/*.md", "docs/howto/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) < 5 {
			t.Fatalf("%s: found only %v", pattern, found)
		}
		files = append(files, found...)
	}
	return files
}

func TestLinksInTheDocsResolve(t *testing.T) {
	for _, f := range documents(t) {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range linkTo.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			at := f
			if file != "" {
				at = filepath.Join(filepath.Dir(f), file)
			}
			there, err := os.Stat(at)
			if err != nil {
				t.Errorf("%s links to %s: %v", f, m[1], err)
				continue
			}
			if anchor == "" || there.IsDir() || filepath.Ext(at) != ".md" {
				continue
			}
			target, err := os.ReadFile(at)
			if err != nil {
				t.Fatal(err)
			}
			if !anchors(string(target))[anchor] {
				t.Errorf("%s links to %s, which has no such heading", f, m[1])
			}
		}
	}
}

// TestReadmeLeadsToEveryDocument holds that what is there is found from the front page.
func TestReadmeLeadsToEveryDocument(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range documents(t)[1:] {
		if !strings.Contains(string(text), "]("+f+")") {
			t.Errorf("the README does not link to %s", f)
		}
	}
}
