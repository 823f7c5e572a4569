/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What TCP knows about a socket. Of the kernel's type only what is needed; offsets are relocated at
 * load. */
#ifndef LB_TCP_H
#define LB_TCP_H

#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>

struct tcp_sock {
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 snd_una;
	__u32 write_seq;
} __attribute__((preserve_access_index));

enum lb_tcp_state {
	LB_TCP_ESTABLISHED = 1,
	LB_TCP_CLOSE_WAIT = 8, /* the peer has sent FIN, and still reads */
};

#endif
