// SPDX-License-Identifier: Apache-2.0
/*
 * Sends messages over many connections and checks each answer.
 *
 * Theory. Each connection has `depth` places for a message on its way. An id is
 * made of the connection, the place and a turn, and the body starts with a stamp
 * that is unique in the whole run and ends with the id: an answer that is lost,
 * doubled, cut, or somebody else's does not match the place that its id names.
 *
 * Closed loop (no --rate): a place that comes free is used again at once; a
 * latency counts if its answer arrives in the measured time.
 *
 * Open loop (--rate): message k is due at start + k / rate, on connection k mod
 * connections. Its latency counts from then, whenever it could be sent: a stall
 * delays many messages, and all of them say so (no coordinated omission). What
 * was due and never sent counts with the time that it had waited.
 *
 * Bounded: connections, depth, bytes and seconds have limits, and so has the
 * wait for the last answers. The first wrong answer ends the run.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "histogram.h"
#include "wire.h"

enum {
	PLACE_BITS = 10,
	CONNECTION_BITS = 12,
	MAX_DEPTH = 1 << PLACE_BITS,
	MAX_CONNECTIONS = 1 << CONNECTION_BITS,
	MAX_ADDRESSES = 64,
	LEAST_MESSAGE = HEADER + 8 + 4, /* stamp at the start of the body, id at its end */
	LEAST_BUFFER = 64 << 10,
	EVENTS = 256,
	PATIENCE = 5, /* seconds for the last answers */
};

static const uint64_t SECOND = 1000000000;
static const uint64_t MAX_BYTES = 256 << 20; /* in all send buffers */

struct place {
	uint64_t since;
	uint64_t stamp;
	uint32_t id;
	uint32_t turn;
	bool taken;
};

struct connection {
	int fd;
	uint32_t index;
	struct place *places;
	uint16_t *free; /* a stack of places */
	uint32_t free_count;
	uint64_t due, issued; /* open loop: messages whose time has come, and that were sent */
	uint8_t *in;
	size_t filled;
	uint8_t *out;
	size_t from, to;
	bool blocked;
};

static struct {
	uint32_t connections, depth;
	size_t size;
	double seconds, warmup, rate;
	const char *congestion;
	struct sockaddr_in addresses[MAX_ADDRESSES];
	uint32_t address_count;
} plan = { .connections = 1, .depth = 1, .size = 64, .seconds = 1, .warmup = 0.5 };

static struct {
	int epoll;
	uint64_t start, measure, stop; /* times */
	uint64_t due; /* open loop: messages whose time has come */
	uint64_t stamp;
	uint64_t outstanding, answers, measured;
	size_t in_capacity, out_capacity;
	uint8_t *template;
	struct connection *connections;
	struct histogram latencies;
} run;

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

_Noreturn static void wrong(const struct connection *c, const char *what)
{
	fprintf(stderr, "connection %u, after %llu answers: %s\n", c->index,
		(unsigned long long)run.answers, what);
	exit(1);
}

static uint64_t due_at(uint64_t message)
{
	return run.start + (uint64_t)((double)message / plan.rate * (double)SECOND);
}

static void flush(struct connection *c)
{
	bool blocked = false;

	while (c->from < c->to && !blocked) {
		ssize_t n =
			send(c->fd, c->out + c->from, c->to - c->from, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n >= 0)
			c->from += (size_t)n;
		else if (errno == EAGAIN)
			blocked = true;
		else if (errno != EINTR)
			wrong(c, strerror(errno));
	}
	if (c->from == c->to)
		c->from = c->to = 0;
	if (blocked != c->blocked) {
		struct epoll_event event = { .events = blocked ? EPOLLIN | EPOLLOUT : EPOLLIN,
					     .data.ptr = c };

		if (epoll_ctl(run.epoll, EPOLL_CTL_MOD, c->fd, &event))
			fail("epoll_ctl");
		c->blocked = blocked;
	}
}

static void append(struct connection *c, uint64_t since)
{
	uint32_t index = c->free[--c->free_count];
	struct place *place = &c->places[index];
	uint8_t *message;

	if (c->to + plan.size > run.out_capacity) {
		memmove(c->out, c->out + c->from, c->to - c->from);
		c->to -= c->from;
		c->from = 0;
	}
	place->taken = true;
	place->since = since;
	place->stamp = ++run.stamp;
	place->id = place->turn++ << (PLACE_BITS + CONNECTION_BITS) | c->index << PLACE_BITS |
		    index;
	message = c->out + c->to;
	memcpy(message, run.template, plan.size);
	put32(message + PREFIX, place->id);
	memcpy(message + HEADER, &place->stamp, sizeof(place->stamp));
	put32(message + plan.size - 4, place->id);
	c->to += plan.size;
	run.outstanding++;
}

/* Sends what may be sent on a connection now. */
static void pump(struct connection *c, uint64_t time)
{
	while (c->free_count && time < run.stop) {
		uint64_t since = time;

		if (plan.rate > 0) {
			if (c->issued == c->due)
				break;
			since = due_at(c->index + c->issued * plan.connections);
		}
		append(c, since);
		c->issued++;
	}
	flush(c);
}

static void check(struct connection *c, const uint8_t *message, uint64_t time)
{
	uint32_t id = get32(message + PREFIX), index = id & (MAX_DEPTH - 1);
	struct place *place = &c->places[index];
	bool counts;

	if (index >= plan.depth || !place->taken || place->id != id)
		wrong(c, "an answer has an id that nothing waits for");
	if (memcmp(message + HEADER, &place->stamp, sizeof(place->stamp)) ||
	    get32(message + plan.size - 4) != id)
		wrong(c, "an answer has another body than its request");
	place->taken = false;
	c->free[c->free_count++] = (uint16_t)index;
	run.outstanding--;
	run.answers++;
	counts = time >= run.measure && time < run.stop;
	run.measured += counts;
	if (plan.rate > 0)
		counts = place->since >= run.measure && place->since < run.stop;
	if (counts)
		record(&run.latencies, time - place->since);
}

static void receive(struct connection *c)
{
	size_t at = 0;
	uint64_t time;
	ssize_t n = recv(c->fd, c->in + c->filled, run.in_capacity - c->filled, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
		wrong(c, n ? strerror(errno) : "the connection was closed");
	c->filled += (size_t)n;
	time = now();
	while (c->filled - at >= PREFIX) {
		if (get32(c->in + at) != plan.size - PREFIX)
			wrong(c, "an answer has another length than its request");
		if (c->filled - at < plan.size)
			break;
		check(c, c->in + at, time);
		at += plan.size;
	}
	if (at) {
		memmove(c->in, c->in + at, c->filled - at);
		c->filled -= at;
		pump(c, time);
	}
}

static void connect_all(void)
{
	run.in_capacity = plan.size * 2 > LEAST_BUFFER ? plan.size * 2 : LEAST_BUFFER;
	run.out_capacity = plan.size * plan.depth;
	run.template = allocate(plan.size);
	for (size_t i = 0; i < plan.size; i++)
		run.template[i] = (uint8_t)(i * 7);
	put32(run.template, (uint32_t)plan.size - PREFIX);
	run.connections = allocate(plan.connections * sizeof(*run.connections));
	run.epoll = epoll_create1(EPOLL_CLOEXEC);
	if (run.epoll < 0)
		fail("epoll_create1");
	for (uint32_t i = 0; i < plan.connections; i++) {
		struct connection *c = &run.connections[i];
		const struct sockaddr_in *to = &plan.addresses[i % plan.address_count];
		struct timeval limit = { .tv_sec = PATIENCE }; /* for connect() */
		struct epoll_event event = { .events = EPOLLIN, .data.ptr = c };

		c->index = i;
		c->in = allocate(run.in_capacity);
		c->out = allocate(run.out_capacity);
		c->places = allocate(plan.depth * sizeof(*c->places));
		c->free = allocate(plan.depth * sizeof(*c->free));
		while (c->free_count < plan.depth) {
			c->free[c->free_count] = (uint16_t)c->free_count;
			c->free_count++;
		}
		c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (c->fd < 0)
			fail("socket");
		tune(c->fd, plan.congestion);
		if (setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) ||
		    connect(c->fd, (const struct sockaddr *)to, sizeof(*to)))
			fail("connect");
		if (epoll_ctl(run.epoll, EPOLL_CTL_ADD, c->fd, &event))
			fail("epoll_ctl");
	}
}

/* Open loop: gives the messages whose time has come to their connections. */
static void become_due(uint64_t time)
{
	while (due_at(run.due) <= time && due_at(run.due) < run.stop)
		run.connections[run.due++ % plan.connections].due++;
}

/* Open loop: sends what became due, all of one connection at once. */
static void send_due(uint64_t time)
{
	uint64_t first = run.due, touched;

	become_due(time);
	touched = run.due - first;
	if (touched > plan.connections)
		touched = plan.connections;
	for (uint64_t i = 0; i < touched; i++)
		pump(&run.connections[(first + i) % plan.connections], time);
}

/* Until what the loop should sleep, if nothing arrives. */
static uint64_t next_event(uint64_t time)
{
	if (time >= run.stop)
		return run.stop + PATIENCE * SECOND;
	if (plan.rate > 0 && due_at(run.due) < run.stop)
		return due_at(run.due);
	return run.stop;
}

static void work(void)
{
	struct epoll_event events[EVENTS];
	uint64_t time;

	run.start = now();
	run.measure = run.start + (uint64_t)(plan.warmup * (double)SECOND);
	run.stop = run.measure + (uint64_t)(plan.seconds * (double)SECOND);
	for (uint32_t i = 0; plan.rate == 0 && i < plan.connections; i++)
		pump(&run.connections[i], run.start);
	while (time = now(), time < run.stop || run.outstanding) {
		struct timespec wait;
		uint64_t until;
		int n;

		if (time >= run.stop + PATIENCE * SECOND)
			break;
		if (plan.rate > 0)
			send_due(time);
		until = next_event(time);
		until = until > time ? until - time : 0;
		wait.tv_sec = (time_t)(until / SECOND);
		wait.tv_nsec = (long)(until % SECOND);
		n = epoll_pwait2(run.epoll, events, EVENTS, &wait, NULL);
		if (n < 0 && errno != EINTR)
			fail("epoll_pwait2");
		for (int i = 0; i < n; i++) {
			struct connection *c = events[i].data.ptr;

			if (events[i].events & EPOLLOUT)
				flush(c);
			if (events[i].events & ~(uint32_t)EPOLLOUT)
				receive(c);
		}
	}
}

/* What was due and never sent; it enters the latencies with the time that it waited. */
static uint64_t count_unsent(void)
{
	uint64_t unsent = 0;

	if (plan.rate > 0)
		become_due(run.stop);
	for (uint32_t i = 0; plan.rate > 0 && i < plan.connections; i++) {
		struct connection *c = &run.connections[i];

		for (; c->issued < c->due; c->issued++, unsent++) {
			uint64_t since = due_at(c->index + c->issued * plan.connections);

			if (since >= run.measure)
				record(&run.latencies, run.stop - since);
		}
	}
	return unsent;
}

static void report(void)
{
	uint64_t unsent = count_unsent();

	printf("{\"messages_per_second\": %.1f, \"messages\": %llu, \"answers\": %llu,"
	       " \"missing\": %llu, \"unsent\": %llu, \"latency_us\": ",
	       (double)run.measured / plan.seconds, (unsigned long long)run.measured,
	       (unsigned long long)run.answers, (unsigned long long)run.outstanding,
	       (unsigned long long)unsent);
	print_latencies(&run.latencies);
	printf("}\n");
}

static void read_options(int argc, char **argv)
{
	static const struct option options[] = {
		{ "connections", required_argument, NULL, 'c' },
		{ "depth", required_argument, NULL, 'd' },
		{ "size", required_argument, NULL, 's' },
		{ "seconds", required_argument, NULL, 't' },
		{ "warmup", required_argument, NULL, 'w' },
		{ "rate", required_argument, NULL, 'r' },
		{ "congestion", required_argument, NULL, 'g' },
		{},
	};
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 'c')
			plan.connections = (uint32_t)number(optarg, 1, MAX_CONNECTIONS);
		else if (option == 'd')
			plan.depth = (uint32_t)number(optarg, 1, MAX_DEPTH);
		else if (option == 's')
			plan.size = (size_t)number(optarg, LEAST_MESSAGE, MAX_MESSAGE);
		else if (option == 't')
			plan.seconds = number(optarg, 0.1, 600);
		else if (option == 'w')
			plan.warmup = number(optarg, 0, 60);
		else if (option == 'r')
			plan.rate = number(optarg, 1, 1e7);
		else if (option == 'g')
			plan.congestion = optarg;
		else
			refuse("usage: load [--connections N] [--depth N] [--size BYTES] [--seconds S]"
			       " [--warmup S] [--rate PER_SECOND] [--congestion NAME] ADDRESS:PORT...");
	}
	for (; optind < argc && plan.address_count < MAX_ADDRESSES; optind++)
		plan.addresses[plan.address_count++] = address(argv[optind]);
	if (!plan.address_count)
		refuse("give at least one ADDRESS:PORT");
	if (plan.size * plan.depth * plan.connections > MAX_BYTES)
		refuse("size x depth x connections must stay below 256 MiB");
}

int main(int argc, char **argv)
{
	read_options(argc, argv);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_TIMERSLACK, 1000UL); /* an open loop sends on time */
	connect_all();
	work();
	report();
	return run.outstanding ? 1 : 0;
}
