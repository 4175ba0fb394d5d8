package bpf

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"turnstone/internal/testenv"
)

// clangMajor is the version of clang that the committed objects are made by: Debian 12's. Another makes other ones.
const clangMajor = "14"

// TestGenerate generates the objects and their Go anew, in a copy: they are those that are committed.
func TestGenerate(t *testing.T) {
	testenv.Tool(t, "llvm-strip")
	if out, err := exec.Command(testenv.Tool(t, "clang"), "-dumpversion").Output(); err != nil || !strings.HasPrefix(string(out), clangMajor+".") {
		testenv.Skip(t, "it needs clang "+clangMajor+", and this one is "+strings.TrimSpace(string(out)))
	}
	dir := t.TempDir()
	here, err := filepath.Glob("*")
	if err != nil {
		t.Fatal(err)
	}
	var made []string
	for _, name := range here {
		switch {
		case strings.HasSuffix(name, "_test.go"):
		case strings.Contains(name, "_bpfel."):
			made = append(made, name)
		default:
			copyFile(t, name, filepath.Join(dir, "bpf", name))
		}
	}
	if len(made) == 0 {
		t.Fatal("nothing is generated")
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		copyFile(t, filepath.Join("..", name), filepath.Join(dir, name))
	}
	generate := exec.Command("go", "generate", "./bpf")
	generate.Dir = dir
	if out, err := generate.CombinedOutput(); err != nil {
		t.Fatalf("go generate ./bpf: %v\n%s", err, out)
	}
	for _, name := range made {
		got, err := os.ReadFile(filepath.Join(dir, "bpf", name))
		if err != nil {
			t.Errorf("%s is not generated: %v", name, err)
			continue
		}
		if want := read(t, name); !bytes.Equal(got, want) {
			t.Errorf("%s is not what go generate makes of the sources: run make generate, and commit it with them", name)
		}
	}
}

// TestFormat holds the C to .clang-format.
func TestFormat(t *testing.T) {
	clang := testenv.Tool(t, "clang-format")
	var sources []string
	for _, pattern := range []string{"*.c", "*.h"} {
		some, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, some...)
	}
	if len(sources) == 0 {
		t.Fatal("there are no sources")
	}
	if out, err := exec.Command(clang, append([]string{"--dry-run", "-Werror"}, sources...)...).CombinedOutput(); err != nil {
		t.Errorf("clang-format: %v\n%s", err, out)
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, read(t, from), 0o666); err != nil {
		t.Fatal(err)
	}
}
