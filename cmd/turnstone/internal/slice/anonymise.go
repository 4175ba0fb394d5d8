package slice

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"reflect"
	"strings"

	"turnstone/turn"
)

// Ranges that other addresses are drawn from: for benchmarks (RFC 2544) and documentation (RFC 3849).
var (
	range4 = netip.MustParsePrefix("198.18.0.0/15")
	range6 = netip.MustParsePrefix("2001:db8::/32")
)

// disguise puts others in the place of addresses, names and what else tells who somebody was: the same for the same,
// of the same family, and not to be undone without the key, which is drawn for it and kept nowhere.
type disguise struct {
	key       [32]byte
	originals map[netip.Addr]bool
	given     map[netip.Addr]netip.Addr
	taken     map[netip.Addr]bool
}

// Anonymise is parts with other addresses, user names, realms, transaction ids and tokens. Ports, times, lifetimes, counters, channel
// and allocation numbers stay, and what was equal is.
func Anonymise(parts []Part) []Part {
	d := disguise{originals: map[netip.Addr]bool{}, given: map[netip.Addr]netip.Addr{}, taken: map[netip.Addr]bool{}}
	rand.Read(d.key[:])
	walk(parts, func(v reflect.Value) bool {
		switch a := v.Interface().(type) {
		case netip.Addr:
			d.originals[a] = true
		case netip.AddrPort:
			d.originals[a.Addr()] = true
		default:
			return false
		}
		return true
	})
	out := make([]Part, len(parts))
	for i, p := range parts {
		out[i] = Part{Moment: p.Moment, Pieces: make([]Piece, len(p.Pieces))}
		d.fill("boot", out[i].Moment.Boot[:], p.Moment.Boot[:])
		for j, one := range p.Pieces {
			out[i].Pieces[j].Seq = one.Seq
			if one.Event != nil {
				out[i].Pieces[j].Event = d.event(one.Event)
			}
		}
	}
	return out
}

// walk shows every value in the events of parts to see, until that has seen enough of one.
func walk(parts []Part, see func(reflect.Value) bool) {
	var visit func(reflect.Value)
	visit = func(v reflect.Value) {
		if see(v) {
			return
		}
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				visit(v.Field(i))
			}
		case reflect.Slice:
			for i := range v.Len() {
				visit(v.Index(i))
			}
		}
	}
	for _, p := range parts {
		for _, one := range p.Pieces {
			if one.Event != nil {
				visit(reflect.ValueOf(one.Event))
			}
		}
	}
}

// event is e in disguise.
func (d *disguise) event(e turn.Event) turn.Event {
	v := reflect.New(reflect.TypeOf(e)).Elem()
	v.Set(reflect.ValueOf(e))
	d.value(v, "")
	return v.Interface().(turn.Event)
}

// plainTexts are the fields with text that says nothing of anybody. Text in others that are not known is left out.
var plainTexts = map[string]bool{"Version": true, "Signal": true}

// value puts v, the field of a name, in disguise. What it does not know how to it clears, unless it is a number.
func (d *disguise) value(v reflect.Value, name string) {
	switch x := v.Interface().(type) {
	case netip.Addr:
		v.Set(reflect.ValueOf(d.address(x)))
		return
	case netip.AddrPort:
		v.Set(reflect.ValueOf(netip.AddrPortFrom(d.address(x.Addr()), x.Port())))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			d.value(v.Field(i), v.Type().Field(i).Name)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			to := make([]byte, v.Len())
			d.fill(name, to, v.Bytes())
			v.SetBytes(to)
			return
		}
		list := reflect.MakeSlice(v.Type(), v.Len(), v.Len()) // the old one is others' too
		reflect.Copy(list, v)
		for i := range list.Len() {
			d.value(list.Index(i), name)
		}
		if !v.IsNil() {
			v.Set(list)
		}
	case reflect.Array:
		from := make([]byte, v.Len())
		reflect.Copy(reflect.ValueOf(from), v)
		to := make([]byte, len(from))
		d.fill(name, to, from)
		reflect.Copy(v, reflect.ValueOf(to))
	case reflect.String:
		v.SetString(d.text(name, v.String()))
	}
}

// text is s, the text in the field of a name, in disguise.
func (d *disguise) text(name, s string) string {
	switch {
	case plainTexts[name] || s == "":
		return s
	case name == "Username":
		owner := turn.Owner(s)
		return strings.TrimSuffix(s, owner) + "user-" + d.short("user", owner) // the expiry of a time-limited one stays
	case name == "Realm":
		return "realm-" + d.short("realm", s) + ".example"
	}
	return ""
}

func (d *disguise) short(sort, s string) string {
	return hex.EncodeToString(d.sum(sort, []byte(s), 0)[:6])
}

// fill fills to with bytes that stand for from: zeros for zeros.
func (d *disguise) fill(sort string, to, from []byte) {
	zero := true
	for _, b := range from {
		zero = zero && b == 0
	}
	if zero {
		return
	}
	for n := range to {
		if n%sha256.Size == 0 {
			copy(to[n:], d.sum(sort, from, n))
		}
	}
}

func (d *disguise) sum(sort string, b []byte, n int) []byte {
	mac := hmac.New(sha256.New, d.key[:])
	mac.Write(append([]byte(sort), 0))
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
	mac.Write(b)
	return mac.Sum(nil)
}

// address is what stands for a: neither one that stands for another, nor one that is in the source.
func (d *disguise) address(a netip.Addr) netip.Addr {
	if !a.IsValid() {
		return a
	}
	if known, ok := d.given[a]; ok {
		return known
	}
	in := range6
	if a.Is4() {
		in = range4
	}
	for n := 0; ; n++ {
		to := within(in, d.sum("address", a.AsSlice(), n))
		if !d.taken[to] && !d.originals[to] {
			d.given[a], d.taken[to] = to, true
			return to
		}
	}
}

// within is the address in a range whose other bits are those of b.
func within(in netip.Prefix, b []byte) netip.Addr {
	ip := in.Addr().AsSlice()
	for i := range ip {
		switch kept := in.Bits() - 8*i; {
		case kept >= 8:
		case kept <= 0:
			ip[i] = b[i]
		default:
			mask := byte(0xff) >> kept
			ip[i] |= b[i] & mask
		}
	}
	a, _ := netip.AddrFromSlice(ip) // of 4 or 16 bytes
	return a
}
