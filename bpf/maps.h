/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "structs.h"

/*
 * Sizes marked "set" are set by the loader before it creates the maps. The indices are
 * never LRU: a live channel is not evicted.
 */

#define INTERFACES 256

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set */
	__type(key, struct flow_key4);
	__type(value, struct slot_ref);
} index4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set */
	__type(key, struct flow_key6);
	__type(value, struct slot_ref);
} index6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* set */
	__type(key, __u32);
	__type(value, struct flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* set */
	__type(key, __u32);
	__type(value, struct owner);
} owners SEC(".maps");

/*
 * A counter for each slot and CPU, at slot * cpu_count + CPU. A per-CPU array would be the same to
 * the program; but its elements are allocated one by one, and cannot be mapped.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* set */
	__type(key, __u32);
	__type(value, struct counter);
} usage SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* set */
	__type(key, __u32);
	__type(value, struct meter);
} meters SEC(".maps");

/* Gateway to next hop: one 32-bit store moves all flows of a gateway. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u64);
} gateways SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct next_hop);
} next_hops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, INTERFACES);
	__type(key, __u32);
	__type(value, __u32);
} egress SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, INTERFACES);
	__type(key, __u32);
	__type(value, struct interface);
} interfaces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cpu);
} cpus SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct projection);
} meta SEC(".maps");

/* Settings of one load of the program. */
#define LISTENER_PORTS 8
volatile const __u16 listener_ports[LISTENER_PORTS]; /* wire order, 0: none */
volatile const __u16 relay_first;		     /* host order; 0: none */
volatile const __u16 relay_last;
volatile const __u32 cpu_count; /* possible CPUs */

/*
 * Has a record taken whose key is another's: the test of recycled slots shows by it that it would
 * notice. Nothing else sets it.
 */
volatile const __u8 unkeyed;

/* For the generator, which takes only types that something has. */
const enum verdict *verdict_type __attribute__((unused));
const enum flow_kind *flow_kind_type __attribute__((unused));
