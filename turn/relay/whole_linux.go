package relay

import "golang.org/x/sys/unix"

// Linux sets DF for a socket, not for a datagram. Most datagrams go without (see setOptions); for those
// of a Send indication with DONT-FRAGMENT the socket is switched over and back, which costs
// two system calls for each run of them. A relayed socket is only sent on for its one client,
// so by one hand at a time; while the client moves by two, and what is sent together may get the DF of the other.
//
// Afterwards an IPv4 socket does without DF in another way than before (IP_PMTUDISC_OMIT): the way of setOptions would keep
// from us the ICMP errors that say which MTU DF met, for which the client asks. IPv6 tells of them anyway.

// alike is the end of the run of messages, from first on, that may all be fragmented or all not.
func (o *outbox) alike(first int) int {
	if o.wholes == 0 {
		return o.n
	}
	end := first + 1
	for end < o.n && o.trains[end].hop.whole == o.trains[first].hop.whole {
		end++
	}
	return end
}

// sendWhole is send with DF set, and without fragments of our own.
func (o *outbox) sendWhole(first, end int) {
	v4 := o.names[first].len == unix.SizeofSockaddrInet4
	level, option, probe, rest := unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE, unix.IPV6_PMTUDISC_DONT
	if v4 {
		level, option, probe, rest = unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE, unix.IP_PMTUDISC_OMIT
	}
	if err := unix.SetsockoptInt(o.fd, level, option, probe); err != nil {
		for _, t := range o.trains[first:end] {
			o.drop(t.segments, unix.EMSGSIZE)
		}
		return
	}
	o.send(first, end)
	_ = unix.SetsockoptInt(o.fd, level, option, rest) // it took the other value
}

// unsent counts n datagrams that the kernel did not take.
func (s *stats) unsent(n int, errno unix.Errno) {
	why := DropSend
	if errno == unix.EMSGSIZE {
		why = DropMTU
	}
	s.drops[why].Add(uint64(n))
}
