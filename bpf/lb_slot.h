/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Slots: whose a packet is, and whom a reference means. */
#ifndef LB_SLOT_H
#define LB_SLOT_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_maps.h"

/* The slot of the socket that the packet arrived on, or NULL. */
static __always_inline struct lb_slot *lb_source(struct __sk_buff *skb, __u32 *number)
{
	__u64 cookie = bpf_get_socket_cookie(skb);
	struct lb_conn *conn = bpf_map_lookup_elem(&lb_conns, &cookie);
	struct lb_slot *slot;

	if (!conn)
		return NULL;
	*number = conn->slot;
	slot = bpf_map_lookup_elem(&lb_slots, number);
	if (!slot || slot->generation != conn->generation)
		return NULL;
	return slot;
}

/* The slot that a reference means, or NULL when the slot has moved on. */
static __always_inline struct lb_slot *lb_slot_of(__u32 number, __u32 generation)
{
	struct lb_slot *slot = bpf_map_lookup_elem(&lb_slots, &number);

	if (!slot || !generation || *(volatile __u32 *)&slot->generation != generation)
		return NULL;
	return slot;
}

#endif
