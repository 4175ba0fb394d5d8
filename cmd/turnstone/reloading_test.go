package main

import (
	"slices"
	"testing"

	"turnstone/cmd/turnstone/internal/config"
)

// TestSettingsThatNeedARestart holds the settings to what docs/operations.md says of them.
func TestSettingsThatNeedARestart(t *testing.T) {
	c := config.Default()
	var got []string
	for _, s := range config.Settings(&c) {
		if needRestart(s.Key) {
			got = append(got, s.Key)
		}
	}
	for _, key := range []string{"data", "admin-socket", "log.format", "log.privacy"} {
		if !slices.Contains(got, key) {
			t.Errorf("%s is taken over by a reload, want it to wait for a restart", key)
		}
	}
	for _, key := range []string{"listen", "log.level", "metrics", "dashboard", "dashboard-token", "auth.http-url", "auth.http-token", "auth.http-keys", "kernel.mode", "limits.max-bandwidth", "auth.users", "tls.cert", "relay-ports", "peers.deny"} {
		if slices.Contains(got, key) {
			t.Errorf("%s waits for a restart, want it taken over by a reload", key)
		}
	}
}
