/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Room: may one more message be sent to a socket?
 *
 * The kernel neither limits nor accounts what is redirected to a socket, and it
 * reports success for one that is dead. What waits for a socket (its backlog) is
 * exactly what was redirected to it less what TCP has taken into its send queue,
 * which is how far write_seq has come since the first redirect: nobody but the
 * kernel writes to a mapped socket.
 */
#ifndef LB_ROOM_H
#define LB_ROOM_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_abi.h"
#include "lb_maps.h"
#include "lb_tcp.h"

enum {
	LB_CLIENT_STATES = 1U << LB_TCP_ESTABLISHED | 1U << LB_TCP_CLOSE_WAIT,
};

struct lb_room {
	bool alive;
	__u32 backlog; /* bytes that are not in the send queue yet */
	__u32 unacknowledged; /* bytes of the send queue */
};

/*
 * The socket in a slot, which must be in one of the TCP states (a bit for each).
 * The first call fixes what the backlog is counted from: whoever comes first does
 * so before anything was redirected, because redirects follow a look at the room.
 */
static __always_inline struct lb_room lb_room(__u32 number, struct lb_slot *slot, __u32 states)
{
	struct bpf_sock *sock = bpf_map_lookup_elem(&lb_socks, &number);
	struct lb_room room = {};
	__u32 written, acknowledged;
	struct tcp_sock *tcp;
	__u64 base;

	if (!sock)
		return room;
	room.alive = states & (1U << (sock->state & 31));
	tcp = bpf_skc_to_tcp_sock(sock);
	if (!tcp) {
		bpf_sk_release(sock);
		room.alive = false;
		return room;
	}
	written = tcp->write_seq;
	acknowledged = tcp->snd_una;
	bpf_sk_release(sock);

	base = *(volatile __u64 *)&slot->base;
	if (!base) {
		base = 1ULL << 32 | written;
		__sync_val_compare_and_swap(&slot->base, 0, base);
		base = *(volatile __u64 *)&slot->base;
	}
	room.unacknowledged = written - acknowledged;
	/* Redirected is read after written, so the difference is never negative, but for our FIN. */
	room.backlog =
		(__u32) * (volatile __u64 *)&slot->redirected_bytes - (written - (__u32)base);
	if ((__s32)room.backlog < 0)
		room.backlog = 0;
	return room;
}

static __always_inline bool lb_full(const struct lb_room *room, const struct lb_slot *slot)
{
	return room->backlog >= *(volatile __u32 *)&slot->budget;
}

#endif
