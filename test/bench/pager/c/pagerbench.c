// pagerbench is the C side of the pager's benchmark.
//
//   pagerbench target SOCKET BYTES   maps memory, hands its userfaultfd over and
//                                    does what standard input says
//   pagerbench bulk SOCKET FILE      receives a target, installs FILE by a plain
//                                    loop of UFFDIO_COPY, prints nanoseconds
//   pagerbench serve SOCKET FILE     receives a target, answers its faults from
//                                    FILE until it ends
//
// The last two are the yardstick for the Go pager: as simple as C can be.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, BULK = 512 << 10 };

static void die(const char *what) {
	perror(what);
	exit(1);
}

static uint64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static struct sockaddr_un address(const char *path) {
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof a.sun_path) {
		errno = ENAMETOOLONG;
		die(path);
	}
	strcpy(a.sun_path, path);
	return a;
}

static void send_handshake(int sock, int uffd, void *mem, size_t size) {
	char json[256];
	int n = snprintf(json, sizeof json, "[{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":0,\"page_size\":%d}]",
			 (unsigned long long)(uintptr_t)mem, size, PAGE);
	struct iovec io = {json, n};
	union { char buf[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } ctl = {0};
	struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = ctl.buf, .msg_controllen = sizeof ctl.buf};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &uffd, sizeof uffd);
	if (sendmsg(sock, &m, 0) != n) die("sendmsg");
}

static int by_value(const void *a, const void *b) {
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

// Commands, a letter each, answered by a line: "s" sums up the memory's pages;
// "f" touches every page in a mixed order and gives the median and the 99th
// percentile of a touch in nanoseconds.
static int target(const char *path, size_t size) {
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE};
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api)) die("userfaultfd");
	char *mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED) die("mmap");
	struct uffdio_register reg = {.range = {(uintptr_t)mem, size}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	if (ioctl(uffd, UFFDIO_REGISTER, &reg)) die("UFFDIO_REGISTER");
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un a = address(path);
	if (connect(sock, (struct sockaddr *)&a, sizeof a)) die("connect");
	send_handshake(sock, uffd, mem, size);
	size_t pages = size / PAGE;
	uint64_t *took = malloc(pages * sizeof *took);
	memset(took, 1, pages * sizeof *took);
	for (int cmd; (cmd = getchar()) != EOF;) {
		uint64_t sum = 0;
		if (cmd == 's') {
			for (size_t i = 0; i < pages; i++) sum += *(uint64_t *)(mem + i * PAGE);
			printf("%llu\n", (unsigned long long)sum);
		} else if (cmd == 'f') {
			// 7919 is prime and no divisor of the number of pages, a power of two.
			for (size_t i = 0; i < pages; i++) {
				volatile uint64_t *p = (uint64_t *)(mem + i * 7919 % pages * PAGE);
				uint64_t start = now();
				sum += *p;
				took[i] = now() - start;
			}
			qsort(took, pages, sizeof *took, by_value);
			printf("%llu %llu %llu\n", (unsigned long long)took[pages / 2],
			       (unsigned long long)took[pages * 99 / 100], (unsigned long long)sum);
		}
		fflush(stdout);
	}
	return 0;
}

static int receive_handshake(const char *path, uint64_t *base, uint64_t *size) {
	int l = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un a = address(path);
	if (bind(l, (struct sockaddr *)&a, sizeof a) || listen(l, 1)) die("listen");
	puts("listening");
	fflush(stdout);
	int sock = accept(l, NULL, NULL);
	char json[512] = {0};
	struct iovec io = {json, sizeof json - 1};
	union { char buf[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } ctl;
	struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = ctl.buf, .msg_controllen = sizeof ctl.buf};
	if (recvmsg(sock, &m, MSG_CMSG_CLOEXEC) <= 0 || !CMSG_FIRSTHDR(&m)) die("recvmsg");
	unsigned long long b, s;
	if (sscanf(json, "[{\"base_host_virt_addr\":%llu,\"size\":%llu", &b, &s) != 2) die("handshake");
	*base = b;
	*size = s;
	int uffd;
	memcpy(&uffd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof uffd);
	return uffd;
}

static int bulk(const char *path, const char *file) {
	uint64_t base, size;
	int fd = open(file, O_RDONLY | O_CLOEXEC);
	struct stat st;
	if (fd < 0 || fstat(fd, &st)) die(file);
	// The content is in memory before: this measures UFFDIO_COPY alone.
	char *data = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (data == MAP_FAILED) die("mmap");
	for (off_t n = 0; n < st.st_size;) {
		ssize_t r = pread(fd, data + n, st.st_size - n, n);
		if (r <= 0) die(file);
		n += r;
	}
	int uffd = receive_handshake(path, &base, &size);
	uint64_t start = now();
	for (uint64_t at = 0; at < size; at += BULK) {
		uint64_t n = size - at < BULK ? size - at : BULK;
		struct uffdio_copy c = {.dst = base + at, .src = (uintptr_t)data + at, .len = n, .mode = UFFDIO_COPY_MODE_DONTWAKE};
		if (ioctl(uffd, UFFDIO_COPY, &c)) die("UFFDIO_COPY");
	}
	struct uffdio_range all = {base, size};
	if (ioctl(uffd, UFFDIO_WAKE, &all)) die("UFFDIO_WAKE");
	printf("%llu\n", (unsigned long long)(now() - start));
	fflush(stdout);
	while (getchar() != EOF);
	return 0;
}

static int serve(const char *path, const char *file) {
	uint64_t base, size;
	int fd = open(file, O_RDONLY | O_CLOEXEC);
	if (fd < 0) die(file);
	char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int uffd = receive_handshake(path, &base, &size);
	struct pollfd fds[2] = {{uffd, POLLIN, 0}, {0, POLLIN, 0}};
	for (;;) {
		if (poll(fds, 2, -1) < 0) die("poll");
		if (fds[1].revents) return 0;
		struct uffd_msg msg;
		if (read(uffd, &msg, sizeof msg) != sizeof msg) continue;
		uint64_t addr = msg.arg.pagefault.address & ~(uint64_t)(PAGE - 1);
		if (pread(fd, page, PAGE, addr - base) != PAGE) die("pread");
		struct uffdio_copy c = {.dst = addr, .src = (uintptr_t)page, .len = PAGE};
		if (ioctl(uffd, UFFDIO_COPY, &c)) die("UFFDIO_COPY");
	}
}

int main(int argc, char **argv) {
	if (argc == 4 && !strcmp(argv[1], "target")) return target(argv[2], strtoull(argv[3], NULL, 10));
	if (argc == 4 && !strcmp(argv[1], "bulk")) return bulk(argv[2], argv[3]);
	if (argc == 4 && !strcmp(argv[1], "serve")) return serve(argv[2], argv[3]);
	fprintf(stderr, "usage: pagerbench target SOCKET BYTES | bulk SOCKET FILE | serve SOCKET FILE\n");
	return 2;
}
