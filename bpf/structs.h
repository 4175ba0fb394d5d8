/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#pragma once

#include "consts.h"

/*
 * What is shared with user space. Fields in wire order are byte arrays; an IPv4
 * address stands in the first 4 bytes of 16, the rest zero. Sums are one's
 * complement over 16-bit words as they lie in memory, folded to 16 bits.
 */

struct flow_key4 {
	__u8 remote[4];
	__u8 local[4];
	__u8 remote_port[2];
	__u8 local_port[2];
	__u8 channel[2]; /* 0: from the peer */
	__u8 zero[2];
} __attribute__((aligned(8)));
_Static_assert(sizeof(struct flow_key4) == 16, "flow_key4");

struct flow_key6 {
	__u8 remote[16];
	__u8 local[16];
	__u8 remote_port[2];
	__u8 local_port[2];
	__u8 channel[2];
	__u8 zero[2];
} __attribute__((aligned(8)));
_Static_assert(sizeof(struct flow_key6) == 40, "flow_key6");

/* What an index holds: where the record of a key lies, and that it is still this key's. */
struct slot_ref {
	__u32 slot;
	__u32 generation;
};
_Static_assert(sizeof(struct slot_ref) == 8, "slot_ref");

enum flow_kind {
	FLOW_TO_PEER = 1,   /* ChannelData of a client */
	FLOW_TO_CLIENT = 2, /* datagrams of the peer of a channel */
	FLOW_GUARD = 3,	    /* a local address that lives: remote and channel are zero */
};

/* What meters are for, the narrowest first. */
enum scope {
	SCOPE_ALLOCATION = 0,
	SCOPE_USER,
	SCOPE_TOTAL,

	SCOPES,
};

/* The peer is a relayed address of this relay: its allocation's record says where to. */
#define FLOW_LOCAL_PEER 1

/*
 * The record of a flow, published by storing its generation last. A record does
 * not change while a key names it, but for its deadline, which is one store.
 */
struct flow {
	__u32 generation; /* 0: no record */
	__u8 kind;
	__u8 family;	 /* of the key: 4 or 6 */
	__u8 out_family; /* of the address sent to */
	__u8 flags;
	__u64 deadline; /* boot time, ns: over at its own instant */
	__u8 remote[16];
	__u8 local[16];
	__u8 remote_port[2];
	__u8 local_port[2];
	__u8 channel[2];
	__u8 vlan[2]; /* tag the flow arrives with, 0 for none */
	__u8 out_source[16];
	__u8 out_destination[16];
	__u8 out_source_port[2];
	__u8 out_destination_port[2];
	__u8 out_channel[2];
	__u16 mtu;     /* of the path, 0: that of the next hop */
	__u32 gateway; /* index of gateways */
	__u32 meter;   /* of its allocation: index of meters, 0 for none */
	__u16 in_sum;  /* of the addresses it arrives with */
	__u16 out_sum; /* of the addresses it leaves with */
	__u16 delta;   /* what leaves less what arrives: addresses, ports, channel numbers */
	__u16 zero;
	__u32 flow_label; /* of IPv6, 20 bits in host order */
	__u32 zero2[3];
};
_Static_assert(sizeof(struct flow) == 128, "flow");
_Static_assert(__builtin_offsetof(struct flow, deadline) == 8, "one aligned store");

/* Whose a slot is, for user space alone: the program does not read it. */
struct owner {
	__u64 allocation;
	__u64 base_packets; /* relayed by the binding before it had this slot */
	__u64 base_bytes;
	__u16 channel;
	__u16 zero[3];
};
_Static_assert(sizeof(struct owner) == 32, "owner");

#define NEXT_HOP_BUFFERS 1 /* the egress sends frames in several buffers */

/* Where frames leave. Immutable while a gateway names it. */
struct next_hop {
	__u32 ifindex; /* 0: no next hop */
	__u32 port;    /* index of egress */
	__u32 mtu;     /* of an IP packet, bytes */
	__u8 destination[6];
	__u8 source[6];
	__u8 vlan[2]; /* 0: none */
	__u8 flags;
	__u8 zero[5];
};
_Static_assert(sizeof(struct next_hop) == 32, "next_hop");

/* A generic cell rate algorithm in one word, for one direction. */
struct meter {
	__u64 full;  /* when the bucket is full again: boot time, ns */
	__u64 cost;  /* ns a byte, 16.16 fixed point; 0: no cap */
	__u64 burst; /* ns */
	__u32 wider; /* the meter of the next scope, 0 for none */
	__u32 zero;
};
_Static_assert(sizeof(struct meter) == 32, "meter");

/* An interface the program is attached to, at ifindex modulo the size of the map. */
struct interface {
	__u32 ifindex;
	__u8 mac[6];
	__u8 zero[6];
};
_Static_assert(sizeof(struct interface) == 16, "interface");

struct counter {
	__u64 packets;
	__u64 bytes; /* of payload */
};

/* What a CPU has of its own. */
struct cpu {
	__u64 tick; /* jiffies at which now was read */
	__u64 now;
	struct counter verdicts[VERDICTS];
};

/* What the maps are the projection of. */
struct projection {
	__u8 log[16];
	__u8 layout[32];
	__u64 epoch;
	__u64 applied;	/* sequence up to which the maps are made */
	__u8 chain[32]; /* hash of the record that ends there */
	__u8 owner_boot[16];
	__u64 zero;
};
_Static_assert(sizeof(struct projection) == 120, "projection");
