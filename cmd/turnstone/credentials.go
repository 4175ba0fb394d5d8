package main

import (
	"encoding/json"
	"fmt"
	"time"

	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/output"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

type credentialRow struct {
	Username   string      `json:"username"`
	Password   string      `json:"password"`
	Expires    time.Time   `json:"expires"`
	ICEServers []iceServer `json:"iceServers" table:"-"`
}

// iceServer is one of the ICE servers of an RTCPeerConnection.
type iceServer struct {
	URLs       []string `json:"urls"`
	Username   string   `json:"username"`
	Credential string   `json:"credential"`
}

// iceServers is the configuration of an RTCPeerConnection as JSON.
func iceServers(urls []string, username, password string) string {
	b, _ := json.Marshal(map[string][]iceServer{"iceServers": {{urls, username, password}}}) // strings always marshal
	return string(b)
}

func credentialsCommand(o *options) *cobra.Command {
	var ttl time.Duration
	var urls []string
	var ice bool
	cmd := &cobra.Command{
		Use: "credentials USER", Short: "Make a time-limited credential (TURN REST)", Args: cobra.ExactArgs(1),
		Long: "Makes a username and password that are good until an expiry, from the first auth secret of the configuration.\nIt asks no daemon: whoever has the secret can make them.",
		Example: `  turnstone credentials alice --config /etc/turnstone/turnstone.toml
  turnstone credentials alice --ttl 1h --config turnstone.toml --ice --url turn:turn.example.org:3478`,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, _, err := config.Load(cmd.Flags())
			if err != nil {
				return usageError("%w", err)
			}
			if len(c.Auth.Secrets) == 0 || c.Auth.Secrets[0] == "" {
				return usageError("there is no auth secret: give --config with auth.secrets in it, $TURNSTONE_AUTH_SECRETS or --auth-secret")
			}
			if ttl < time.Second {
				return usageError("--ttl %s: want at least 1s", ttl)
			}
			expires := time.Now().Add(ttl)
			user, err := turn.OpaqueString(args[0])
			name := turn.TimeLimitedUsername(user, expires)
			if err != nil || len(name) > turn.MaxUsername {
				return usageError("%q is no user: want 1 to %d bytes of text", args[0], turn.MaxUsername-len("1234567890:"))
			}
			password := turn.TimeLimitedPassword([]byte(c.Auth.Secrets[0]), name)
			if len(urls) == 0 {
				r, err := c.Resolve()
				if err != nil {
					return usageError("%w", err)
				}
				urls = turnURLs(r)
			}
			if ice {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), iceServers(urls, name, password))
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, credentialRow{
				Username: name, Password: password, Expires: time.Unix(expires.Unix(), 0).UTC(), ICEServers: []iceServer{{urls, name, password}},
			})
		},
	}
	config.Flags(cmd.Flags())
	cmd.Flags().VisitAll(hideAllBut("config", "auth-secret", "listen", "external-ip"))
	cmd.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "For how `long` it is good.")
	cmd.Flags().StringArrayVar(&urls, "url", nil, "TURN `URL` for the ICE servers; default: those of the configuration's listeners.")
	cmd.Flags().BoolVar(&ice, "ice", false, "Print only the ICE servers, as the JSON an RTCPeerConnection takes.")
	o.outputFlag(cmd)
	return cmd
}
