package config

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestDiffHidesSecrets(t *testing.T) {
	before, after := Default(), Default()
	before.Auth.Users, after.Auth.Users = []string{"alice:one", "bob:two"}, []string{"alice:three", "bob:two"}
	before.Auth.Secrets, after.Auth.Secrets = []string{"s3cret"}, []string{"s3cret", "t0ken"}
	after.Auth.HTTPToken = "bearer"
	after.Limits.MaxAllocations = 100
	got := Diff(&before, &after)
	want := []Change{
		{Setting: "auth.users", Before: `["alice:<hidden>", "bob:<hidden>"]`, After: `["alice:<hidden>", "bob:<hidden>"] (another secret)`},
		{Setting: "auth.secrets", Before: `["<hidden>"]`, After: `["<hidden>", "<hidden>"]`},
		{Setting: "auth.http-token", Before: `""`, After: `"<hidden>"`},
		{Setting: "limits.max-allocations", Before: "0", After: "100"},
	}
	if d := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Change{})); d != "" {
		t.Errorf("what changes, - want, + got:\n%s", d)
	}
	var recorded []string
	for i := range got {
		b, a := got[i].Recorded()
		recorded = append(recorded, b+" to "+a)
	}
	if want := []string{"2 secrets to 2 secrets", "1 secrets to 2 secrets", `"" to a secret`, "0 to 100"}; !slices.Equal(recorded, want) {
		t.Errorf("for the log: got %q, want %q", recorded, want)
	}
	if got := Diff(&before, &before); len(got) != 0 {
		t.Errorf("of one and the same: got %v, want nothing", got)
	}
}

func TestKeepLeavesTheRestAlone(t *testing.T) {
	before, after := Default(), Default()
	before.Data, after.Data = "here", "there"
	after.Listen = []string{"udp://192.0.2.1"}
	kept := after.Keep(&before, func(key string) bool { return key == "data" || key == "metrics" })
	if !slices.Equal(kept, []string{"data"}) || after.Data != "here" || after.Listen[0] != "udp://192.0.2.1" {
		t.Errorf("got %v kept, data %q and listen %v", kept, after.Data, after.Listen)
	}
	after.Listen[0] = "udp://192.0.2.2"
	if before.Listen[0] == after.Listen[0] {
		t.Error("the two share a list")
	}
}
