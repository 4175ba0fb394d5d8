/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#pragma once

#include <linux/types.h>
#include <stdbool.h>

#define ETH_P_IP    0x0800
#define ETH_P_IPV6  0x86DD
#define ETH_P_8021Q 0x8100

#define IPPROTO_UDP 17
#define IP_DF	    0x4000

#define ETH_LEN	    14
#define VLAN_LEN    4
#define IPV4_LEN    20
#define IPV6_LEN    40
#define UDP_LEN	    8
#define CHANNEL_LEN 4

/* The longest IP packet that leaves. IPv6 knows longer ones, IPv4 does not. */
#define MAX_LENGTH 65535

/* The padding that may follow the payload of a ChannelData message. */
#define MAX_PADDING 3

/* One verdict for each way out of the program. Their order is part of the layout. */
enum verdict {
	/* Relayed: handed to the driver. */
	VERDICT_TO_PEER = 0,
	VERDICT_TO_CLIENT,
	VERDICT_TO_CHANNEL, /* a channel of one allocation to a channel of another */

	/* Dropped. */
	VERDICT_DROP_TTL,	  /* TTL or hop limit used up */
	VERDICT_DROP_METER,	  /* over the allocation's cap */
	VERDICT_DROP_METER_USER,  /* over its user's */
	VERDICT_DROP_METER_TOTAL, /* over that of all allocations */
	VERDICT_DROP_AWAY,	  /* nobody listens: the daemon is being restarted */
	VERDICT_ABORTED,	  /* failed after the first write */

	/* Passed up, untouched. */
	VERDICT_NOT_OURS,      /* not UDP, or not to a port of ours */
	VERDICT_OPTIONS,       /* UDP behind IPv4 options */
	VERDICT_FRAGMENT,      /* a fragment, or the reserved flag */
	VERDICT_LENGTH,	       /* lengths that disagree, or headers cut off */
	VERDICT_MAC,	       /* to another station, or on an interface of nobody's */
	VERDICT_STUN,	       /* to a listener, and no ChannelData */
	VERDICT_CHANNEL_DATA,  /* ChannelData whose length does not fit */
	VERDICT_MISS,	       /* no flow */
	VERDICT_STALE,	       /* an index entry whose record is another's */
	VERDICT_VLAN,	       /* with another tag than the flow's */
	VERDICT_EXPIRED,       /* past the flow's deadline */
	VERDICT_IP_CHECKSUM,   /* IPv4 header checksum wrong */
	VERDICT_NO_CHECKSUM,   /* UDP checksum zero where IPv6 needs one */
	VERDICT_HALF_CHECKSUM, /* UDP checksum left to the hardware, or a super-frame */
	VERDICT_NEXT_HOP,      /* next hop not resolved */
	VERDICT_MTU,	       /* too large for the path once rewritten */
	VERDICT_BUFFERS,       /* in several buffers, which the egress cannot send */
	VERDICT_HEADROOM,      /* no room for a longer header */

	VERDICTS,
};
