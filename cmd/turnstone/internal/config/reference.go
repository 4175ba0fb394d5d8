package config

import (
	"fmt"
	"strings"
)

// Reference is the documentation of every setting, as Markdown.
func Reference() string {
	var b strings.Builder
	b.WriteString(referenceHead)
	c := Default()
	section := "none yet"
	for _, s := range Settings(&c) {
		in, name, nested := strings.Cut(s.Key, ".")
		if !nested {
			in, name = "", s.Key
		}
		if in != section {
			section = in
			title := "[" + in + "]"
			if in == "" {
				title = "Top level"
			}
			fmt.Fprintf(&b, "\n## %s\n", title)
		}
		fmt.Fprintf(&b, "\n### %s\n\n%s\n\n- default: `%s`\n- flag: `--%s`\n- environment: `%s`\n", name, s.Doc, s, s.Flag, s.Env)
	}
	return b.String()
}

const referenceHead = `# Configuration

Every setting of ` + "`turnstone serve`" + `, made from the code by ` + "`go test ./cmd/turnstone/internal/config -update`" + `.

A setting comes from the default, over it the file that ` + "`--config`" + ` or ` + "`TURNSTONE_CONFIG`" + ` names (TOML; an unknown key is an
error that shows its line), over it the environment, over it flags. Lists are repeated flags, and separated by commas in
the environment. ` + "`turnstone check-config --print`" + ` shows every value and where it comes from.

    listen = ["udp://192.0.2.1:3478"]
    realm = "example.org"

    [auth]
    secrets = ["one-that-only-your-application-knows"]

    [limits]
    max-allocations-per-user = 20
`
