/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where a message stands in its packet. The context that programs see starts with
 * the TCP segment; the strparser knows better, in its part of skb->cb.
 */
#ifndef LB_POSITION_H
#define LB_POSITION_H

#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* Of the kernel's types only what is needed; offsets are relocated at load. */
struct strp_msg {
	int full_len;
	int offset;
} __attribute__((preserve_access_index));

struct _strp_msg {
	struct strp_msg strp;
} __attribute__((preserve_access_index));

struct sk_skb_cb {
	struct _strp_msg strp;
} __attribute__((preserve_access_index));

struct sk_buff {
	char cb[48];
} __attribute__((preserve_access_index));

struct lb_position {
	__u32 length; /* in the verdict; not set in the parser */
	__u32 offset;
};

/* Where in the packet the message stands; nonzero if that cannot be told. */
static __always_inline int lb_position(struct __sk_buff *skb, struct lb_position *position)
{
	struct {
		int full_len;
		int offset;
	} message;

	/* bpf_cast_to_kern_ctx() would do, but 6.1 does not have it. */
	if (bpf_probe_read_kernel(&message, sizeof(message),
				  (void *)skb + bpf_core_field_offset(struct sk_buff, cb) +
					  bpf_core_field_offset(struct sk_skb_cb, strp)))
		return -1;
	position->length = message.full_len;
	position->offset = message.offset;
	return 0;
}

#endif
