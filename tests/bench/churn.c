// SPDX-License-Identifier: Apache-2.0
/*
 * Connects, sends one message, checks its answer, closes, and begins again; so
 * many connections at a time.
 *
 * A latency is the time from connect() to the whole answer. Bounded in
 * connections and seconds. The first wrong answer, and the first connection
 * that is refused or cut, ends the run.
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
	MAX_CONNECTIONS = 4096,
	MAX_ADDRESSES = 64,
	SIZE = 64,
	EVENTS = 256,
	PATIENCE = 5, /* seconds without any answer */
};

static const uint64_t SECOND = 1000000000;

struct connection {
	int fd;
	uint64_t since;
	uint8_t in[SIZE], out[SIZE];
	size_t filled;
	bool sent;
};

static struct {
	uint32_t connections;
	double seconds, warmup;
	const char *congestion;
	struct sockaddr_in addresses[MAX_ADDRESSES];
	uint32_t address_count;
} plan = { .connections = 16, .seconds = 1, .warmup = 0.5 };

static struct {
	int epoll;
	uint64_t measure, stop;
	uint32_t turn;
	uint32_t open;
	uint64_t answers, measured;
	struct histogram latencies;
} run;

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
}

static void begin(struct connection *c)
{
	const struct sockaddr_in *to = &plan.addresses[run.turn % plan.address_count];
	struct epoll_event event = { .events = EPOLLOUT, .data.ptr = c };

	c->since = now();
	c->filled = 0;
	c->sent = false;
	for (size_t i = 0; i < SIZE; i++)
		c->out[i] = (uint8_t)(i * 7 + run.turn);
	put32(c->out, SIZE - PREFIX);
	put32(c->out + PREFIX, ++run.turn);
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		fail("socket");
	tune(c->fd, plan.congestion);
	if (connect(c->fd, (const struct sockaddr *)to, sizeof(*to)) && errno != EINPROGRESS)
		fail("connect");
	if (epoll_ctl(run.epoll, EPOLL_CTL_ADD, c->fd, &event))
		fail("epoll_ctl");
	run.open++;
}

static void ask(struct connection *c)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = c };

	if (send(c->fd, c->out, SIZE, MSG_NOSIGNAL) != SIZE) /* an empty buffer takes so little */
		fail("send");
	c->sent = true;
	if (epoll_ctl(run.epoll, EPOLL_CTL_MOD, c->fd, &event))
		fail("epoll_ctl");
}

/* True when the answer is complete. */
static bool hear(struct connection *c)
{
	ssize_t n = recv(c->fd, c->in + c->filled, SIZE - c->filled, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n < 0)
		fail("recv");
	if (!n) {
		fprintf(stderr, "after %llu answers: the connection was closed\n",
			(unsigned long long)run.answers);
		exit(1);
	}
	c->filled += (size_t)n;
	if (c->filled < SIZE)
		return false;
	if (memcmp(c->in, c->out, SIZE)) {
		fprintf(stderr, "after %llu answers: another body than the request's\n",
			(unsigned long long)run.answers);
		exit(1);
	}
	return true;
}

static void finish(struct connection *c)
{
	uint64_t time = now();

	close(c->fd);
	run.open--;
	run.answers++;
	if (time >= run.measure && time < run.stop) {
		run.measured++;
		record(&run.latencies, time - c->since);
	}
	if (time < run.stop)
		begin(c);
}

static void work(void)
{
	struct connection *all = allocate(plan.connections * sizeof(*all));
	struct epoll_event events[EVENTS];

	run.epoll = epoll_create1(EPOLL_CLOEXEC);
	if (run.epoll < 0)
		fail("epoll_create1");
	run.measure = now() + (uint64_t)(plan.warmup * (double)SECOND);
	run.stop = run.measure + (uint64_t)(plan.seconds * (double)SECOND);
	for (uint32_t i = 0; i < plan.connections; i++)
		begin(&all[i]);
	while (run.open) {
		int n = epoll_wait(run.epoll, events, EVENTS, PATIENCE * 1000);

		if (n < 0 && errno != EINTR)
			fail("epoll_wait");
		if (!n) {
			fprintf(stderr, "%u answers did not come\n", run.open);
			exit(1);
		}
		for (int i = 0; i < n; i++) {
			struct connection *c = events[i].data.ptr;

			if (!c->sent)
				ask(c);
			else if (hear(c))
				finish(c);
		}
	}
}

static void report(void)
{
	printf("{\"messages_per_second\": %.1f, \"messages\": %llu, \"answers\": %llu,"
	       " \"missing\": 0, \"unsent\": 0, \"latency_us\": ",
	       (double)run.measured / plan.seconds, (unsigned long long)run.measured,
	       (unsigned long long)run.answers);
	print_latencies(&run.latencies);
	printf("}\n");
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "connections", required_argument, NULL, 'c' },
		{ "seconds", required_argument, NULL, 't' },
		{ "warmup", required_argument, NULL, 'w' },
		{ "congestion", required_argument, NULL, 'g' },
		{},
	};
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 'c')
			plan.connections = (uint32_t)number(optarg, 1, MAX_CONNECTIONS);
		else if (option == 't')
			plan.seconds = number(optarg, 0.1, 600);
		else if (option == 'w')
			plan.warmup = number(optarg, 0, 60);
		else if (option == 'g')
			plan.congestion = optarg;
		else
			refuse("usage: churn [--connections N] [--seconds S] [--warmup S]"
			       " [--congestion NAME] ADDRESS:PORT...");
	}
	for (; optind < argc && plan.address_count < MAX_ADDRESSES; optind++)
		plan.addresses[plan.address_count++] = address(argv[optind]);
	if (!plan.address_count)
		refuse("give at least one ADDRESS:PORT");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	work();
	report();
	return 0;
}
