package selftest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"turnstone/cmd/turnstone/internal/doctor"
	"turnstone/turn"

	"golang.org/x/sys/unix"
)

// rootsOf yields the authorities that certificates are verified by.
type rootsOf func() (*x509.CertPool, error)

// explain says what it means that a step failed.
func (t *trial) explain(step string, err error) finding {
	f := finding{result: doctor.Fail, seen: step + ": " + err.Error()}
	var r *refusal
	switch {
	case errors.Is(err, context.Canceled):
		f.result, f.seen = doctor.Skip, step+": interrupted"
	case errors.As(err, &r):
		f.remedy = t.onRefusal(step, r)
	case step == stepReach:
		return t.unreached(err)
	case errors.Is(err, errSilence) && step == stepSend, errors.Is(err, errSilence) && step == stepEcho:
		f.seen = step + ": what one client sends does not come to the other"
		f.remedy = "turnstone status on the server counts what it drops and why; relayed addresses have to be of the server itself: see relay-ip and external-ip"
	case (errors.Is(err, errSilence) || noWay(err)) && step == stepPeer:
		f.seen = fmt.Sprintf("%s: what this host sends to the relayed address %v does not arrive", step, t.a.relayed)
		f.remedy = fmt.Sprintf("open relay-ports/udp in the firewall of the server and of its cloud, see that %v is an address of it (external-ip), and that this host's network lets UDP out to any port", t.a.relayed.Addr())
	case errors.Is(err, errSilence):
		f.remedy = "the server answered before: turnstone status and its log say whether it is well"
	}
	return f
}

// unreached is what it means that a server does not answer the first request.
func (t *trial) unreached(err error) finding {
	f := finding{result: doctor.Fail, seen: "reach: " + err.Error()}
	port := fmt.Sprintf("%d/%s", t.target.Address.Port(), map[bool]string{true: "udp", false: "tcp"}[t.target.Protocol == turn.UDP || t.target.Protocol == turn.DTLS])
	var plain tls.RecordHeaderError
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		f.seen = fmt.Sprintf("reach: nobody listens on %v, %s", t.target.Address, port)
		f.remedy = "start the daemon; if it runs, turnstone status has its listeners, and turnstone reload takes a configuration that has changed"
	case noWay(err):
		f.seen = fmt.Sprintf("reach: there is no way from this host to %v", t.target.Address.Addr())
		f.remedy = "see ip route get " + t.target.Address.Addr().String()
		if t.target.Spare {
			f.result = doctor.Skip
		}
	case errors.Is(err, errSilence), timedOut(err):
		f.seen = fmt.Sprintf("reach: no answer from %v within %v", t.target.Address, patience)
		f.remedy = t.onSilence(port)
	case errors.Is(err, errForeign), errors.Is(err, errMute), errors.As(err, &plain), errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		f.remedy = fmt.Sprintf("another program has %s, or a listener for %s: turnstone status has them all, and its log says why it ends connections", port, t.otherTransport())
	case t.target.Protocol == turn.TLS, t.target.Protocol == turn.DTLS:
		f.remedy = "the log of the daemon says why it ends connections; turnstone doctor on the server looks at its certificates"
	}
	return f
}

// otherTransport is what else a listener can expect where it is not that of the target.
func (t *trial) otherTransport() turn.Protocol {
	return map[turn.Protocol]turn.Protocol{turn.UDP: turn.DTLS, turn.DTLS: turn.UDP, turn.TCP: turn.TLS, turn.TLS: turn.TCP}[t.target.Protocol]
}

func timedOut(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

// noWay says whether this host knows no way to where it was to send.
func noWay(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EADDRNOTAVAIL)
}

func tooLarge(err error) bool { return errors.Is(err, errSilence) || errors.Is(err, unix.EMSGSIZE) }

func (t *trial) onSilence(port string) string {
	if t.target.Here {
		return fmt.Sprintf("see in nft list ruleset and iptables-save what drops %s on this host, and in turnstone status whether the daemon is ready", port)
	}
	return fmt.Sprintf("open %s in every firewall on the way, that of the server and of its cloud too; turnstone status on the server counts what arrives", port)
}

// onRefusal is what to do about r.
func (t *trial) onRefusal(step string, r *refusal) string {
	switch r.code {
	case turn.CodeUnauthenticated:
		return "the server does not know this user, password or secret, or the credential is over by its clock: after a change turnstone reload, else compare the clocks"
	case turn.CodeTryAlternate:
		return "the server sends its clients elsewhere (alternate-servers): test that one with --server, or this one when it does not drain"
	case turn.CodeForbidden:
		if step == stepPermit || step == stepBind {
			return "peers.deny has the server's own relay address: clients that have an allocation each cannot reach each other"
		}
	case turn.CodeQuotaReached:
		return "the test takes two allocations: limits.max-allocations-per-user and max-allocations-per-realm have to leave room for them"
	case turn.CodeInsufficientCapacity:
		return "no free ports, too little room on the disk, or a drain: turnstone status on the server says which"
	case turn.CodeFamilyNotSupported:
		return "the server has no relay address of either family: see relay-ip"
	}
	return "the log of the server, and turnstone audit --refused, say more"
}

// judgeAddresses looks at what the server calls this client and its allocation.
func (t *trial) judgeAddresses() {
	relayed, server := t.a.relayed.Addr(), t.target.Address.Addr()
	var anyone turn.Policy
	switch {
	case len(t.target.External) > 0 && !slices.Contains(t.target.External, relayed):
		t.found(finding{
			doctor.Fail, fmt.Sprintf("relayed addresses are of %v, which the configuration does not name", relayed),
			"the daemon runs with another configuration: turnstone reload, and a restart for what it says needs one",
		})
	case !t.target.Here && anyone.Judge(relayed) == turn.Special && anyone.Judge(server) != turn.Special:
		t.found(finding{
			doctor.Fail, fmt.Sprintf("relayed addresses are of %v, which peers do not reach", relayed),
			fmt.Sprintf("the server is behind a NAT: external-ip = [\"%v/%v\"] there", server, relayed),
		})
	}
	if l := t.a.link.local; t.target.Here && t.a.mapped != l {
		t.found(finding{
			doctor.Warn, fmt.Sprintf("the server sees %v as %v", l, t.a.mapped),
			"a rule of this host translates addresses on the way to the daemon: see nft list ruleset, tables with masquerade, snat or redirect",
		})
	}
}

// judgeEcho looks at what came back.
func (t *trial) judgeEcho() {
	f := finding{result: doctor.OK, seen: fmt.Sprintf("%d of %d payloads came back, in %v ms", t.out.Returned, Rounds, t.out.EchoMS)}
	if t.out.Returned < Rounds {
		f.result, f.remedy = doctor.Warn, "datagrams get lost: turnstone status on the server counts those that it drops, and why"
	}
	t.found(f)
	if n := t.out.Largest; n < webRTC {
		t.found(finding{
			doctor.Warn, fmt.Sprintf("payloads of more than %d bytes do not come back, and WebRTC sends up to %d", max(n, voice), webRTC),
			"the way loses large datagrams: look for a tunnel or VPN with a small MTU, and let ICMP \"fragmentation needed\" and \"packet too big\" through",
		})
	}
}

// judgeCertificate says whether a client takes the certificate of the server at now.
func (t *trial) judgeCertificate(now time.Time) {
	chain := t.a.link.chain
	if len(chain) == 0 {
		return
	}
	f := finding{result: doctor.Fail, remedy: "renew it: the daemon reads the files again when they change"}
	switch leaf := chain[0]; {
	case now.After(leaf.NotAfter):
		f.seen = fmt.Sprintf("the certificate ended at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		f.seen, f.remedy = fmt.Sprintf("the certificate begins at %s", leaf.NotBefore.UTC().Format(time.RFC3339)), "set the clock, here or where it was made"
	case t.target.Name == "":
		return
	default:
		err := t.verify(chain, now)
		if err == nil {
			return
		}
		f.seen, f.remedy = "clients do not take the certificate: "+printable(err.Error()), onCertificate(err, leaf)
	}
	t.found(f)
}

// verify does with a chain what a client does.
func (t *trial) verify(chain []*x509.Certificate, now time.Time) error {
	roots, err := t.roots()
	if err != nil {
		return err
	}
	others := x509.NewCertPool()
	for _, c := range chain[1:] {
		others.AddCert(c)
	}
	_, err = chain[0].Verify(x509.VerifyOptions{DNSName: t.target.Name, Roots: roots, Intermediates: others, CurrentTime: now})
	return err
}

// onCertificate is what to do about a certificate that does not verify.
func onCertificate(err error, leaf *x509.Certificate) string {
	var name x509.HostnameError
	var authority x509.UnknownAuthorityError
	switch {
	case errors.As(err, &name) && len(leaf.DNSNames) > 0:
		return "use a name that it is for: " + printable(strings.Join(leaf.DNSNames, ", "))
	case errors.As(err, &name):
		return "have one made for the name that clients use"
	case errors.As(err, &authority):
		return "put the whole chain into tls.cert, or have it made by an authority that clients trust"
	}
	return "turnstone doctor on the server looks at it"
}

// heard is for a peer that was.
func (t *trial) heard() finding {
	return finding{doctor.OK, "a peer reaches the relayed address, and is reached", ""}
}

// unheard is for a test that cannot be had.
func (t *trial) unheard(at netip.Addr) finding {
	return finding{doctor.OK, fmt.Sprintf("what a peer sends is not tested: the server forbids %v, as which it sees this host, as a peer", at), ""}
}

func (t *trial) unanswered() finding {
	return finding{
		doctor.Warn, "peer: what the server sends to this host as a peer does not arrive",
		"it is this host's NAT or firewall, or one in front of the server that lets no UDP out",
	}
}

func (t *trial) unreleased(err error) finding {
	return finding{doctor.Warn, "release: " + err.Error(), "the allocation ends with its lifetime; turnstone allocation close ends it at once"}
}
