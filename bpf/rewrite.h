/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#pragma once

#include "parse.h"

/* How a packet leaves: decided before the first write. */
struct departure {
	const struct flow *out; /* addresses, family and channel it leaves with */
	const struct next_hop *hop;
	__u32 usage;   /* packets this CPU has relayed by out before */
	__u16 delta;   /* of the UDP checksum: addresses, ports, channel numbers */
	bool stripped; /* a channel header is taken off */
	bool channel;  /* one is put on */
};

static __always_inline __u32 header_length(__u8 family)
{
	return family == 4 ? IPV4_LEN : IPV6_LEN;
}

/* The length of the IP packet that leaves, in bytes. */
static __always_inline __u32 departing_length(const struct packet *p, const struct departure *d)
{
	return header_length(d->out->out_family) + UDP_LEN + (d->channel ? CHANNEL_LEN : 0) +
	       p->payload;
}

/*
 * The UDP checksum that leaves, from the one that came: what was damaged on the way stays
 * damaged. The length counts twice, in the pseudo-header and the header.
 */
static __always_inline __u16 departing_checksum(const struct packet *p, const struct departure *d,
						__u16 length)
{
	__u64 sum = without(p->checksum);

	if (!p->checksum)
		return 0;
	sum += d->delta;
	sum += 2 * (without(bpf_htons(p->udp)) + length);
	if (d->stripped)
		sum += without(bpf_htons(p->payload)) + without(p->padding);
	if (d->channel)
		sum += bpf_htons(p->payload);
	__u16 checksum = ~fold(sum);

	return checksum ? checksum : 0xffff;
}

/*
 * Headers that came give way to those that leave. Identification: DF says that none is needed, so
 * it stays or is zero; else it stays, or is counted where IPv6 brought none (RFC 7915 section 5.1).
 */
static __always_inline void write_ipv4(const struct packet *p, const struct departure *d,
				       struct ipv4 *ip, __u16 length)
{
	bool large = length > 1260;
	__u16 id = d->usage + bpf_ntohs(*(__u16 *)d->out->out_source_port) * 40503u;

	ip->version_length = 0x45;
	ip->tos = p->tos;
	ip->length = bpf_htons(length);
	ip->id = p->family == 4 ? p->id : large ? 0 : bpf_htons(id);
	ip->fragment = p->family == 4 ? p->fragment : large ? bpf_htons(IP_DF) : 0;
	ip->ttl = p->ttl - 1;
	ip->protocol = IPPROTO_UDP;
	ip->checksum = 0;
	__builtin_memcpy(ip->source, d->out->out_source, 4);
	__builtin_memcpy(ip->destination, d->out->out_destination, 4);
	__u64 sum = d->out->out_sum;

	sum += *(__u16 *)ip;
	sum += ip->length;
	sum += ip->id;
	sum += ip->fragment;
	sum += *(__u16 *)&ip->ttl;
	ip->checksum = ~fold(sum);
}

static __always_inline void write_ipv6(const struct packet *p, const struct departure *d,
				       struct ipv6 *ip, __u16 length)
{
	ip->first = bpf_htonl(6u << 28 | (__u32)p->tos << 20 | d->out->flow_label);
	ip->length = bpf_htons(length - IPV6_LEN);
	ip->protocol = IPPROTO_UDP;
	ip->ttl = p->ttl - 1;
	__builtin_memcpy(ip->source, d->out->out_source, 16);
	__builtin_memcpy(ip->destination, d->out->out_destination, 16);
}

static __always_inline void *write_link(const struct departure *d, void *data)
{
	struct vlan_ethernet *e = data;
	__u16 tag = *(__u16 *)d->hop->vlan;
	__u16 type = d->out->out_family == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);

	__builtin_memcpy(e->destination, d->hop->destination, 6);
	__builtin_memcpy(e->source, d->hop->source, 6);
	if (!tag) {
		*(__u16 *)e->type = type;
		return data + ETH_LEN;
	}
	*(__u16 *)e->type = bpf_htons(ETH_P_8021Q);
	*(__u16 *)e->tag = tag;
	*(__u16 *)e->inner = type;
	return data + ETH_LEN + VLAN_LEN;
}

/* UDP header, and channel header where there is one. */
static __always_inline void write_transport(const struct packet *p, const struct departure *d,
					    void *at)
{
	struct udp *u = at;
	struct channel *c = at + UDP_LEN;
	__u16 length = bpf_htons(UDP_LEN + (d->channel ? CHANNEL_LEN : 0) + p->payload);

	u->source = *(__u16 *)d->out->out_source_port;
	u->destination = *(__u16 *)d->out->out_destination_port;
	u->length = length;
	u->checksum = departing_checksum(p, d, length);
	if (d->channel) {
		c->number = *(__u16 *)d->out->out_channel;
		c->length = bpf_htons(p->payload);
	}
}

/*
 * Moves the head, cuts off what lies behind the payload, and writes the headers. Yields VERDICTS,
 * VERDICT_HEADROOM while nothing is changed, or VERDICT_ABORTED.
 */
static __always_inline enum verdict rewrite(struct xdp_md *ctx, const struct packet *p,
					    const struct departure *d)
{
	__u32 network = ETH_LEN + (*(__u16 *)d->hop->vlan ? VLAN_LEN : 0);
	__u16 length = departing_length(p, d);
	int shorter =
		(p->network + header_length(p->family) + (d->stripped ? CHANNEL_LEN : 0)) -
		(network + header_length(d->out->out_family) + (d->channel ? CHANNEL_LEN : 0));
	int surplus = (int)p->frame - shorter - (int)(network + length);

	if (shorter && bpf_xdp_adjust_head(ctx, shorter))
		return VERDICT_HEADROOM;
	if (surplus > 0 && bpf_xdp_adjust_tail(ctx, -surplus))
		return VERDICT_ABORTED;
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	if (data + ETH_LEN + VLAN_LEN > end)
		return VERDICT_ABORTED;
	void *at = write_link(d, data);
	__u32 transport = UDP_LEN + (d->channel ? CHANNEL_LEN : 0);

	if (d->out->out_family == 4) {
		if (at + IPV4_LEN + transport > end)
			return VERDICT_ABORTED;
		write_ipv4(p, d, at, length);
		at += IPV4_LEN;
	} else {
		if (at + IPV6_LEN + transport > end)
			return VERDICT_ABORTED;
		write_ipv6(p, d, at, length);
		at += IPV6_LEN;
	}
	write_transport(p, d, at);
	return VERDICTS;
}
