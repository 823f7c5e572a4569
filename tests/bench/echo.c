// SPDX-License-Identifier: Apache-2.0
/*
 * A backend that answers each message with the same bytes.
 *
 * Whole messages are sent back straight from the receive buffer; while the peer
 * does not take them, nothing more is read, so memory stays bounded.
 *
 * Prints its address when it listens, with --every how many messages it has
 * answered so far, and on SIGTERM, with --count, what it has done. Ends
 * with its parent.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "wire.h"

enum {
	EVENTS = 256,
	FIRST_BUFFER = 16 << 10,
	BACKLOG = 4096,
};

struct connection {
	int fd;
	uint8_t *buffer;
	size_t capacity;
	size_t sent; /* answered up to here */
	size_t whole; /* whole messages up to here */
	size_t filled;
	bool blocked; /* waits for room to send, not for bytes */
};

static uint64_t messages, connections, malformed;
static bool counting;
static uint64_t epoch; /* when the timer of --every was started */

static void watch(int epoll, int operation, int fd, uint32_t events, void *who)
{
	struct epoll_event event = { .events = events, .data.ptr = who };

	if (epoll_ctl(epoll, operation, fd, &event))
		fail("epoll_ctl");
}

static void end(struct connection *c)
{
	close(c->fd);
	free(c->buffer);
	free(c);
}

/* Makes room to read; true if there is any. */
static bool make_room(struct connection *c)
{
	if (c->sent == c->filled) {
		c->sent = c->whole = c->filled = 0;
	} else if (c->filled == c->capacity && c->sent) {
		memmove(c->buffer, c->buffer + c->sent, c->filled - c->sent);
		c->filled -= c->sent;
		c->whole -= c->sent;
		c->sent = 0;
	}
	if (c->filled == c->capacity && c->capacity < 2 * MAX_MESSAGE) {
		c->capacity = c->capacity ? 2 * c->capacity : FIRST_BUFFER;
		c->buffer = realloc(c->buffer, c->capacity);
		if (!c->buffer)
			fail("realloc");
	}
	return c->filled < c->capacity;
}

/* Finds the whole messages in what was received; false if they are malformed. */
static bool measure(struct connection *c)
{
	while (c->filled - c->whole >= PREFIX) {
		size_t length = (size_t)get32(c->buffer + c->whole) + PREFIX;

		if (length < HEADER || length > MAX_MESSAGE)
			return false;
		if (c->filled - c->whole < length)
			break;
		c->whole += length;
		messages++;
	}
	return true;
}

/* Sends what is whole; false if the connection is over. */
static bool answer(int epoll, struct connection *c)
{
	bool blocked = false;

	while (c->sent < c->whole && !blocked) {
		ssize_t n = send(c->fd, c->buffer + c->sent, c->whole - c->sent, MSG_NOSIGNAL);

		if (n >= 0)
			c->sent += (size_t)n;
		else if (errno == EAGAIN)
			blocked = true;
		else if (errno != EINTR)
			return false;
	}
	if (blocked != c->blocked)
		watch(epoll, EPOLL_CTL_MOD, c->fd, blocked ? EPOLLOUT : EPOLLIN, c);
	c->blocked = blocked;
	return true;
}

static bool serve(int epoll, struct connection *c)
{
	ssize_t n;

	if (c->blocked)
		return answer(epoll, c);
	if (!make_room(c))
		return false;
	n = recv(c->fd, c->buffer + c->filled, c->capacity - c->filled, 0);
	if (n <= 0)
		return n < 0 && (errno == EAGAIN || errno == EINTR);
	c->filled += (size_t)n;
	if (!measure(c)) {
		malformed++;
		return false;
	}
	return answer(epoll, c);
}

static void admit(int epoll, int listener, const char *congestion)
{
	int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	struct connection *c;

	if (fd < 0) {
		if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
			return;
		fail("accept");
	}
	tune(fd, congestion);
	c = allocate(sizeof(*c));
	c->fd = fd;
	connections++;
	watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, c);
}

static int listen_at(const char *where)
{
	struct sockaddr_in name = address(where);
	socklen_t length = sizeof(name);
	char host[INET_ADDRSTRLEN];
	int one = 1, fd;

	fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    bind(fd, (struct sockaddr *)&name, length) || listen(fd, BACKLOG) ||
	    getsockname(fd, (struct sockaddr *)&name, &length))
		fail(where);
	inet_ntop(AF_INET, &name.sin_addr, host, sizeof(host));
	printf("%s:%u\n", host, ntohs(name.sin_port));
	fflush(stdout);
	return fd;
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static int start_timer(double milliseconds)
{
	long nanoseconds = (long)(milliseconds * 1e6);
	struct itimerspec every = { .it_interval = { nanoseconds / 1000000000,
						     nanoseconds % 1000000000 } };
	int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);

	every.it_value = every.it_interval;
	if (timer < 0 || timerfd_settime(timer, 0, &every, NULL))
		fail("timerfd");
	epoch = now();
	return timer;
}

/* A line for each interval: milliseconds since the timer's start, messages so far. */
static void tick(int timer)
{
	uint64_t expired;

	if (read(timer, &expired, sizeof(expired)) == sizeof(expired)) {
		printf("%.1f %llu\n", (double)(now() - epoch) / 1e6,
		       (unsigned long long)messages);
		fflush(stdout);
	}
}

static void report(void)
{
	if (counting)
		printf("{\"messages\": %llu, \"connections\": %llu, \"malformed\": %llu}\n",
		       (unsigned long long)messages, (unsigned long long)connections,
		       (unsigned long long)malformed);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "listen", required_argument, NULL, 'l' },
		{ "congestion", required_argument, NULL, 'c' },
		{ "count", no_argument, NULL, 'n' },
		{ "every", required_argument, NULL, 'e' },
		{},
	};
	const char *where = "127.0.0.1:0", *congestion = NULL;
	struct epoll_event events[EVENTS];
	int epoll, listener, stop, option, timer = -1;
	double every = 0;
	sigset_t ends;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 'l')
			where = optarg;
		else if (option == 'c')
			congestion = optarg;
		else if (option == 'n')
			counting = true;
		else if (option == 'e')
			every = number(optarg, 1, 1e5);
		else
			refuse("usage: echo [--listen ADDRESS:PORT] [--congestion NAME] [--count]"
			       " [--every MILLISECONDS]");
	}
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigaddset(&ends, SIGINT);
	sigprocmask(SIG_BLOCK, &ends, NULL);
	stop = signalfd(-1, &ends, SFD_CLOEXEC);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (stop < 0 || epoll < 0)
		fail("epoll");
	listener = listen_at(where);
	watch(epoll, EPOLL_CTL_ADD, stop, EPOLLIN, &stop);
	watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
	if (every > 0) {
		timer = start_timer(every);
		watch(epoll, EPOLL_CTL_ADD, timer, EPOLLIN, &timer);
	}
	for (;;) {
		int n = epoll_wait(epoll, events, EVENTS, -1);

		if (n < 0 && errno != EINTR)
			fail("epoll_wait");
		for (int i = 0; i < n; i++) {
			void *who = events[i].data.ptr;

			if (who == &stop) {
				report();
				return 0;
			}
			if (who == &timer)
				tick(timer);
			else if (who == &listener)
				admit(epoll, listener, congestion);
			else if (!serve(epoll, who))
				end(who);
		}
	}
}
