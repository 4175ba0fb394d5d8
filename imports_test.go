// Package turnstone_test holds the rules that are about the whole module.
package turnstone_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// mayImport says which of our packages each may import. What stands under a key may
// import what the key may.
var mayImport = map[string][]string{
	"turn":             {},
	"turn/relay":       {"turn"},
	"migrations":       {},
	"store":            {"turn", "migrations"},
	"audit":            {"turn", "store"},
	"kernel":           {"turn", "bpf"},
	"bpf":              {},
	"internal/testenv": {},
	"internal/netlab":  {},

	"internal/shape":       {"turn", "store", "internal/shape/calls"},
	"internal/shape/calls": {"turn"},
}

// purity is what the protocol core must not touch.
var purity = []string{"os", "net", "crypto/rand", "log", "github.com/rs/zerolog", "golang.org/x/sys/unix", "syscall"}

// pureExceptions are the files of turn that may import one of them nevertheless.
var pureExceptions = map[string]string{
	"turn/reply.go": "net", // for net.IP, the address type of the STUN codec
}

func TestImportsGoOneWay(t *testing.T) {
	checked := 0
	each(t, func(file, pkg string, imports []string) {
		allowed, ruled := mayImport[pkg]
		if !ruled {
			return
		}
		checked++
		for _, i := range imports {
			ours, isOurs := strings.CutPrefix(i, "turnstone/")
			if isOurs && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s: %s may import only %v of ours", file, i, pkg, allowed)
			}
		}
	})
	if checked < 20 {
		t.Errorf("checked %d files: the test does not see the packages", checked)
	}
}

func TestProtocolCoreIsPure(t *testing.T) {
	each(t, func(file, pkg string, imports []string) {
		if pkg != "turn" {
			return
		}
		for _, i := range imports {
			if slices.Contains(purity, i) && pureExceptions[file] != i {
				t.Errorf("%s imports %s", file, i)
			}
		}
	})
}

// each calls f with every source file that is not a test.
func each(t *testing.T, f func(file, pkg string, imports []string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && path != ".") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		var imports []string
		for _, i := range parsed.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			imports = append(imports, name)
		}
		f(filepath.ToSlash(path), filepath.ToSlash(filepath.Dir(path)), imports)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
