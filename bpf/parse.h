/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "checksum.h"
#include "maps.h"

/* Headers as they lie in a frame. The IP header follows 14 or 18 bytes: the kernel has it
 * 4-aligned. */
struct vlan_ethernet {
	__u8 destination[6];
	__u8 source[6];
	__u8 type[2];
	__u8 tag[2];
	__u8 inner[2];
} __attribute__((aligned(2)));

struct ipv4 {
	__u8 version_length;
	__u8 tos;
	__u16 length;
	__u16 id;
	__u16 fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 checksum;
	__u8 source[4];
	__u8 destination[4];
} __attribute__((packed, aligned(4)));

struct ipv6 {
	__u32 first; /* version, traffic class, flow label */
	__u16 length;
	__u8 protocol;
	__u8 ttl;
	__u8 source[16];
	__u8 destination[16];
} __attribute__((packed, aligned(4)));

struct udp {
	__u16 source;
	__u16 destination;
	__u16 length;
	__u16 checksum;
} __attribute__((packed, aligned(4)));

struct channel {
	__u16 number;
	__u16 length;
} __attribute__((packed, aligned(4)));

/* What of a packet outlives the move of its head. Lengths in bytes, host order. */
struct packet {
	__u32 frame;   /* length of the whole frame, all buffers */
	__u32 udp;     /* length of the UDP datagram, header included, by the IP header */
	__u16 network; /* offset of the IP header */
	__u16 vlan;    /* wire order, 0 for none */
	__u16 payload; /* of application data */
	__u16 padding; /* sum of the padding behind it, as its place in the datagram has it */
	__u16 checksum;
	__u16 id; /* of IPv4, wire order; likewise below */
	__u16 fragment;
	__u16 ip_words; /* sum of the IPv4 header without addresses */
	__u8 family;
	__u8 tos;
	__u8 ttl;
	__u8 listener; /* it is to a listener port, so from a client */
};

static __always_inline bool is_listener(__u16 port)
{
	bool found = false;
#pragma unroll
	for (int i = 0; i < LISTENER_PORTS; i++)
		found |= listener_ports[i] && port == listener_ports[i];
	return found;
}

static __always_inline bool is_relayed(__u16 port)
{
	__u16 host = bpf_ntohs(port);

	return relay_first && host >= relay_first && host <= relay_last;
}

static __always_inline bool same_station(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const void *)a, *y = (const void *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]));
}

/* Where the packet's IP header lies, one of two offsets; NULL where n bytes from there are not
 * there. */
static __always_inline void *network_header(const struct packet *p, void *data, void *end, __u32 n)
{
	void *at = data + (p->network == ETH_LEN ? ETH_LEN : ETH_LEN + VLAN_LEN);

	return at + n > end ? NULL : at;
}

/* Ethernet and at most one 802.1Q tag: yields the EtherType in host order, 0 where it is cut off.
 */
static __always_inline __u16 parse_link(struct packet *p, void *data, void *end)
{
	struct vlan_ethernet *e = data;

	if (data + ETH_LEN > end)
		return 0;
	__u16 type = bpf_ntohs(*(__u16 *)e->type);

	p->network = ETH_LEN;
	if (type != ETH_P_8021Q)
		return type;
	if (data + ETH_LEN + VLAN_LEN > end)
		return 0;
	p->network = ETH_LEN + VLAN_LEN;
	p->vlan = *(__u16 *)e->tag & bpf_htons(0x0fff);
	return bpf_ntohs(*(__u16 *)e->inner);
}

/*
 * IPv4 with its lengths. VERDICTS is good: the way to go on. Options and fragments
 * are told apart only for UDP, whoever it is for: their ports are not looked at.
 */
static __always_inline enum verdict parse_ipv4(struct packet *p, const struct ipv4 *ip)
{
	if (ip->version_length >> 4 != 4 || ip->protocol != IPPROTO_UDP)
		return VERDICT_NOT_OURS;
	if (ip->version_length != 0x45)
		return VERDICT_OPTIONS;
	if (ip->fragment & ~bpf_htons(IP_DF))
		return VERDICT_FRAGMENT;
	p->family = 4;
	p->tos = ip->tos;
	p->ttl = ip->ttl;
	p->id = ip->id;
	p->fragment = ip->fragment;
	p->ip_words = fold((__u64) * (__u16 *)ip + ip->length + ip->id + ip->fragment +
			   *(__u16 *)&ip->ttl + ip->checksum);
	p->udp = bpf_ntohs(ip->length) - IPV4_LEN; /* of less than a header: beyond any length */
	return VERDICTS;
}

static __always_inline enum verdict parse_ipv6(struct packet *p, const struct ipv6 *ip)
{
	__u32 first = bpf_ntohl(ip->first);

	if (first >> 28 != 6 || ip->protocol != IPPROTO_UDP)
		return VERDICT_NOT_OURS;
	p->family = 6;
	p->tos = first >> 20;
	p->ttl = ip->ttl;
	p->udp = bpf_ntohs(ip->length);
	return VERDICTS;
}

/* The padding of a ChannelData message that follows an odd or even payload, as a sum. */
static __always_inline int sum_padding(struct xdp_md *ctx, struct packet *p, __u32 at, __u32 n)
{
	__u8 b[4] = {};

	/* The last buffer may hold it, so it is not for a pointer to read. */
	if (n == 1) {
		if (bpf_xdp_load_bytes(ctx, at, b, 1))
			return -1;
	} else if (n == 2) {
		if (bpf_xdp_load_bytes(ctx, at, b, 2))
			return -1;
	} else if (bpf_xdp_load_bytes(ctx, at, b, 3)) {
		return -1;
	}
	__u16 sum = fold((__u64) * (__u16 *)b + *(__u16 *)(b + 2));

	p->padding = p->payload & 1 ? sum << 8 | sum >> 8 : sum;
	return 0;
}

/*
 * ChannelData behind a UDP header whose length is known to lie within the frame. c is NULL
 * where its header is not there.
 */
static __always_inline enum verdict parse_channel_data(struct xdp_md *ctx, struct packet *p,
						       const struct channel *c, __u32 header)
{
	if (p->udp < UDP_LEN + CHANNEL_LEN || !c || (*(__u8 *)c & 0xc0) != 0x40)
		return VERDICT_STUN;
	__u32 room = p->udp - UDP_LEN - CHANNEL_LEN;

	p->payload = bpf_ntohs(c->length);
	if (p->payload > room || room - p->payload > MAX_PADDING)
		return VERDICT_CHANNEL_DATA;
	if (room != p->payload &&
	    sum_padding(ctx, p, header + UDP_LEN + CHANNEL_LEN + p->payload, room - p->payload))
		return VERDICT_LENGTH;
	return VERDICTS;
}
