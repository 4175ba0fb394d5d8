//go:build ignore

/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the datapath is measured against and with: a bare bounce, the same with a route lookup, and
 * the two ends of a road, which make packets and take them. The daemon never loads them.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char __license[] SEC("license") = "Dual BSD/GPL";

#define AF_INET	 2
#define AF_INET6 10

volatile const __u32 fib_flags;	  /* of bpf_fib_lookup */
volatile const __u32 fib_ifindex; /* where frames are said to arrive, 0: where they do */

static __always_inline void swap16(__u16 *a, __u16 *b)
{
	__u16 t = *a;

	*a = *b;
	*b = t;
}

static __always_inline void swap32(__u32 *a, __u32 *b)
{
	__u32 t = *a;

	*a = *b;
	*b = t;
}

/* Where the UDP header of a frame lies, NULL where there is none. */
static __always_inline struct udphdr *find_udp(void *data, void *end)
{
	struct ethhdr *e = data;
	struct udphdr *u;

	if ((void *)(e + 1) > end)
		return NULL;
	if (e->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(e + 1);

		u = (void *)(ip + 1);
		return (void *)(u + 1) <= end && ip->ihl == 5 && ip->protocol == IPPROTO_UDP ? u
											     : NULL;
	}
	if (e->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(e + 1);

		u = (void *)(ip + 1);
		return (void *)(u + 1) <= end && ip->nexthdr == IPPROTO_UDP ? u : NULL;
	}
	return NULL;
}

/* Swaps ports and IP addresses, which leaves all checksums as they are. */
static __always_inline bool swap_addresses(void *data, void *end)
{
	struct ethhdr *e = data;
	struct udphdr *u = find_udp(data, end);

	if (!u || data + sizeof(*e) + sizeof(struct ipv6hdr) > end)
		return false;
	if (e->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(e + 1);

		swap32(&ip->saddr, &ip->daddr);
	} else {
		struct ipv6hdr *ip = (void *)(e + 1);

		for (int i = 0; i < 4; i++)
			swap32(&ip->saddr.in6_u.u6_addr32[i], &ip->daddr.in6_u.u6_addr32[i]);
	}
	swap16(&u->source, &u->dest);
	return true;
}

/* Sends a packet back to where it came from. */
SEC("xdp")
int bounce(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u16 *e = data;

	if (!swap_addresses(data, end) || data + ETH_HLEN > end)
		return XDP_PASS;
	for (int i = 0; i < 3; i++)
		swap16(e + i, e + 3 + i);
	return XDP_TX;
}

/* The same, to where the routes say. */
SEC("xdp")
int bounce_fib(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct bpf_fib_lookup fib = {};
	struct ethhdr *e = data;

	if (!swap_addresses(data, end) || data + sizeof(*e) + sizeof(struct ipv6hdr) > end)
		return XDP_PASS;
	if (e->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(e + 1);

		fib.family = AF_INET;
		fib.tos = ip->tos;
		fib.tot_len = bpf_ntohs(ip->tot_len);
		fib.ipv4_src = ip->saddr;
		fib.ipv4_dst = ip->daddr;
	} else {
		struct ipv6hdr *ip = (void *)(e + 1);

		fib.family = AF_INET6;
		fib.flowinfo = *(__be32 *)ip & bpf_htonl(0x0fffffff);
		fib.tot_len = bpf_ntohs(ip->payload_len) + sizeof(*ip);
		__builtin_memcpy(fib.ipv6_src, &ip->saddr, 16);
		__builtin_memcpy(fib.ipv6_dst, &ip->daddr, 16);
	}
	fib.l4_protocol = IPPROTO_UDP;
	__u32 ifindex = fib_ifindex ? fib_ifindex : ctx->ingress_ifindex;

	fib.ifindex = ifindex;
	if (bpf_fib_lookup(ctx, &fib, sizeof(fib), fib_flags) != BPF_FIB_LKUP_RET_SUCCESS)
		return XDP_PASS;
	__builtin_memcpy(e->h_dest, fib.dmac, 6);
	__builtin_memcpy(e->h_source, fib.smac, 6);
	return fib.ifindex == ifindex ? XDP_TX : bpf_redirect(fib.ifindex, 0);
}

/*
 * One end of the road. Frames that are run live keep what was written to them: each becomes a copy
 * of the template again. A word of its source tells its flow, as another may of its destination.
 * What they add to sums is taken back by the first word of the payload, and the identification;
 * likewise the time by its opposite.
 */
#define TEMPLATE_WORDS 10
#define DESTINATIONS   64

volatile const __u64 template[TEMPLATE_WORDS];
volatile const __u32 template_words; /* at most that many, and no more than a frame has */
volatile const __u32 flow_mask;	     /* number of flows, a power of two, less one */
volatile const __u32 source_at;	     /* offset of the source's word; 0 for none below */
volatile const __u32 id_at;
volatile const __u32 destination_at;
volatile const __u16 destinations[DESTINATIONS]; /* wire order */
volatile const __u32 payload_at;
volatile const __u32 stamped; /* whether frames carry the time at which they are made */

__u32 sequence;

/* What a payload begins with. */
struct mark {
	__u16 opposite;
	__u16 zero;
	__u64 time;
	__u64 untime;
} __attribute__((packed, aligned(2)));

static __always_inline bool put(void *data, void *end, __u32 at, __u16 word)
{
	at &= 0xff;
	if (data + at + 2 > end)
		return false;
	*(__u16 *)(data + at) = word;
	return true;
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 flow = (sequence++ * 40503u) & flow_mask, sum;
	__u16 source = bpf_htons(flow);

	for (int i = 0; i < TEMPLATE_WORDS; i++) {
		__u64 *to = (__u64 *)data + i;

		if (i >= template_words || (void *)(to + 1) > end)
			break;
		*to = template[i];
	}
	if (!put(data, end, source_at, source) || (id_at && !put(data, end, id_at, ~source)))
		return XDP_ABORTED;
	sum = source;
	if (destination_at) {
		__u16 destination = destinations[flow & (DESTINATIONS - 1)];

		if (!put(data, end, destination_at, destination))
			return XDP_ABORTED;
		sum += destination;
		sum = (sum & 0xffff) + (sum >> 16);
	}
	__u32 at = payload_at & 0xff;
	struct mark *m = data + at;

	if ((void *)(m + 1) > end)
		return XDP_ABORTED;
	m->opposite = ~sum;
	m->zero = 0;
	if (stamped) {
		m->time = bpf_ktime_get_ns();
		m->untime = ~m->time;
	}
	return XDP_TX;
}

/* The other end: UDP is counted and dropped. */
volatile const __u16 sink_ports[2]; /* what is to them alone, wire order; 0: all of it */
volatile const __u32
	sink_at; /* offset of the payload where frames are taken, 0: no times are read */

#define LATENCY_UNIT	16 /* ns */
#define LATENCY_BUCKETS 16384
#define SINK_CPUS	64

struct sunk {
	__u64 packets;
	__u64 bytes; /* of frames */
	__u64 zero[6];
};

struct sunk sunk[SINK_CPUS];
__u64 latencies[LATENCY_BUCKETS]; /* the last one: longer, or no time */

static __always_inline bool sink(void *data, void *end, __u32 length, __u32 packets)
{
	struct udphdr *u = find_udp(data, end);

	if (!u || (sink_ports[0] && u->dest != sink_ports[0] && u->dest != sink_ports[1]))
		return false;
	struct sunk *s = &sunk[bpf_get_smp_processor_id() & (SINK_CPUS - 1)];

	s->packets += packets;
	s->bytes += length;
	if (!sink_at)
		return true;
	__u32 at = sink_at & 0xff;
	struct mark *m = data + at;
	__u64 bucket = LATENCY_BUCKETS - 1;

	if ((void *)(m + 1) <= end && m->time == ~m->untime)
		bucket = (bpf_ktime_get_ns() - m->time) / LATENCY_UNIT;
	if (bucket >= LATENCY_BUCKETS)
		bucket = LATENCY_BUCKETS - 1;
	__sync_fetch_and_add(&latencies[bucket], 1);
	return true;
}

SEC("xdp")
int sink_frame(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	return sink(data, end, end - data, 1) ? XDP_DROP : XDP_PASS;
}

/* The same behind the stack's own receiver, for what a socket has sent: trains of packets too. */
SEC("tcx/ingress")
int sink_packet(struct __sk_buff *skb)
{
	if (bpf_skb_pull_data(skb, 80 < skb->len ? 80 : skb->len))
		return -1; /* TCX_NEXT */
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	return sink(data, end, skb->len, skb->gso_segs ? skb->gso_segs : 1) ? 2 /* TCX_DROP */ : -1;
}
