package config

import (
	"errors"
	"fmt"
	"time"
)

// leastForgetAge keeps segments from being smaller than they are worth.
const leastForgetAge = Duration(10 * time.Second)

// privacy checks how the event log is kept, and puts it into r.
func (c *Config) privacy(r *Resolved, p *problems) {
	r.Encrypt, r.HashNames = c.Log.Privacy == "encrypted", c.Log.Usernames == "hashed"
	if c.Log.ForgetAge > 0 {
		r.ForgetAge = time.Duration(c.Log.ForgetAge)
	}
	if c.Log.Privacy == "hashed" {
		p.check("log.privacy", errors.New("addresses cannot be hashed: all that is relayed comes back from the log after a restart, "+
			"and nothing can be sent to the hash of an address; \"encrypted\" and forget-age make old ones unreadable, and usernames = \"hashed\" is for names"))
	} else {
		p.check("log.privacy", oneOf(c.Log.Privacy, "plain", "encrypted"))
	}
	p.check("log.usernames", oneOf(c.Log.Usernames, "plain", "hashed"))
	switch {
	case c.Log.ForgetAge < 0:
	case c.Log.ForgetAge < leastForgetAge:
		p.check("log.forget-age", fmt.Errorf("%s is less than %s", c.Log.ForgetAge, leastForgetAge))
	case !r.Encrypt:
		p.check("log.forget-age", errors.New("only what is encrypted can be forgotten: it takes log.privacy = \"encrypted\""))
	}
}
