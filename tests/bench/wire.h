/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the echo backend and the load generator share: the message's header, and
 * sockets that stay on this machine.
 *
 * A message is a 32-bit big-endian length (of what follows it), a 32-bit id, and
 * a body: the preset `length-prefixed`.
 */
#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum {
	PREFIX = 4, /* the length field, which does not count itself */
	HEADER = 8, /* length and id */
	MAX_MESSAGE = (1 << 20) + PREFIX,
};

_Noreturn static inline void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

_Noreturn static inline void refuse(const char *what)
{
	fprintf(stderr, "%s\n", what);
	exit(2);
}

static inline void *allocate(size_t size)
{
	void *memory = calloc(1, size);

	if (!memory)
		fail("calloc");
	return memory;
}

static inline uint32_t get32(const uint8_t *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof(value));
	return ntohl(value);
}

static inline void put32(uint8_t *at, uint32_t value)
{
	value = htonl(value);
	memcpy(at, &value, sizeof(value));
}

/* A number of the command line, within its bounds. */
static inline double number(const char *text, double least, double most)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value >= least && value <= most)) {
		fprintf(stderr, "%s: must be a number from %g to %g\n", text, least, most);
		exit(2);
	}
	return value;
}

/* ADDRESS:PORT; only loopback, and 198.18.0.0/15, which is set aside for benchmarks (RFC 2544). */
static inline struct sockaddr_in address(const char *text)
{
	struct sockaddr_in parsed = { .sin_family = AF_INET };
	char host[INET_ADDRSTRLEN] = "";
	const char *colon = strrchr(text, ':');
	uint32_t bits;

	if (colon && (size_t)(colon - text) < sizeof(host))
		memcpy(host, text, (size_t)(colon - text));
	if (!colon || inet_pton(AF_INET, host, &parsed.sin_addr) != 1)
		refuse("an address is IPV4:PORT");
	bits = ntohl(parsed.sin_addr.s_addr);
	if (bits >> 24 != 127 && bits >> 17 != (198U << 24 | 18U << 16) >> 17)
		refuse("only addresses in 127.0.0.0/8 and 198.18.0.0/15 are allowed");
	parsed.sin_port = htons((uint16_t)number(colon + 1, 0, 65535));
	return parsed;
}

/* No waiting for more to send, and the congestion control of the command line (NULL: the default). */
static inline void tune(int fd, const char *congestion)
{
	int one = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)))
		fail("TCP_NODELAY");
	if (congestion &&
	    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion, (socklen_t)strlen(congestion)))
		fail("TCP_CONGESTION");
}

#endif
