package main

import (
	"strings"
	"time"

	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/output"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

type credentialRow struct {
	Username   string    `json:"username"`
	Password   string    `json:"password"`
	Expires    time.Time `json:"expires"`
	ICEServers string    `json:"ice_servers" table:"-"`
}

func credentialsCommand() *cobra.Command {
	var ttl time.Duration
	var urls []string
	var ice bool
	var format string
	cmd := &cobra.Command{
		Use: "credentials USER", Short: "Make a time-limited credential (TURN REST)", Args: cobra.ExactArgs(1),
		Long: "Makes a username and password that are good until an expiry, from the first auth secret of the configuration.\nWith --ice it prints what an RTCPeerConnection takes.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, _, err := config.Load(cmd.Flags())
			if err != nil {
				return usageError("%w", err)
			}
			if len(c.Auth.Secrets) == 0 {
				return usageError("no auth secret: give --auth-secret, or a configuration with auth.secrets")
			}
			if ttl <= 0 || args[0] == "" || strings.ContainsRune(args[0], 0) {
				return usageError("want a user and a --ttl above zero")
			}
			expires := time.Now().Add(ttl)
			name := turn.TimeLimitedUsername(args[0], expires)
			password := turn.TimeLimitedPassword([]byte(c.Auth.Secrets[0]), name)
			if len(urls) == 0 {
				r, err := c.Resolve()
				if err != nil {
					return usageError("%w", err)
				}
				urls = turnURLs(r)
			}
			servers := iceServers(urls, name, password)
			if ice {
				cmd.Println(servers)
				return nil
			}
			return output.Object(cmd.OutOrStdout(), format, credentialRow{name, password, time.Unix(expires.Unix(), 0).UTC(), servers})
		},
	}
	config.Flags(cmd.Flags())
	cmd.Flags().VisitAll(hideAllBut("config", "auth-secret", "listen", "external-ip"))
	cmd.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "for how long it is good")
	cmd.Flags().StringArrayVar(&urls, "url", nil, "TURN URL for the ICE servers (default: those of the configuration's listeners)")
	cmd.Flags().BoolVar(&ice, "ice", false, "print only the ICE servers as JSON")
	cmd.Flags().StringVarP(&format, "output", "o", "", "output format: table, json, jsonl or csv (default: table on a terminal, else jsonl)")
	return cmd
}
