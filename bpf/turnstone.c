//go:build ignore

/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The datapath: ChannelData of a client becomes UDP to its peer, and the other way
 * round. Parse all, look up once, then rewrite. Until the first write doubt is PASS;
 * after it failure is ABORTED. Its contract is in doc.go.
 */
#include "rewrite.h"

char __license[] SEC("license") = "Dual BSD/GPL";

/* The boot-time clock, read once a tick: the helper is dear. */
static __always_inline __u64 boot_time(struct cpu *c)
{
	__u64 tick = bpf_jiffies64();

	if (c->tick != tick) {
		c->now = bpf_ktime_get_boot_ns();
		c->tick = tick;
	}
	return c->now;
}

static __always_inline void count(struct cpu *c, enum verdict v, __u32 bytes)
{
	c->verdicts[v].packets++;
	c->verdicts[v].bytes += bytes;
}

/* What this CPU has relayed by a slot. */
static __always_inline struct counter *usage_of(__u32 slot)
{
	__u32 at = slot * cpu_count + bpf_get_smp_processor_id();

	return bpf_map_lookup_elem(&usage, &at);
}

/* Takes bytes from a meter, which all CPUs and user space share. False where they are too many. */
static __always_inline bool within(struct meter *m, __u32 bytes, __u64 now)
{
	__u64 cost = bytes * m->cost >> 16;

#pragma unroll
	for (int i = 0; i < 4; i++) {
		__u64 old = *(volatile __u64 *)&m->full;
		__u64 next = (old > now ? old : now) + cost;

		if (next - now > m->burst)
			return false;
		if (__sync_val_compare_and_swap(&m->full, old, next) == old)
			return true;
	}
	__sync_fetch_and_add(&m->full, cost);
	return true;
}

/*
 * Takes bytes from a meter and those of the wider scopes, and yields the scope for which they are
 * too many, SCOPES for none. What was taken by then stays taken, as in user space. The verifier
 * looks at it once, not for each packet that comes to it.
 */
__noinline int over(__u32 index, __u32 bytes, __u64 now)
{
	for (int scope = SCOPE_ALLOCATION; scope < SCOPES; scope++) {
		struct meter *m = index ? bpf_map_lookup_elem(&meters, &index) : NULL;

		if (!m)
			break;
		if (m->cost && !within(m, bytes, now))
			return scope;
		index = m->wider;
	}
	return SCOPES;
}

/* Whether the caps of a flow allow a packet, VERDICTS where they do. */
static __always_inline enum verdict metered(const struct flow *f, __u32 bytes, __u64 now)
{
	if (!f->meter)
		return VERDICTS;
	switch (over(f->meter, bytes, now)) {
	case SCOPE_ALLOCATION:
		return VERDICT_DROP_METER;
	case SCOPE_USER:
		return VERDICT_DROP_METER_USER;
	case SCOPE_TOTAL:
		return VERDICT_DROP_METER_TOTAL;
	}
	return VERDICTS;
}

/* The record a reference names, NULL where it is another's. */
static __always_inline struct flow *record(const struct slot_ref *ref)
{
	__u32 slot = ref->slot, generation = ref->generation;
	struct flow *f = bpf_map_lookup_elem(&flows, &slot);

	if (!f || !generation || *(volatile __u32 *)&f->generation != generation)
		return NULL;
	return f;
}

/* The index is a hash map of its own for each family: the rest is one body for both. */
static __always_inline bool keyed4(const struct flow *f, const struct flow_key4 *k)
{
	const __u32 *r = (const void *)f->remote, *l = (const void *)f->local;

	return f->family == 4 && r[0] == *(__u32 *)k->remote && l[0] == *(__u32 *)k->local &&
	       *(__u32 *)f->remote_port == *(__u32 *)k->remote_port &&
	       *(__u16 *)f->channel == *(__u16 *)k->channel;
}

static __always_inline bool keyed6(const struct flow *f, const struct flow_key6 *k)
{
	const __u64 *r = (const void *)f->remote, *l = (const void *)f->local;
	const __u64 *kr = (const void *)k->remote, *kl = (const void *)k->local;

	return f->family == 6 && r[0] == kr[0] && r[1] == kr[1] && l[0] == kl[0] && l[1] == kl[1] &&
	       *(__u32 *)f->remote_port == *(__u32 *)k->remote_port &&
	       *(__u16 *)f->channel == *(__u16 *)k->channel;
}

/* The key of the packet, in the form of its family. */
union key {
	struct flow_key4 v4;
	struct flow_key6 v6;
};

static __always_inline enum verdict find(__u8 family, union key *k, struct flow **found,
					 __u32 *slot)
{
	struct slot_ref *ref = family == 4 ? bpf_map_lookup_elem(&index4, &k->v4)
					   : bpf_map_lookup_elem(&index6, &k->v6);

	if (!ref)
		return VERDICT_MISS;
	struct flow *f = record(ref);

	if (!f || !(unkeyed || (family == 4 ? keyed4(f, &k->v4) : keyed6(f, &k->v6))))
		return VERDICT_STALE;
	*found = f;
	*slot = ref->slot;
	return VERDICTS;
}

/*
 * A packet for a port of ours that is not relayed. Where its local address lives and no
 * socket is there, the daemon is away: to pass it up would make the stack answer with an ICMP
 * error, which ends a call.
 */
static __always_inline enum verdict pass_up(struct xdp_md *ctx, struct cpu *c, __u8 family,
					    union key *k, enum verdict v)
{
	struct bpf_sock_tuple tuple = {};
	struct flow *guard;
	__u32 slot, size;

	if (family == 4) {
		__builtin_memcpy(&tuple.ipv4.saddr, k->v4.remote, 4);
		__builtin_memcpy(&tuple.ipv4.daddr, k->v4.local, 4);
		tuple.ipv4.sport = *(__u16 *)k->v4.remote_port;
		tuple.ipv4.dport = *(__u16 *)k->v4.local_port;
		size = sizeof(tuple.ipv4);
		__builtin_memset(k->v4.remote, 0, 4);
		*(__u16 *)k->v4.remote_port = 0;
		*(__u16 *)k->v4.channel = 0;
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, k->v6.remote, 16);
		__builtin_memcpy(tuple.ipv6.daddr, k->v6.local, 16);
		tuple.ipv6.sport = *(__u16 *)k->v6.remote_port;
		tuple.ipv6.dport = *(__u16 *)k->v6.local_port;
		size = sizeof(tuple.ipv6);
		__builtin_memset(k->v6.remote, 0, 16);
		*(__u16 *)k->v6.remote_port = 0;
		*(__u16 *)k->v6.channel = 0;
	}
	if (find(family, k, &guard, &slot) != VERDICTS || guard->kind != FLOW_GUARD ||
	    guard->deadline <= boot_time(c))
		return v;
	struct bpf_sock *sk = bpf_sk_lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);

	if (!sk)
		return VERDICT_DROP_AWAY;
	bpf_sk_release(sk);
	return v;
}

#define CHUNK  64
#define CHUNKS 160

static __always_inline __u16 sum_chunk(const __u64 *chunk, __u64 sum)
{
	for (int j = 0; j < CHUNK / 8; j++)
		sum += (chunk[j] & 0xffffffff) + (chunk[j] >> 32);
	return fold(sum);
}

/*
 * The sum over n bytes from at, -1 where they are too many. Verified once, since it is a
 * function of its own: it is called for one packet in 65,536.
 */
__attribute__((noinline)) int sum_bytes(struct xdp_md *ctx, __u32 at, __u32 n)
{
	__u64 chunk[CHUNK / 8];
	__u16 sum = 0;

	for (int i = 0; i < CHUNKS && n >= CHUNK; i++) {
		if (bpf_xdp_load_bytes(ctx, at, chunk, CHUNK))
			return -1;
		sum = sum_chunk(chunk, sum);
		at += CHUNK;
		n -= CHUNK;
	}
	if (n >= CHUNK)
		return -1;
	if (!n)
		return sum;
	/* Before 6.8 the verifier does not see by the line above that n is not 0. */
	barrier_var(n);
	n = ((n - 1) & (CHUNK - 1)) + 1;
	__builtin_memset(chunk, 0, sizeof(chunk));
	if (bpf_xdp_load_bytes(ctx, at, chunk, n))
		return -1;
	return sum_chunk(chunk, sum);
}

/*
 * A UDP checksum that equals the folded pseudo-header sum is half of one, which the hardware was to
 * complete, unless the datagram happens to add up with it.
 */
static __always_inline bool half_checksum(struct xdp_md *ctx, const struct packet *p,
					  const struct flow *f)
{
	__u64 pseudo = (__u64)f->in_sum + bpf_htons(IPPROTO_UDP) + bpf_htons(p->udp);

	if (p->checksum != fold(pseudo))
		return false;
	int sum = sum_bytes(ctx, p->network + header_length(p->family), p->udp);

	return sum < 0 || fold(pseudo + (__u32)sum) != 0xffff;
}

/* Whether a live flow may take the packet: the checks that are the record's. */
static __always_inline enum verdict check(struct xdp_md *ctx, const struct packet *p,
					  const struct flow *f, __u64 now)
{
	if (f->kind != (p->listener ? FLOW_TO_PEER : FLOW_TO_CLIENT))
		return VERDICT_MISS;
	if (p->vlan != *(__u16 *)f->vlan)
		return VERDICT_VLAN;
	if (f->deadline <= now)
		return VERDICT_EXPIRED;
	/* Addresses, then the header's other words and the checksum. */
	if (p->family == 4 && fold((__u64)p->ip_words + f->in_sum) != 0xffff)
		return VERDICT_IP_CHECKSUM;
	if (!p->checksum)
		return p->family == 6 ? VERDICT_NO_CHECKSUM : VERDICTS;
	return half_checksum(ctx, p, f) ? VERDICT_HALF_CHECKSUM : VERDICTS;
}

/* The record by which a relayed address of ours sends on what another of ours sent it. */
static __always_inline enum verdict find_peer(const struct flow *f, struct flow **found,
					      __u32 *slot, __u64 now)
{
	union key k = {};
	enum verdict v;

	if (f->out_family == 4) {
		__builtin_memcpy(k.v4.remote, f->out_source, 4);
		__builtin_memcpy(k.v4.local, f->out_destination, 4);
		__builtin_memcpy(k.v4.remote_port, f->out_source_port, 4);
	} else {
		__builtin_memcpy(k.v6.remote, f->out_source, 16);
		__builtin_memcpy(k.v6.local, f->out_destination, 16);
		__builtin_memcpy(k.v6.remote_port, f->out_source_port, 4);
	}
	v = find(f->out_family, &k, found, slot);
	if (v != VERDICTS)
		return v;
	if ((*found)->kind != FLOW_TO_CLIENT)
		return VERDICT_MISS;
	return (*found)->deadline <= now ? VERDICT_EXPIRED : VERDICTS;
}

static __always_inline const struct next_hop *hop_of(const struct flow *f)
{
	__u32 gateway = f->gateway;
	__u64 *at = bpf_map_lookup_elem(&gateways, &gateway);

	if (!at)
		return NULL;
	__u32 index = *(volatile __u64 *)at;
	struct next_hop *hop = bpf_map_lookup_elem(&next_hops, &index);

	return hop && hop->ifindex ? hop : NULL;
}

/* Relays a packet whose flow is found, or says why not. */
static __always_inline enum verdict relay(struct xdp_md *ctx, struct packet *p, struct cpu *c,
					  struct flow *f, __u32 slot, int *action)
{
	__u64 now = boot_time(c);
	enum verdict v = check(ctx, p, f, now);
	struct flow *second = NULL;
	__u32 second_slot = 0;

	if (v != VERDICTS)
		return v;
	struct departure d = {.out = f, .delta = f->delta, .stripped = p->listener};

	d.channel = !p->listener;
	if (f->flags & FLOW_LOCAL_PEER) {
		v = find_peer(f, &second, &second_slot, now);
		if (v != VERDICTS)
			return v;
		d.out = second;
		d.delta = fold((__u64)f->delta + second->delta);
		d.channel = true;
	}
	if (!p->checksum && (f->out_family != 4 || d.out->out_family != 4))
		return VERDICT_NO_CHECKSUM;
	d.hop = hop_of(d.out);
	if (!d.hop)
		return VERDICT_NEXT_HOP;
	__u32 length = departing_length(p, &d);

	if (length > MAX_LENGTH || length > d.hop->mtu || (d.out->mtu && length > d.out->mtu))
		return VERDICT_MTU;
	if ((void *)(long)ctx->data + p->frame > (void *)(long)ctx->data_end &&
	    !(d.hop->flags & NEXT_HOP_BUFFERS))
		return VERDICT_BUFFERS;
	if (p->ttl <= 1)
		return VERDICT_DROP_TTL;
	v = metered(f, p->payload, now);
	if (v == VERDICTS && second)
		v = metered(second, p->payload, now);
	if (v != VERDICTS)
		return v;
	struct counter *u = usage_of(second ? second_slot : slot);

	if (!u)
		return VERDICT_STALE;
	d.usage = u->packets;
	v = rewrite(ctx, p, &d);
	if (v != VERDICTS)
		return v;
	__u32 port = d.hop->port;

	*action = d.hop->ifindex == ctx->ingress_ifindex ? XDP_TX
							 : bpf_redirect_map(&egress, port, 0);
	if (*action != XDP_TX && *action != XDP_REDIRECT)
		return VERDICT_ABORTED;
	u->packets++;
	u->bytes += p->payload;
	if (!second)
		return p->listener ? VERDICT_TO_PEER : VERDICT_TO_CLIENT;
	u = usage_of(slot);
	if (u) {
		u->packets++;
		u->bytes += p->payload;
	}
	return VERDICT_TO_CHANNEL;
}

/* Parses UDP, looks the packet up and relays it. */
static __always_inline enum verdict datagram(struct xdp_md *ctx, struct packet *p, struct cpu *c,
					     int *action)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 header = header_length(p->family);
	void *ip = network_header(p, data, end, header + UDP_LEN);
	struct vlan_ethernet *e = data;
	union key k = {};

	if (!ip || data + ETH_LEN > end)
		return VERDICT_NOT_OURS;
	struct udp *u = ip + header;

	p->listener = is_listener(u->destination);
	if (!p->listener && !is_relayed(u->destination))
		return VERDICT_NOT_OURS;
	p->frame = bpf_xdp_get_buff_len(ctx);
	if (p->udp < UDP_LEN || p->udp != bpf_ntohs(u->length) ||
	    p->network + header + p->udp > p->frame)
		return VERDICT_LENGTH;
	__u32 ifindex = ctx->ingress_ifindex, at = ifindex % INTERFACES;
	struct interface *in = bpf_map_lookup_elem(&interfaces, &at);

	if (!in || in->ifindex != ifindex || !same_station(in->mac, e->destination))
		return VERDICT_MAC;
	p->checksum = u->checksum;
	if (p->family == 4) {
		__builtin_memcpy(k.v4.remote, ((struct ipv4 *)ip)->source, 8);
		__builtin_memcpy(k.v4.remote_port, u, 4);
	} else {
		__builtin_memcpy(k.v6.remote, ((struct ipv6 *)ip)->source, 32);
		__builtin_memcpy(k.v6.remote_port, u, 4);
	}
	enum verdict v = VERDICTS;

	if (p->listener) {
		struct channel *ch = (void *)u + UDP_LEN;
		bool there = (void *)(ch + 1) <= end;

		v = parse_channel_data(ctx, p, there ? ch : NULL, p->network + header);
		if (v == VERDICTS && there) {
			if (p->family == 4)
				*(__u16 *)k.v4.channel = ch->number;
			else
				*(__u16 *)k.v6.channel = ch->number;
		}
	} else {
		p->payload = p->udp - UDP_LEN;
	}
	struct flow *f = NULL;
	__u32 slot = 0;

	if (v == VERDICTS)
		v = find(p->family, &k, &f, &slot);
	if (v == VERDICTS && f)
		v = relay(ctx, p, c, f, slot, action);
	return v > VERDICT_NOT_OURS ? pass_up(ctx, c, p->family, &k, v) : v;
}

SEC("xdp.frags")
int turnstone(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct packet p = {};
	__u32 zero = 0;
	struct cpu *c = bpf_map_lookup_elem(&cpus, &zero);
	enum verdict v = VERDICT_NOT_OURS;
	int action = XDP_PASS;

	if (!c)
		return XDP_PASS;
	switch (parse_link(&p, data, end)) {
	case ETH_P_IP: {
		struct ipv4 *ip = network_header(&p, data, end, IPV4_LEN);

		if (ip)
			v = parse_ipv4(&p, ip);
		if (v == VERDICTS)
			v = datagram(ctx, &p, c, &action);
		break;
	}
	case ETH_P_IPV6: {
		struct ipv6 *ip = network_header(&p, data, end, IPV6_LEN);

		if (ip)
			v = parse_ipv6(&p, ip);
		if (v == VERDICTS)
			v = datagram(ctx, &p, c, &action);
		break;
	}
	}
	if (v >= VERDICTS) /* never: for the verifier */
		return XDP_PASS;
	count(c, v, v <= VERDICT_DROP_METER_TOTAL ? p.payload : 0);
	if (v <= VERDICT_TO_CHANNEL)
		return action;
	if (v == VERDICT_ABORTED)
		return XDP_ABORTED;
	return v < VERDICT_ABORTED ? XDP_DROP : XDP_PASS;
}

/* The boot-time clock as programs read it, in units of 2^20 ns: never attached, only run by the
 * loader. */
SEC("xdp")
int boot_clock(struct xdp_md *ctx)
{
	return bpf_ktime_get_boot_ns() >> 20;
}
