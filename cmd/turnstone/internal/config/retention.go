package config

import (
	"fmt"
	"path/filepath"
	"time"

	"turnstone/store"
)

// Bounds of retention. The file is mapped whole, so it has to stay within the map.
const (
	leastRetainAge  = Duration(time.Minute)
	leastRetainSize = Size(64 << 20)
	mostRetainSize  = Size(12 << 30)
)

// retention checks how long events stay in the log, and where they go.
func (c *Config) retention(p *problems) store.Retention {
	var r store.Retention
	if c.Log.RetainAge >= 0 {
		r.Age = time.Duration(c.Log.RetainAge)
		p.check("log.retain-age", atLeast(c.Log.RetainAge, leastRetainAge))
	}
	r.Size = int64(c.Log.RetainSize)
	if s := c.Log.RetainSize; s != 0 && (s < leastRetainSize || s > mostRetainSize) {
		p.check("log.retain-size", fmt.Errorf("%s is neither 0 nor between %s and %s", s, leastRetainSize, mostRetainSize))
	}
	switch c.Log.Archive {
	case "off", "":
	case "on":
		r.Archive = filepath.Join(c.DataDir(), store.ArchiveName)
	default:
		r.Archive = c.Log.Archive
	}
	if c.Log.ArchiveAge >= 0 {
		r.ArchiveAge = time.Duration(c.Log.ArchiveAge)
		p.check("log.archive-age", atLeast(c.Log.ArchiveAge, max(c.Log.RetainAge, leastRetainAge)))
		if r.Archive == "" {
			p.check("log.archive-age", fmt.Errorf("there are no archives: it takes log.archive"))
		}
	}
	return r
}

func atLeast(d, least Duration) error {
	if d < least {
		return fmt.Errorf("%s is less than %s", d, least)
	}
	return nil
}
