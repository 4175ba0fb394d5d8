package config

import (
	"strings"
	"testing"
	"time"

	"turnstone/store"
)

func TestRetentionIsResolved(t *testing.T) {
	c := Default()
	c.Data = "/var/lib/turnstone"
	var p problems
	if got, want := c.retention(&p), (store.Retention{Age: 7 * day, Size: 4 << 30}); got != want || len(p) > 0 {
		t.Errorf("by default %+v (%v), want %+v", got, p, want)
	}
	c.Log.RetainAge, c.Log.RetainSize, c.Log.Archive, c.Log.ArchiveAge = -1, 0, "on", Duration(365*day)
	if got, want := c.retention(&p), (store.Retention{Archive: "/var/lib/turnstone/archive", ArchiveAge: 365 * day}); got != want || len(p) > 0 {
		t.Errorf("got %+v (%v), want %+v", got, p, want)
	}
	c.Log.Archive = "/backup/relay1"
	if got := c.retention(&p).Archive; got != c.Log.Archive {
		t.Errorf("archives go to %q, want %q", got, c.Log.Archive)
	}
}

func TestRetentionThatMakesNoSense(t *testing.T) {
	for name, set := range map[string]func(*Log){
		"log.retain-age":  func(l *Log) { l.RetainAge = Duration(time.Second) },
		"log.retain-size": func(l *Log) { l.RetainSize = 1 << 20 },
		"log.archive-age": func(l *Log) { l.ArchiveAge = Duration(30 * day) }, // nothing is archived
	} {
		c := Default()
		set(&c.Log)
		var p problems
		if c.retention(&p); len(p) != 1 || !strings.HasPrefix(p[0].Error(), name+": ") {
			t.Errorf("%s: got %v, want one problem", name, p)
		}
	}
}
