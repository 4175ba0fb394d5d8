/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
#pragma once

#include <linux/types.h>

/*
 * One's complement arithmetic (RFC 1071) over 16-bit words as they lie in memory:
 * it does not care for byte order as long as every term is in the same.
 */

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* The term that takes word out of a sum. */
static __always_inline __u64 without(__u16 word)
{
	return (__u16)~word;
}
