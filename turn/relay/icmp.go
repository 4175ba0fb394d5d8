package relay

// ICMP says which clients are told of ICMP errors about what they sent to peers.
type ICMP uint8

// Clients that are told. RFC 8656 section 11.5 wants all of them to be; but the Data indication has no
// DATA then, and a client older than that RFC may take it for garbage: that of pion/turn v4 reads no more after the first.
const (
	ICMPToProbers ICMP = iota // that have sent with DONT-FRAGMENT: it is they who wait for such errors
	ICMPToAll
	ICMPToNobody
)

// tells says whether the client of f is told.
func (i ICMP) tells(f *flow) bool {
	return i == ICMPToAll || i == ICMPToProbers && f.probes.Load()
}
