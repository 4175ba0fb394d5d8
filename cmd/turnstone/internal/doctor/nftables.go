package doctor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// families of nf_tables whose chains XDP comes before. Those of bridges are not among them.
var families = map[byte]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_NETDEV: "netdev"}

var (
	hooks       = []string{"prerouting", "input", "forward", "output", "postrouting", "ingress"}
	deviceHooks = []string{"ingress", "egress"}
)

// chainKey names a chain.
type chainKey struct{ family, table, name string }

// chains reads the chains of nf_tables that have a hook, with their rules. It needs CAP_NET_ADMIN.
func chains() ([]Chain, error) {
	var out []Chain
	at := map[chainKey]int{}
	err := nftables(unix.NFT_MSG_GETCHAIN, func(m []byte) error {
		c, base, err := parseChain(m)
		if base && err == nil {
			at[chainKey{c.Family, c.Table, c.Name}] = len(out)
			out = append(out, c)
		}
		return err
	})
	if err != nil || len(out) == 0 {
		return nil, err
	}
	return out, nftables(unix.NFT_MSG_GETRULE, func(m []byte) error {
		k, r, err := parseRule(m)
		if i, ok := at[k]; ok && err == nil {
			out[i].Rules = append(out[i].Rules, r)
		}
		return err
	})
}

// nftables calls f with each answer to a request for all. Where the kernel has no nf_tables there are none.
func nftables(message int, f func(m []byte) error) error {
	q := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|message, unix.NLM_F_DUMP)
	q.AddData(&nl.Nfgenmsg{})
	answers, err := q.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read nf_tables: %w", err)
	}
	for _, m := range answers {
		if err := f(m); err != nil {
			return err
		}
	}
	return nil
}

// parseChain reads a chain. base says that packets come to it by themselves, in a family that matters.
func parseChain(m []byte) (c Chain, base bool, err error) {
	if len(m) < nl.SizeofNfgenmsg {
		return c, false, fmt.Errorf("a chain of %d bytes", len(m))
	}
	var known bool
	c.Family, known = families[m[0]]
	names := hooks
	if c.Family == "netdev" {
		names = deviceHooks
	}
	var inner error
	err = attributes(m, nl.SizeofNfgenmsg, func(kind uint16, value []byte) {
		switch kind {
		case unix.NFTA_CHAIN_TABLE:
			c.Table = text(value)
		case unix.NFTA_CHAIN_NAME:
			c.Name = text(value)
		case unix.NFTA_CHAIN_POLICY:
			c.Drops = big(value) == 0 // NF_DROP
		case unix.NFTA_CHAIN_HOOK:
			inner = attributes(value, 0, func(kind uint16, value []byte) {
				if n := big(value); kind == unix.NFTA_HOOK_HOOKNUM && int(n) < len(names) {
					c.Hook = names[n]
				}
			})
		}
	})
	return c, known && c.Hook != "", errors.Join(err, inner)
}

// parseRule reads what a rule asks for by comparing for equality. What else it asks for is not looked at.
func parseRule(m []byte) (k chainKey, r Rule, err error) {
	if len(m) < nl.SizeofNfgenmsg {
		return k, r, fmt.Errorf("a rule of %d bytes", len(m))
	}
	k.family = families[m[0]]
	r = Rule{Protocol: -1, Port: -1}
	var inner error
	err = attributes(m, nl.SizeofNfgenmsg, func(kind uint16, value []byte) {
		switch kind {
		case unix.NFTA_RULE_TABLE:
			k.table = text(value)
		case unix.NFTA_RULE_CHAIN:
			k.name = text(value)
		case unix.NFTA_RULE_EXPRESSIONS:
			inner = r.read(value)
		}
	})
	return k, r, errors.Join(err, inner)
}

// loaded is what a register holds.
type loaded int

const (
	loadedOther loaded = iota
	loadedProtocol
	loadedInterface
	loadedPort
)

// read goes through the expressions of a rule.
func (r *Rule) read(list []byte) error {
	registers := map[uint32]loaded{}
	var errs []error
	errs = append(errs, attributes(list, 0, func(kind uint16, value []byte) {
		var name string
		var data []byte
		errs = append(errs, attributes(value, 0, func(kind uint16, value []byte) {
			switch kind {
			case unix.NFTA_EXPR_NAME:
				name = text(value)
			case unix.NFTA_EXPR_DATA:
				data = value
			}
		}))
		of := map[uint16][]byte{}
		errs = append(errs, attributes(data, 0, func(kind uint16, value []byte) { of[kind] = value }))
		switch name {
		case "meta":
			registers[big(of[unix.NFTA_META_DREG])] = map[uint32]loaded{
				unix.NFT_META_L4PROTO: loadedProtocol, unix.NFT_META_IIFNAME: loadedInterface,
			}[big(of[unix.NFTA_META_KEY])]
		case "payload":
			registers[big(of[unix.NFTA_PAYLOAD_DREG])] = payload(big(of[unix.NFTA_PAYLOAD_BASE]), big(of[unix.NFTA_PAYLOAD_OFFSET]), big(of[unix.NFTA_PAYLOAD_LEN]))
		case "cmp":
			var operand []byte
			errs = append(errs, attributes(of[unix.NFTA_CMP_DATA], 0, func(kind uint16, value []byte) {
				if kind == unix.NFTA_DATA_VALUE {
					operand = value
				}
			}))
			if big(of[unix.NFTA_CMP_OP]) == unix.NFT_CMP_EQ {
				r.compare(registers[big(of[unix.NFTA_CMP_SREG])], operand)
			}
		}
	}))
	return errors.Join(errs...)
}

// payload says what a field of a packet is: the protocol of either IP header, or the destination port.
func payload(base, offset, length uint32) loaded {
	switch {
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && length == 1 && (offset == 9 || offset == 6):
		return loadedProtocol
	case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER && length == 2 && offset == 2:
		return loadedPort
	}
	return loadedOther
}

// compare notes that what was loaded has to be equal to b.
func (r *Rule) compare(what loaded, b []byte) {
	switch {
	case what == loadedProtocol && len(b) == 1:
		r.Protocol = int(b[0])
	case what == loadedPort && len(b) == 2:
		r.Port = int(binary.BigEndian.Uint16(b))
	case what == loadedInterface && len(b) == unix.IFNAMSIZ:
		r.In = text(b)
	case what == loadedInterface: // the beginning of names
		r.In = text(b) + "*"
	}
}

// big is a number of nf_tables, 0 if it is none.
func big(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}
