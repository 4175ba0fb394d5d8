package main

import (
	"crypto/rand"
	"encoding/base64"
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
	var ice, token bool
	cmd := &cobra.Command{
		Use: "credentials USER", Short: "Make a time-limited credential (TURN REST), or an access token",
		Args: func(cmd *cobra.Command, args []string) error {
			if token {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		Long: "Makes a username and password that are good until an expiry, from the first auth secret of the configuration;\nwith --access-token, an access token of RFC 7635 as an authorization server makes it, from the first access token key.\nIt asks no daemon: whoever has the secret can make them.",
		Example: `  turnstone credentials alice --config /etc/turnstone/turnstone.toml
  turnstone credentials alice --ttl 1h --config turnstone.toml --ice --url turn:turn.example.org:3478
  turnstone credentials --access-token --ttl 1h --config turnstone.toml -o json`,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, _, err := config.Load(cmd.Flags())
			if err != nil {
				return usageError("%w", err)
			}
			if token {
				if ice || len(urls) > 0 {
					return usageError("--ice and --url do not go with --access-token")
				}
				row, err := newToken(&c, ttl)
				if err != nil {
					return err
				}
				return output.Object(cmd.OutOrStdout(), o.format, row)
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
	cmd.Flags().VisitAll(hideAllBut("config", "auth-secret", "access-token-key", "access-token-server", "realm", "listen", "external-ip"))
	cmd.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "For how `long` it is good.")
	cmd.Flags().StringArrayVar(&urls, "url", nil, "TURN `URL` for the ICE servers; default: those of the configuration's listeners.")
	cmd.Flags().BoolVar(&ice, "ice", false, "Print only the ICE servers, as the JSON an RTCPeerConnection takes.")
	cmd.Flags().BoolVar(&token, "access-token", false, "Make an access token (RFC 7635).")
	o.outputFlag(cmd)
	return cmd
}

// tokenRow is an access token and what goes with it, under the names of RFC 7635 appendix B.
type tokenRow struct {
	KID         string `json:"kid"`
	AccessToken string `json:"access_token"`
	Key         string `json:"key"`
	ExpiresIn   int64  `json:"expires_in"`
	Server      string `json:"server"`
}

// newToken makes an access token with the first key of c.
func newToken(c *config.Config, ttl time.Duration) (tokenRow, error) {
	r, err := c.Resolve()
	if err != nil {
		return tokenRow{}, usageError("%w", err)
	}
	if len(r.Gate.TokenKeys) == 0 {
		return tokenRow{}, usageError("there is no access token key: give --config with auth.access-token-keys in it, $TURNSTONE_ACCESS_TOKEN_KEYS or --access-token-key")
	}
	var nonce [turn.TokenNonceSize]byte
	mac := make([]byte, 32)
	_, _ = rand.Read(nonce[:]) // it cannot fail
	_, _ = rand.Read(mac)
	key := r.Gate.TokenKeys[0]
	sealed, err := key.Seal(r.Gate.TokenServer, nonce, turn.AccessToken{Key: mac, Made: time.Now(), Lifetime: ttl})
	if err != nil {
		return tokenRow{}, usageError("--ttl %s: %w", ttl, err)
	}
	return tokenRow{
		KID: key.ID, AccessToken: base64.StdEncoding.EncodeToString(sealed), Key: base64.StdEncoding.EncodeToString(mac),
		ExpiresIn: int64(ttl / time.Second), Server: r.Gate.TokenServer,
	}, nil
}
