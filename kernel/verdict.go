package kernel

import "turnstone/bpf"

// Verdict says how a packet left the program.
type Verdict uint32

// Verdicts, in the order of the program's counters.
const (
	VerdictToPeer       = Verdict(bpf.TurnstoneVerdictVERDICT_TO_PEER)
	VerdictToClient     = Verdict(bpf.TurnstoneVerdictVERDICT_TO_CLIENT)
	VerdictToChannel    = Verdict(bpf.TurnstoneVerdictVERDICT_TO_CHANNEL)
	VerdictDropTTL      = Verdict(bpf.TurnstoneVerdictVERDICT_DROP_TTL)
	VerdictDropMeter    = Verdict(bpf.TurnstoneVerdictVERDICT_DROP_METER)
	VerdictDropUser     = Verdict(bpf.TurnstoneVerdictVERDICT_DROP_METER_USER)
	VerdictDropTotal    = Verdict(bpf.TurnstoneVerdictVERDICT_DROP_METER_TOTAL)
	VerdictDropAway     = Verdict(bpf.TurnstoneVerdictVERDICT_DROP_AWAY)
	VerdictAborted      = Verdict(bpf.TurnstoneVerdictVERDICT_ABORTED)
	VerdictNotOurs      = Verdict(bpf.TurnstoneVerdictVERDICT_NOT_OURS)
	VerdictOptions      = Verdict(bpf.TurnstoneVerdictVERDICT_OPTIONS)
	VerdictFragment     = Verdict(bpf.TurnstoneVerdictVERDICT_FRAGMENT)
	VerdictLength       = Verdict(bpf.TurnstoneVerdictVERDICT_LENGTH)
	VerdictMAC          = Verdict(bpf.TurnstoneVerdictVERDICT_MAC)
	VerdictSTUN         = Verdict(bpf.TurnstoneVerdictVERDICT_STUN)
	VerdictChannelData  = Verdict(bpf.TurnstoneVerdictVERDICT_CHANNEL_DATA)
	VerdictMiss         = Verdict(bpf.TurnstoneVerdictVERDICT_MISS)
	VerdictStale        = Verdict(bpf.TurnstoneVerdictVERDICT_STALE)
	VerdictVLAN         = Verdict(bpf.TurnstoneVerdictVERDICT_VLAN)
	VerdictExpired      = Verdict(bpf.TurnstoneVerdictVERDICT_EXPIRED)
	VerdictIPChecksum   = Verdict(bpf.TurnstoneVerdictVERDICT_IP_CHECKSUM)
	VerdictNoChecksum   = Verdict(bpf.TurnstoneVerdictVERDICT_NO_CHECKSUM)
	VerdictHalfChecksum = Verdict(bpf.TurnstoneVerdictVERDICT_HALF_CHECKSUM)
	VerdictNextHop      = Verdict(bpf.TurnstoneVerdictVERDICT_NEXT_HOP)
	VerdictMTU          = Verdict(bpf.TurnstoneVerdictVERDICT_MTU)
	VerdictBuffers      = Verdict(bpf.TurnstoneVerdictVERDICT_BUFFERS)
	VerdictHeadroom     = Verdict(bpf.TurnstoneVerdictVERDICT_HEADROOM)
	Verdicts            = int(bpf.TurnstoneVerdictVERDICTS)
)

var verdictNames = [Verdicts]string{
	"to-peer", "to-client", "to-channel", "drop-ttl", "drop-meter", "drop-meter-user", "drop-meter-total", "drop-away", "aborted",
	"not-ours", "options", "fragment", "length", "mac", "stun", "channel-data", "miss", "stale", "vlan", "expired",
	"ip-checksum", "no-checksum", "half-checksum", "next-hop", "mtu", "buffers", "headroom",
}

func (v Verdict) String() string {
	if int(v) < len(verdictNames) {
		return verdictNames[v]
	}
	return "unknown"
}

// Relayed says whether v is one by which a packet was handed to the driver.
func (v Verdict) Relayed() bool { return v <= VerdictToChannel }
