/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The strparser's timer: how long the rest of a message may take (SO_RCVTIMEO). */
#ifndef LB_TIMER_H
#define LB_TIMER_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lb_tcp.h"

/*
 * Whether the strparser, told this length of an incomplete message, would wait for
 * the rest without a limit. It starts its timer only for a length above all that
 * TCP holds unread, and that includes the earlier messages of the same segment, or
 * those that user space has not read yet: __strp_recv() in net/strparser/strparser.c,
 * tcp_inq() in include/net/tcp.h.
 */
static __always_inline bool lb_untimed(struct __sk_buff *skb, __u32 length)
{
	struct bpf_sock *sock = skb->sk;
	struct tcp_sock *tcp;

	if (!sock)
		return false;
	tcp = bpf_skc_to_tcp_sock(sock);
	return tcp && length <= tcp->rcv_nxt - tcp->copied_seq;
}

#endif
