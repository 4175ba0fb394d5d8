package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

func load(t *testing.T, file string, args ...string) (Config, Origins, error) {
	t.Helper()
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	Flags(set)
	if file != "" {
		name := filepath.Join(t.TempDir(), "turnstone.toml")
		if err := os.WriteFile(name, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", name)
	}
	if err := set.Parse(args); err != nil {
		t.Fatal(err)
	}
	return Load(set)
}

func TestPrecedence(t *testing.T) {
	file := "realm = \"file\"\nsoftware = \"file\"\nmetrics = \"127.0.0.1:1\"\n[limits]\nmax-channels = 7\n"
	t.Setenv("TURNSTONE_SOFTWARE", "environment")
	t.Setenv("TURNSTONE_MAX_CHANNELS", "8")
	t.Setenv("TURNSTONE_LISTEN", "udp://192.0.2.1:1,udp://192.0.2.1:2")
	c, origins, err := load(t, file, "--max-channels", "9", "--user", "a:b", "--user", "c:d", "--credential-grace", "5m")
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Realm, want.Software, want.Metrics = "file", "environment", "127.0.0.1:1"
	want.Limits.MaxChannels = 9
	want.Listen = []string{"udp://192.0.2.1:1", "udp://192.0.2.1:2"}
	want.Auth.Users = []string{"a:b", "c:d"}
	want.Auth.CredentialGrace = Duration(5 * 60e9)
	want.Data, want.AdminSocket = "turnstone-data", "turnstone-data/admin.sock"
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	for key, want := range map[string]string{
		"software": "$TURNSTONE_SOFTWARE", "limits.max-channels": "--max-channels", "listen": "$TURNSTONE_LISTEN",
		"auth.users": "--user", "relay-ports": "default",
	} {
		if origins[key] != want {
			t.Errorf("%s comes from %s, want %s", key, origins[key], want)
		}
	}
	if got := origins["realm"]; !strings.HasSuffix(got, "turnstone.toml") {
		t.Errorf("realm comes from %s, want the file", got)
	}
}

func TestEverySettingHasItsNames(t *testing.T) {
	c := Default()
	flags, envs := map[string]bool{}, map[string]bool{}
	for _, s := range Settings(&c) {
		if s.Key == "" || s.Flag == "" || s.Arg == "" || s.Env == envPrefix || s.Doc == "" {
			t.Errorf("setting %+v lacks a tag", s)
		}
		if flags[s.Flag] || envs[s.Env] {
			t.Errorf("%s: flag %s or variable %s is another setting's too", s.Key, s.Flag, s.Env)
		}
		flags[s.Flag], envs[s.Env] = true, true
	}
	if len(flags) < 25 {
		t.Errorf("%d settings: the walk misses some", len(flags))
	}
}

func TestFileErrors(t *testing.T) {
	for name, tt := range map[string]struct{ file, want, shown string }{
		"UnknownKey":       {"realm = \"x\"\nrealms = \"y\"\n", `turnstone.toml:2:1: there is no setting "realms"`, `2 | realms = "y"`},
		"UnknownInSection": {"[limits]\nmax-alocations = 3\n", `:2:1: there is no setting "limits.max-alocations"`, "2 | max-alocations = 3"},
		"UnknownSection":   {"[limit]\nmax-channels = 3\n", `there is no setting "limit`, "[limit]"},
		"TextForNumber":    {"[limits]\nmax-channels = \"ten\"\n", ":2:16: limits.max-channels: want a number", `2 | max-channels = "ten"`},
		"TextForList":      {"listen = \"udp://192.0.2.1\"\n", ":1:10: listen: want a list of strings", `1 | listen = "udp://192.0.2.1"`},
		"NumberForText":    {"realm = 5\n", ":1:9: realm: want a string", "1 | realm = 5"},
		"BadDuration":      {"[limits]\nmax-lifetime = \"5 parsecs\"\n", ":2:16: limits.max-lifetime: want a duration like", "5 parsecs"},
		"NumberForTime":    {"[limits]\nmax-lifetime = 5\n", "limits.max-lifetime = 5: want a duration like", "turnstone.toml"},
		"NegativeDuration": {"[limits]\nmax-lifetime = \"-5m\"\n", "limits.max-lifetime: want a duration like", "-5m"},
		"Syntax":           {"realm = \"x\"\n\nlisten = [\n", "turnstone.toml:", "|"},
		"Twice":            {"realm = \"x\"\nrealm = \"y\"\n", "turnstone.toml", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := load(t, tt.file)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range []string{tt.want, tt.shown} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not contain %q", err, want)
				}
			}
		})
	}
}

func TestFileErrorsHideSecrets(t *testing.T) {
	const canary = "c4n4ry"
	for name, file := range map[string]string{
		"NextToIt":      "[auth]\nusers = [\"alice:c4n4ry\"]\nbogus = 1\nsecrets = [\"c4n4ry\"]\n",
		"TextForList":   "[auth]\nusers = \"alice:c4n4ry\"\n",
		"SecretForList": "[auth]\nsecrets = \"c4n4ry\"\n",
		"Unclosed":      "[auth]\nusers = [\"alice:c4n4ry]\n",
		"Unopened":      "[auth]\nusers = [alice:c4n4ry\"]\n",
		"Continued":     "[auth]\nusers = [\n  \"alice:c4n4ry\",\n  c4n4ry\",\n]\n",
		"WrongSection":  "users = [\"alice:c4n4ry\"]\n",
		"WrongName":     "[auth]\npasswords = [\"c4n4ry\"]\n",
		"Flag":          "[limits]\nauth-secret = \"c4n4ry\"\n",
		"Dotted":        "auth.user = [\"alice:c4n4ry\"]\n",
		"Inline":        "auth = { users = [\"alice:c4n4ry\"], bogus = 1 }\n",
		"Token":         "dashboard-token = \"c4n4ry\"\ndashboard-token = \"c4n4ry\"\n",
		"Commented":     "[auth] # c4n4ry\nbogus = 1\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := load(t, file)
			if err == nil {
				t.Fatal("no error")
			}
			if strings.Contains(err.Error(), canary) {
				t.Errorf("the error shows a secret:\n%v", err)
			}
		})
	}
}

func TestEnvironmentErrors(t *testing.T) {
	t.Setenv("TURNSTONE_MAX_CHANNELS", "many")
	t.Setenv("TURNSTONE_MAX_LIFETIME", "long")
	_, _, err := load(t, "")
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{`TURNSTONE_MAX_CHANNELS: "many" is no number`, "TURNSTONE_MAX_LIFETIME: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not contain %q", err, want)
		}
	}
}

func TestFlagErrors(t *testing.T) {
	for _, args := range [][]string{{"--max-channels", "many"}, {"--max-lifetime", "long"}, {"--max-lifetime", "-1s"}} {
		set := pflag.NewFlagSet("test", pflag.ContinueOnError)
		Flags(set)
		if err := set.Parse(args); err == nil || !strings.Contains(err.Error(), args[0]) {
			t.Errorf("parse %v: got %v, want an error that names the flag", args, err)
		}
	}
}

func TestStateDirectory(t *testing.T) {
	t.Setenv("STATE_DIRECTORY", "/var/lib/turnstone")
	c, origins, err := load(t, "")
	if err != nil {
		t.Fatal(err)
	}
	if c.Data != "/var/lib/turnstone" || c.AdminSocket != "/var/lib/turnstone/admin.sock" || origins["data"] != "$STATE_DIRECTORY" {
		t.Errorf("got data %q from %s, admin socket %q", c.Data, origins["data"], c.AdminSocket)
	}
	if c, _, err = load(t, "", "--data", "/srv/turnstone"); err != nil || c.Data != "/srv/turnstone" {
		t.Errorf("with --data: got data %q, error %v", c.Data, err)
	}
}

func TestMissingFile(t *testing.T) {
	t.Setenv("TURNSTONE_CONFIG", "/nonexistent/turnstone.toml")
	if _, _, err := load(t, ""); err == nil || !strings.Contains(err.Error(), "/nonexistent/turnstone.toml") {
		t.Errorf("got %v, want an error that names the file", err)
	}
}

func TestSecretsHidden(t *testing.T) {
	c, _, err := load(t, "", "--user", "alice:c4n4ry", "--user", "c4n4ry", "--auth-secret", "c4n4ry")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range Settings(&c) {
		if strings.Contains(s.String(), "c4n4ry") {
			t.Errorf("%s is shown as %s", s.Key, s)
		}
		if s.Key == "auth.users" && s.String() != `["alice:<hidden>", "<hidden>"]` {
			t.Errorf("%s is shown as %s", s.Key, s)
		}
	}
}

func TestDurationText(t *testing.T) {
	for text, want := range map[string]string{"600s": "10m", "1h0m": "1h", "90m": "1h30m", "1h0m5s": "1h0m5s", "unlimited": "unlimited", "0": "0s"} {
		var d Duration
		if err := d.UnmarshalText([]byte(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if got := d.String(); got != want {
			t.Errorf("%s is written %s, want %s", text, got, want)
		}
	}
}

// TestSecretsAreHidden holds that no secret is shown, and that a change of one is seen nevertheless.
func TestSecretsAreHidden(t *testing.T) {
	c, other := Default(), Default()
	c.Auth.HTTPToken, other.Auth.HTTPToken = "c4n4ry", "an0ther"
	c.DashboardToken = "c4n4ry"
	c.Auth.Users, c.Auth.Secrets, c.Auth.RealmUsers = []string{"alice:c4n4ry"}, []string{"c4n4ry"}, []string{"r/a:c4n4ry"}
	c.Auth.AccessTokenKeys = []string{"k:c4n4ry"}
	theirs := Settings(&other)
	for i, s := range Settings(&c) {
		b, err := s.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(s.String()+string(b), "c4n4ry") {
			t.Errorf("%s shows %s", s.Key, s)
		}
		if changed := s.Secret; s.Equal(theirs[i]) == changed {
			t.Errorf("%s: equal to another: %v", s.Key, s.Equal(theirs[i]))
		}
	}
	if s := Settings(&c); s[0].Secret || c.Auth.HTTPToken != "c4n4ry" {
		t.Error("looking at the settings changed them")
	}
}

func TestSizesAndDaysAreRead(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "4096": 4096, "64MiB": 64 << 20, "4 GiB": 4 << 30, "1TiB": 1 << 40, "3KiB": 3 << 10} {
		var got Size
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%q is %d (%v), want %d", text, got, err, want)
		}
		var again Size
		if err := again.UnmarshalText([]byte(got.String())); err != nil || again != want {
			t.Errorf("%q is written %q, which is %d (%v)", text, got, again, err)
		}
	}
	for _, text := range []string{"", "-1", "4GB", "GiB", "1.5GiB", "99999999999999GiB"} {
		var got Size
		if err := got.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is read as %d, want an error", text, got)
		}
	}
	for text, want := range map[string]string{"7d": "7d", "168h": "7d", "36h": "36h", "24h30m": "24h30m", "unlimited": "unlimited"} {
		var got Duration
		if err := got.UnmarshalText([]byte(text)); err != nil || got.String() != want {
			t.Errorf("%q is %q (%v), want %q", text, got, err, want)
		}
	}
}
