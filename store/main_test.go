package store

import (
	"fmt"
	"os"
	"testing"
)

// childEnv names the part a copy of this test binary plays: some tests need a process
// of its own, to be traced, killed or limited.
const childEnv = "TURNSTONE_STORE_CHILD"

// children by name. They get the arguments of the process, and its exit code is 0 where they
// return nil.
var children = map[string]func(args []string) error{}

func TestMain(m *testing.M) {
	name := os.Getenv(childEnv)
	if name == "" {
		os.Exit(m.Run())
	}
	if err := children[name](os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
