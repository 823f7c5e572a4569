/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Slots: whose a packet is, whom a reference means, and whether its socket lives. */
#ifndef LB_SLOT_H
#define LB_SLOT_H

#include <stdbool.h>

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

enum lb_tcp_state {
	LB_TCP_ESTABLISHED = 1,
	LB_TCP_CLOSE_WAIT = 8, /* the peer has sent FIN, and still reads */
};

/* Whether the socket in a slot is in one of the TCP states (a bit for each). */
static __always_inline bool lb_alive(__u32 number, __u32 states)
{
	struct bpf_sock *sock = bpf_map_lookup_elem(&lb_socks, &number);
	__u32 state;

	if (!sock)
		return false;
	state = sock->state;
	bpf_sk_release(sock);
	return states & (1U << (state & 31));
}

#endif
