package coturn

import (
	"net"
	"strconv"
)

// prometheus serves metrics where coturn does: everywhere, on port 9641, unless it is told otherwise.
func prometheus(t *translation, e *entry) (verdict, error) {
	host := ""
	if a := t.last("prometheus-address"); a != nil {
		if addr, err := a.address(); err == nil && !addr.IsUnspecified() {
			host = addr.String()
		}
	}
	v := t.set("metrics", net.JoinHostPort(host, strconv.Itoa(t.number("prometheus-port", 9641))), e)
	if host == "" {
		v.reason = "on every address, as coturn does: name one to keep them to yourself"
	}
	return v, nil
}

// prometheusPart is a line that prometheus looks at.
func prometheusPart(t *translation, e *entry) (verdict, error) {
	var err error
	if e.key == "prometheus-port" {
		_, err = e.port()
	} else {
		_, err = e.address()
	}
	if err != nil {
		return verdict{}, err
	}
	if !t.on("prometheus") {
		return verdict{fate: Dropped, reason: "prometheus is not on"}, nil
	}
	return verdict{fate: Mapped, setting: "metrics"}, nil
}

func metricsPath(_ *translation, e *entry) (verdict, error) {
	if e.word() == "/metrics" {
		return verdict{fate: Anyway, reason: "metrics are at /metrics"}, nil
	}
	return verdict{fate: Dropped, reason: "metrics are at /metrics"}, nil
}
