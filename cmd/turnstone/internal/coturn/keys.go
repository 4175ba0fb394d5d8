package coturn

import (
	"fmt"
	"time"

	"turnstone/cmd/turnstone/internal/config"
)

// key translates the lines of one key.
type key func(*translation, *entry) (verdict, error)

// repeats are the keys that may be given several times; of the others coturn takes the last.
var repeats = map[string]bool{
	"listening-ip": true, "relay-ip": true, "external-ip": true, "aux-server": true, "user": true, "static-auth-secret": true,
	"allowed-peer-ip": true, "denied-peer-ip": true, "alternate-server": true, "tls-alternate-server": true,
	"tcp-alternate-server": true, "udp-alternate-server": true,
}

func anyway(reason string) key {
	return func(*translation, *entry) (verdict, error) { return verdict{fate: Anyway, reason: reason}, nil }
}

func dropped(reason string) key {
	return func(*translation, *entry) (verdict, error) { return verdict{fate: Dropped, reason: reason}, nil }
}

// whether is a switch.
func whether(on, off key) key {
	return func(t *translation, e *entry) (verdict, error) {
		b, err := e.boolean()
		switch {
		case err != nil:
			return verdict{}, err
		case b:
			return on(t, e)
		}
		return off(t, e)
	}
}

// refused is a switch that coturn has off and turnstone has not.
func refused(reason string) key { return whether(dropped(reason), anyway(reason)) }

// always is a switch that turnstone has on and nobody can turn off.
func always(reason string) key { return whether(anyway(reason), dropped(reason)) }

// sets is a switch that gives a setting a value when it is on, and is the default when it is off.
func sets(name string, value any) key {
	return whether(
		func(t *translation, e *entry) (verdict, error) { return t.set(name, value, e), nil },
		anyway("it is the default"))
}

// count is a setting that takes a number, where 0 is no limit for both.
func count(name string) key {
	return func(t *translation, e *entry) (verdict, error) {
		n, err := e.number()
		if err != nil {
			return verdict{}, err
		}
		if n == 0 {
			return verdict{fate: Anyway, reason: "there is no limit unless one is set"}, nil
		}
		return t.set(name, n, e), nil
	}
}

// fixed is a number of seconds that turnstone cannot change.
func fixed(seconds int, reason string) key {
	return func(_ *translation, e *entry) (verdict, error) {
		d, err := e.seconds(seconds)
		switch {
		case err != nil:
			return verdict{}, err
		case d == config.Duration(time.Duration(seconds)*time.Second):
			return verdict{fate: Anyway, reason: reason}, nil
		}
		return verdict{fate: Dropped, reason: reason}, nil
	}
}

const (
	database = "users and secrets in a database are not read: turnstone user add takes users, auth.http-url asks a directory for them, and secrets belong in auth.secrets"
	logging  = "the log goes to stderr as JSON lines, for the journal or whatever runs the daemon"
	cli      = "there is no telnet interface: turnstone status, allocation list and close ask the daemon over its unix socket"
	webAdmin = "there is no web interface for administration"
	ciphers  = "ciphers and curves are those that Go holds to be safe"
	versions = "TLS 1.2 and 1.3 are spoken, older versions are not"
	service  = "the service manager does that"
	datapath = "the relaying is built otherwise, and needs no tuning for it"
	nat5780  = "NAT behaviour discovery (RFC 5780) is served where listen has two addresses with the same two ports: add them there"
	fewest   = "answers to Binding requests carry XOR-MAPPED-ADDRESS and nothing that is not asked for"
)

// keys are all keys of coturn 4.6.1, those that later versions added, and those that earlier ones had.
var keys = map[string]key{
	// Listeners.
	"listening-ip":           listens,
	"listening-port":         listens,
	"tls-listening-port":     listensTLS,
	"no-udp":                 whether(listens, anyway("it is the default")),
	"no-tcp":                 whether(listens, anyway("it is the default")),
	"no-tls":                 whether(listens, anyway("it is the default, where there is a certificate")),
	"no-dtls":                whether(listens, anyway("it is the default, where there is a certificate")),
	"dtls":                   whether(anyway("it is the default, where there is a certificate"), listens),
	"aux-server":             auxiliary,
	"alt-listening-port":     discovery,
	"alt-tls-listening-port": dropped("NAT behaviour discovery (RFC 5780) is served over UDP alone, where an answer can come from elsewhere"),
	"tcp-proxy-port":         dropped("add a tcp listener for it, and name the load balancers in proxy-protocol-from: nobody else is believed"),
	"listening-device":       dropped("sockets are bound to addresses, not to interfaces: name those of the interface in listen"),
	"udp-self-balance":       refused("every CPU serves every listener, there is nothing to balance"),

	// Relaying.
	"relay-ip":                          relayIP,
	"relay-device":                      dropped("sockets are bound to addresses, not to interfaces: name one of the interface in relay-ip"),
	"external-ip":                       externalIP,
	"min-port":                          ports,
	"max-port":                          ports,
	"no-udp-relay":                      refused("relaying over UDP is what the server is for"),
	"no-tcp-relay":                      sets("peers.connections", "off"),
	"server-relay":                      refused("a peer is heard only where the client installed a permission for it (RFC 8656 section 9)"),
	"keep-address-family":               refused("a client that asks for no family gets IPv4 (RFC 8656 section 7.2)"),
	"allocation-default-address-family": family,
	"mobility":                          whether(anyway("it is the default"), func(t *translation, e *entry) (verdict, error) { return t.set("mobility", "off", e), nil }),

	// Users.
	"realm":                    realm,
	"user":                     user,
	"lt-cred-mech":             always("every client authenticates, Binding requests excepted"),
	"no-auth":                  refused("nobody is relayed for who has not authenticated: add users or a secret"),
	"use-auth-secret":          useAuthSecret,
	"static-auth-secret":       secret,
	"rest-api-separator":       separator,
	"secret-ts-exp-time":       dropped("the expiry is in the username itself"),
	"server-name":              serverName,
	"oauth":                    refused("the keys of access tokens (RFC 7635) are in a database, which is not read: put them into auth.access-token-keys"),
	"secure-stun":              refused("Binding requests need no authentication (RFC 8489 section 3)"),
	"stale-nonce":              staleNonce,
	"stateless-nonce":          always("nonces are stateless: a MAC over the client's address and the time"),
	"stateless-nonce-secret":   dropped("the key of the nonces is made at the first start, in keys/ of the data directory: copy it to share it"),
	"check-origin-consistency": refused("ORIGIN chooses a realm (auth.realms), and proves nothing"),
	"userdb":                   dropped(database),
	"db":                       dropped(database),
	"psql-userdb":              dropped(database),
	"sql-userdb":               dropped(database),
	"mysql-userdb":             dropped(database),
	"mongo-userdb":             dropped(database),
	"redis-userdb":             dropped(database),
	"secret-key-file":          dropped(database),
	"no-auth-pings":            always("there is no database of users to ask"),
	"no-dynamic-ip-list":       always("there is no database of addresses to ask"),
	"no-dynamic-realms":        always("there is no database of realms to ask: further ones are in auth.realms"),

	// Limits.
	"user-quota":                 count("limits.max-allocations-per-user"),
	"total-quota":                count("limits.max-allocations"),
	"max-bps":                    count("limits.max-bandwidth"),
	"bps-capacity":               count("limits.max-bandwidth-total"),
	"max-allocate-lifetime":      lifetime,
	"channel-lifetime":           fixed(600, "a channel lasts 10 minutes (RFC 8656 section 12)"),
	"permission-lifetime":        fixed(300, "a permission lasts 5 minutes (RFC 8656 section 9)"),
	"max-allocate-timeout":       dropped("a client that has no allocation holds nothing that could time out"),
	"unauthorized-ratelimit":     whether(unauthRate, dropped("limits.unauth-rate stays at its default: the server would serve to flood others")),
	"unauthorized-ratelimit-rps": unauthRate,

	// Peers.
	"allowed-peer-ip":      allowedPeer,
	"denied-peer-ip":       deniedPeer,
	"allow-loopback-peers": whether(loopbackPeers, anyway("loopback peers are refused unless peers.allow names them")),
	"no-loopback-peers":    whether(anyway("loopback peers are refused unless peers.allow names them"), loopbackPeers),
	"no-multicast-peers":   whether(anyway("multicast peers are refused unless peers.allow names them"), dropped("multicast peers are refused unless peers.allow names them")),

	// TLS.
	"cert":            path("tls.cert"),
	"pkey":            path("tls.key"),
	"pkey-pwd":        dropped("the private key has to be in a file without a password: openssl pkey -in KEY -out PLAIN"),
	"CA-file":         dropped("certificates of clients are not asked for"),
	"raw-public-keys": refused("certificates are spoken, raw public keys (RFC 7250) are not"),
	"cipher-list":     dropped(ciphers),
	"ec-curve-name":   dropped(ciphers),
	"dh-file":         dropped(ciphers),
	"dh566":           dropped(ciphers),
	"dh1066":          dropped(ciphers),
	"dh2066":          dropped(ciphers),
	"no-sslv2":        always(versions),
	"no-sslv3":        always(versions),
	"no-tlsv1":        always(versions),
	"no-tlsv1_1":      always(versions),
	"no-tlsv1_2":      refused(versions),
	"tlsv1":           refused(versions),
	"tlsv1_1":         refused(versions),

	// What answers look like.
	"fingerprint":                       anyway("answers carry FINGERPRINT where the request does"),
	"no-software-attribute":             sets("software", ""),
	"software-attribute":                whether(anyway("it is the default"), func(t *translation, e *entry) (verdict, error) { return t.set("software", "", e), nil }),
	"prod":                              sets("software", ""),
	"include-reason-string":             refused("the reasons in errors are those of the RFC"),
	"rfc5766-channel-numbers":           whether(channels("rfc5766"), channels("rfc8656")),
	"no-rfc5780":                        sets("stun-discovery", "off"),
	"rfc5780":                           whether(discovery, func(t *translation, e *entry) (verdict, error) { return t.set("stun-discovery", "off", e), nil }),
	"stun-backward-compatibility":       refused(fewest),
	"no-stun-backward-compatibility":    always(fewest),
	"response-origin-only-with-rfc5780": always(fewest),
	"rfc3489-compatibility":             refused("requests of RFC 3489 are not STUN any more (RFC 8489)"),
	"stun-only":                         refused("the server relays: for STUN alone give it no users, or another server"),
	"no-stun":                           refused("Binding requests are always answered (RFC 8489), within limits.unauth-rate"),
	"respond-http-unsupported":          refused("HTTP is not answered"),
	"acme-redirect":                     dropped("HTTP is not answered: let something else answer on port 80"),
	"drop-invalid-packets":              always("what is no STUN gets no answer"),
	"drop-invalid-packets-log":          refused("what is dropped is counted by reason, not logged: turnstone status"),

	// Redirection.
	"alternate-server":      alternate(3478, "udp", "tcp"),
	"tls-alternate-server":  alternate(5349, "tls", "dtls"),
	"tcp-alternate-server":  alternate(3478, "tcp"),
	"udp-alternate-server":  alternate(3478, "udp"),
	"drain-min-allocations": dropped("turnstone drain does not end the server: wait until turnstone status shows no allocations"),

	// Logs and metrics.
	"verbose":                    sets("log.level", "debug"),
	"Verbose":                    sets("log.level", "trace"),
	"log-min-level":              logLevel,
	"log-file":                   dropped(logging),
	"no-stdout-log":              always(logging),
	"syslog":                     dropped(logging),
	"syslog-facility":            dropped(logging),
	"simple-log":                 always(logging),
	"new-log-timestamp":          always("times in the log are RFC 3339"),
	"new-log-timestamp-format":   dropped("times in the log are RFC 3339"),
	"log-binding":                refused("Binding requests are counted, not logged"),
	"prometheus":                 whether(prometheus, anyway("metrics are served on the loopback, and nowhere else unless it is asked for")),
	"prometheus-port":            prometheusPart,
	"prometheus-address":         prometheusPart,
	"prometheus-path":            metricsPath,
	"prometheus-username-labels": refused("metrics have no users in their labels: turnstone allocation list has them"),
	"prometheus-tls":             refused("metrics are served over HTTP, on the loopback by default"),
	"prometheus-cert":            dropped("metrics are served over HTTP, on the loopback by default"),
	"prometheus-key":             dropped("metrics are served over HTTP, on the loopback by default"),
	"redis-statsdb":              dropped("what happens is in the log of events: turnstone log tail, and /metrics"),

	// The process.
	"daemon":                      whether(dropped(service), anyway(service)),
	"pidfile":                     dropped("the pid is in the file lock of the data directory"),
	"proc-user":                   dropped(service),
	"proc-group":                  dropped(service),
	"relay-threads":               dropped(datapath + ": GOMAXPROCS says how many CPUs serve"),
	"cpus":                        dropped(datapath + ": GOMAXPROCS says how many CPUs serve"),
	"sock-buf-size":               dropped(datapath),
	"ne":                          dropped(datapath),
	"udp-recvmmsg":                always("datagrams are received in batches"),
	"udp-recvmmsg-log":            refused(datapath),
	"udp-sendmmsg":                always("datagrams are sent in batches"),
	"udp-sendmmsg-log":            refused(datapath),
	"udp-gso":                     always("datagrams are sent in batches"),
	"multiplex-peer":              refused("each allocation has a port of its own (RFC 8656 section 7.2)"),
	"multiplex-peer-port":         dropped("each allocation has a port of its own (RFC 8656 section 7.2)"),
	"multiplex-peer-max-peers":    dropped("each allocation has a port of its own: limits.max-permissions bounds its peers"),
	"no-cli":                      always(cli),
	"cli":                         refused(cli),
	"cli-ip":                      dropped(cli),
	"cli-port":                    dropped(cli),
	"cli-password":                dropped(cli),
	"cli-max-output-sessions":     dropped(cli),
	"web-admin":                   refused(webAdmin),
	"web-admin-ip":                dropped(webAdmin),
	"web-admin-port":              dropped(webAdmin),
	"web-admin-listen-on-workers": refused(webAdmin),
	"version":                     dropped("turnstone version shows it"),
}

func channels(name string) key {
	return func(t *translation, e *entry) (verdict, error) { return t.set("limits.channel-range", name, e), nil }
}

func family(_ *translation, e *entry) (verdict, error) {
	const reason = "a client that asks for no family gets IPv4 (RFC 8656 section 7.2)"
	switch e.word() {
	case "ipv4":
		return verdict{fate: Anyway, reason: reason}, nil
	case "ipv6", "keep":
		return verdict{fate: Dropped, reason: reason}, nil
	}
	return verdict{}, fmt.Errorf("%q is none of ipv4, ipv6, keep", e.word())
}

func logLevel(t *translation, e *entry) (verdict, error) {
	level, known := map[string]string{"debug": "debug", "info": "info", "warning": "warn", "error": "error"}[e.word()]
	if !known {
		return verdict{}, fmt.Errorf("%q is none of debug, info, warning, error", e.word())
	}
	if t.on("verbose") || t.on("Verbose") {
		return verdict{fate: Overruled, reason: "verbose is on"}, nil
	}
	return t.set("log.level", level, e), nil
}

func lifetime(t *translation, e *entry) (verdict, error) {
	d, err := e.seconds(3600)
	switch {
	case err != nil:
		return verdict{}, err
	case d < config.Duration(time.Second), d > config.Duration(24*time.Hour):
		return verdict{}, fmt.Errorf("%s is not between 1s and 24h", d)
	case d < config.Default().Limits.DefaultLifetime:
		t.set("limits.default-lifetime", d, e)
	}
	return t.set("limits.max-lifetime", d, e), nil
}

func unauthRate(t *translation, e *entry) (verdict, error) {
	if !t.on("unauthorized-ratelimit") {
		return verdict{fate: Dropped, reason: "unauthorized-ratelimit is not on"}, nil
	}
	if e.key == "unauthorized-ratelimit-rps" {
		if n, err := e.number(); err != nil || n == 0 {
			return verdict{}, fmt.Errorf("%q is no number of answers", e.word())
		}
	}
	rate := t.number("unauthorized-ratelimit-rps", 10)
	t.set("limits.unauth-burst", rate, nil)
	return t.set("limits.unauth-rate", rate, e), nil
}
