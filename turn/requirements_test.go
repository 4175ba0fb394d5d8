package turn

import (
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun/v3"
)

// requirement is one that an RFC makes of a server, and where it is met. What is in by and tests is
// DIRECTORY:NAME, several with blanks between: a function, a method (TYPE.NAME), a type or a constant, and a test
// with the names of its rows behind slashes. In by a path alone is a file.
type requirement struct {
	section string
	text    string // in our own words
	by      string
	tests   string
	but     string // what is not as the RFC has it, and why

	// A request that breaks the rule, and the code of its refusal. The name is of the row in [TestRequirements].
	name string
	code int
	ask  func(*core) *answerSeen
}

// document is an RFC with what it requires.
type document struct {
	number int
	title  string
	list   []requirement
}

var documents = []document{
	{8489, "Session Traversal Utilities for NAT (STUN)", rfc8489},
	{8656, "Traversal Using Relays around NAT (TURN)", rfc8656},
	{6062, "TURN extensions for TCP allocations", rfc6062},
	{7635, "Third-party authorization", rfc7635},
	{8016, "Mobility with TURN", rfc8016},
	{5780, "NAT behaviour discovery", rfc5780},
}

// asked has alice, who has nothing yet, ask.
func asked(method stun.Method, attributes ...stun.Setter) func(*core) *answerSeen {
	return func(c *core) *answerSeen { return c.do(alice(), method, attributes...) }
}

// holding has alice ask, who has an allocation.
func holding(method stun.Method, attributes ...stun.Setter) func(*core) *answerSeen {
	return func(c *core) *answerSeen {
		c.allocated(alice())
		return c.do(alice(), method, attributes...)
	}
}

// holdingTCP has alice ask, who has a TCP allocation.
func holdingTCP(method stun.Method, attributes ...stun.Setter) func(*core) *answerSeen {
	return func(c *core) *answerSeen {
		c.mustDo(0, alice().over(TCP), stun.MethodAllocate, transport(transportTCP))
		return c.do(alice().over(TCP), method, attributes...)
	}
}

// under has ask asked of a server with other rules.
func under(change func(*Rules), ask func(*core) *answerSeen) func(*core) *answerSeen {
	return func(c *core) *answerSeen {
		change(&c.rules)
		return ask(c)
	}
}

// after has ask asked by alice, who has an allocation, once something else was granted.
func after(granted func(*core), method stun.Method, attributes ...stun.Setter) func(*core) *answerSeen {
	return func(c *core) *answerSeen {
		c.allocated(alice())
		granted(c)
		return c.do(alice(), method, attributes...)
	}
}

// TestRequirements sends what each requirement forbids. A refusal leaves no event but that of a redirect.
func TestRequirements(t *testing.T) {
	refused := map[int]bool{}
	for _, d := range documents {
		for _, r := range d.list {
			if r.ask == nil {
				continue
			}
			refused[r.code] = true
			t.Run(r.row(d.number), func(t *testing.T) {
				c := newCore(t)
				got := r.ask(c)
				if codeOf(got) != r.code {
					t.Fatalf("got code %d, want %d", codeOf(got), r.code)
				}
				if len(got.events) > 0 && r.code != CodeTryAlternate {
					t.Errorf("the refusal made the events %v", describeAll(got.events))
				}
				if !got.message.Contains(stun.AttrSoftware) {
					t.Error("the answer has no SOFTWARE")
				}
				var e stun.ErrorCodeAttribute
				if err := e.GetFrom(got.message); err != nil || string(e.Reason) != reasonPhrases[r.code] || len(e.Reason) == 0 {
					t.Errorf("got reason %q (%v), want %q", e.Reason, err, reasonPhrases[r.code])
				}
			})
		}
	}
	for code, phrase := range reasonPhrases {
		if !refused[code] {
			t.Errorf("no requirement in documents has a request that is refused with %d %s", code, phrase)
		}
	}
}

func (r *requirement) row(rfc int) string {
	section := strings.NewReplacer("(", ".", ")", "").Replace(r.section) // so that -run takes it as it is
	return fmt.Sprintf("RFC%d/%s/%s", rfc, section, r.name)
}

// TestRequirementsAreWhereTheyAreSaidToBe holds the table against the source.
func TestRequirementsAreWhereTheyAreSaidToBe(t *testing.T) {
	s := sources{}
	rows := map[string]bool{}
	for _, d := range documents {
		for _, r := range d.list {
			at := fmt.Sprintf("RFC %d section %s: %s", d.number, r.section, r.text)
			for _, ref := range strings.Fields(r.by) {
				if _, err := s.find(ref, false); err != nil {
					t.Errorf("%s: %v", at, err)
				}
			}
			for _, ref := range strings.Fields(r.tests) {
				if _, err := s.find(ref, true); err != nil {
					t.Errorf("%s: %v", at, err)
				}
			}
			if (r.ask == nil) != (r.code == 0) || (r.ask == nil) != (r.name == "") {
				t.Errorf("%s: a request, its code and its name go together", at)
			}
			if r.ask != nil && rows[r.row(d.number)] {
				t.Errorf("%s: another has the name %s", at, r.name)
			}
			rows[r.row(d.number)] = true
			if r.but == "" && (r.by == "" || r.tests == "" && r.ask == nil) {
				t.Errorf("%s: it is neither said to be unmet nor met and tested", at)
			}
		}
	}
}

const requirementsFile = "../docs/requirements.md"

func TestRequirementsAreDocumented(t *testing.T) {
	got := requirementsText(t)
	if *update {
		if err := os.WriteFile(requirementsFile, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(requirementsFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("docs/requirements.md is not what the table says; go test ./turn -run TestRequirements -update writes it (-file +table):\n%s", diff)
	}
}

const requirementsPreface = `# What the RFCs require

<!-- Generated: go test ./turn -run TestRequirements -update -->

Each requirement on a server, in our own words: where it is met, and which tests hold it. Requirements on clients alone are
left out. The tests named ` + "`TestRequirements/…`" + ` send what the rule forbids and want the code in the row. The table
is in the tests of [turn](../turn/requirements_test.go), which fail when a function or a test that it names is gone.

What is not as the RFC has it says so in the row, after *But*.
`

func requirementsText(t *testing.T) string {
	t.Helper()
	s := sources{}
	var b strings.Builder
	b.WriteString(requirementsPreface)
	for _, d := range documents {
		fmt.Fprintf(&b, "\n## RFC %d: %s\n\n| Section | Requirement | Code | Where | Tests |\n|---|---|---|---|---|\n", d.number, d.title)
		for _, r := range d.list {
			text, code := r.text, ""
			if r.but != "" {
				text += " *But* " + r.but
			}
			if r.code != 0 {
				code = strconv.Itoa(r.code)
			}
			tests := s.links(t, r.tests, true)
			if r.ask != nil {
				own := fmt.Sprintf("[`TestRequirements/%s`](../turn/requirements_test.go)", r.row(d.number))
				tests = slices.Insert(tests, 0, own)
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", r.section, text, code, strings.Join(s.links(t, r.by, false), ", "), strings.Join(tests, ", "))
		}
	}
	return b.String()
}

// sources are the files of the repository by directory, each parsed once.
type sources map[string]map[string]*ast.File

// links are the references in list as links from docs.
func (s sources) links(t *testing.T, list string, test bool) (out []string) {
	t.Helper()
	for _, ref := range strings.Fields(list) {
		file, err := s.find(ref, test)
		if err != nil {
			t.Fatal(err)
		}
		name := ref
		if _, after, ok := strings.Cut(ref, ":"); ok {
			name = after
		}
		out = append(out, fmt.Sprintf("[`%s`](../%s)", name, file))
	}
	return out
}

// find is the file, from the root of the repository, in which what ref names is declared.
func (s sources) find(ref string, test bool) (string, error) {
	dir, name, ok := strings.Cut(ref, ":")
	if !ok {
		_, err := os.Stat(filepath.Join("..", ref))
		return ref, err
	}
	name, rows, _ := strings.Cut(name, "/")
	files, err := s.in(dir)
	if err != nil {
		return "", err
	}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		if strings.HasSuffix(path, "_test.go") != test {
			continue
		}
		for _, d := range files[path].Decls {
			if !slices.Contains(declared(d), name) {
				continue
			}
			if rows != "" {
				err = hasRows(dir, d, rows)
			}
			return path, err
		}
	}
	return "", fmt.Errorf("%s declares no %s", dir, name)
}

// in is what is in a directory.
func (s sources) in(dir string) (map[string]*ast.File, error) {
	if known, ok := s[dir]; ok {
		return known, nil
	}
	paths, err := filepath.Glob(filepath.Join("..", dir, "*.go"))
	if err != nil {
		return nil, err
	}
	s[dir] = map[string]*ast.File{}
	for _, p := range paths {
		f, err := parser.ParseFile(gotoken.NewFileSet(), p, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		s[dir][dir+"/"+filepath.Base(p)] = f
	}
	return s[dir], nil
}

// declared are the names that d declares, those of methods behind their type's.
func declared(d ast.Decl) (out []string) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		name := d.Name.Name
		if d.Recv != nil {
			of := d.Recv.List[0].Type
			if p, ok := of.(*ast.StarExpr); ok {
				of = p.X
			}
			if i, ok := of.(*ast.Ident); ok {
				name = i.Name + "." + name
			}
		}
		return []string{name}
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				out = append(out, spec.Name.Name)
			case *ast.ValueSpec:
				for _, n := range spec.Names {
					out = append(out, n.Name)
				}
			}
		}
	}
	return out
}

// hasRows says whether the test d, in dir, has the rows: their names are strings in it, or of transcripts.
func hasRows(dir string, d ast.Decl, rows string) error {
	strs := map[string]bool{}
	ast.Inspect(d, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == gotoken.STRING {
			if text, err := strconv.Unquote(l.Value); err == nil {
				strs[text] = true
			}
		}
		return true
	})
	for row := range strings.SplitSeq(rows, "/") {
		if _, err := os.Stat(filepath.Join("..", dir, "testdata", row+".txt")); err != nil && !strs[row] {
			return fmt.Errorf("%s has no row %s", declared(d), row)
		}
	}
	return nil
}
