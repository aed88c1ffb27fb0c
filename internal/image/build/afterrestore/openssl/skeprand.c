/*
 * An OpenSSL provider with a random generator that keeps no state: each
 * request is answered by the kernel. OpenSSL's own generators are seeded once
 * and then count on; two clones of one snapshot would count alike, and nothing
 * tells them of the restore but a change of the process ID, for fork(2).
 *
 * See provider(7), provider-rand(7) and, for the numbers, core_dispatch.h of
 * OpenSSL 3.0: they are part of its stable interface. The file needs no
 * header and links to no library, so that it loads into any OpenSSL 3.
 */

typedef unsigned long size_t;
typedef long ssize_t;

#define NULL ((void *)0)
#define EXPORT __attribute__((visibility("default")))

struct dispatch { int id; void (*fn)(void); };
struct algorithm { const char *names, *properties; const struct dispatch *functions; const char *description; };
struct param { const char *key; unsigned type; void *data; size_t size, written; };

enum { PROVIDER_QUERY = 1027, OPERATION_RAND = 5 };
enum {
	RAND_NEWCTX = 1, RAND_FREECTX = 2, RAND_INSTANTIATE = 3, RAND_UNINSTANTIATE = 4, RAND_GENERATE = 5, RAND_RESEED = 6,
	RAND_ENABLE_LOCKING = 8, RAND_GETTABLE_CTX_PARAMS = 12, RAND_GET_CTX_PARAMS = 15,
};
enum { PARAM_INTEGER = 1, PARAM_UNSIGNED = 2 };
enum { STATE_READY = 1, STRENGTH = 256 }; /* bits */

#define MAX_REQUEST ((size_t)1 << 16) /* bytes; OpenSSL splits what is longer */
#define EINTR 4

#if defined(__x86_64__)
static ssize_t getrandom(void *to, size_t n)
{
	ssize_t ret;
	__asm__ volatile("syscall" : "=a"(ret) : "0"(318L), "D"(to), "S"(n), "d"(0L) : "rcx", "r11", "memory");
	return ret;
}
#elif defined(__aarch64__)
static ssize_t getrandom(void *to, size_t n)
{
	register long number __asm__("x8") = 278;
	register void *x0 __asm__("x0") = to;
	register size_t x1 __asm__("x1") = n;
	register long x2 __asm__("x2") = 0;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x1), "r"(x2), "r"(number) : "memory", "cc");
	return (ssize_t)x0;
}
#else
#error "which number has getrandom(2) here?"
#endif

static int context; /* all there is of one: that it is not NULL */

static void *rand_new(void *provider, void *parent, const struct dispatch *calls)
{
	(void)provider, (void)parent, (void)calls;
	return &context;
}

static void rand_free(void *ctx)
{
	(void)ctx;
}

static int rand_instantiate(void *ctx, unsigned strength, int resistance, const unsigned char *s, size_t n, const struct param *p)
{
	(void)ctx, (void)resistance, (void)s, (void)n, (void)p;
	return strength <= STRENGTH;
}

static int rand_uninstantiate(void *ctx)
{
	(void)ctx;
	return 1;
}

static int rand_generate(void *ctx, unsigned char *out, size_t n, unsigned strength, int resistance, const unsigned char *add, size_t added)
{
	(void)ctx, (void)resistance, (void)add, (void)added;
	if (strength > STRENGTH)
		return 0;
	while (n > 0) {
		ssize_t got = getrandom(out, n);
		if (got == -EINTR)
			continue;
		if (got <= 0)
			return 0;
		out += got;
		n -= (size_t)got;
	}
	return 1;
}

static int rand_reseed(void *ctx, int resistance, const unsigned char *entropy, size_t n, const unsigned char *add, size_t added)
{
	(void)ctx, (void)resistance, (void)entropy, (void)n, (void)add, (void)added;
	return 1; /* what is mixed into the kernel's generator is the kernel's business */
}

static int rand_enable_locking(void *ctx)
{
	(void)ctx;
	return 1; /* nothing is shared */
}

static const struct param gettable[] = {
	{ "state", PARAM_INTEGER, NULL, sizeof(int), 0 },
	{ "strength", PARAM_UNSIGNED, NULL, sizeof(unsigned), 0 },
	{ "max_request", PARAM_UNSIGNED, NULL, sizeof(size_t), 0 },
	{ NULL, 0, NULL, 0, 0 },
};

static const struct param *rand_gettable(void *ctx, void *provider)
{
	(void)ctx, (void)provider;
	return gettable;
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static int set(struct param *p, size_t value)
{
	if (p->data != NULL && p->size == sizeof(int))
		*(int *)p->data = (int)value;
	else if (p->data != NULL && p->size == sizeof(size_t))
		*(size_t *)p->data = value;
	else if (p->data != NULL)
		return 0;
	p->written = p->data != NULL ? p->size : sizeof(size_t);
	return 1;
}

static int rand_get(void *ctx, struct param *p)
{
	(void)ctx;
	for (; p->key != NULL; p++) {
		if (same(p->key, "state") && !set(p, STATE_READY))
			return 0;
		if (same(p->key, "strength") && !set(p, STRENGTH))
			return 0;
		if (same(p->key, "max_request") && !set(p, MAX_REQUEST))
			return 0;
	}
	return 1;
}

#define FN(id, f) { id, (void (*)(void))(f) }

static const struct dispatch functions[] = {
	FN(RAND_NEWCTX, rand_new),
	FN(RAND_FREECTX, rand_free),
	FN(RAND_INSTANTIATE, rand_instantiate),
	FN(RAND_UNINSTANTIATE, rand_uninstantiate),
	FN(RAND_GENERATE, rand_generate),
	FN(RAND_RESEED, rand_reseed),
	FN(RAND_ENABLE_LOCKING, rand_enable_locking),
	FN(RAND_GETTABLE_CTX_PARAMS, rand_gettable),
	FN(RAND_GET_CTX_PARAMS, rand_get),
	{ 0, NULL },
};

static const struct algorithm algorithms[] = {
	{ "SKEP-KERNEL", "provider=skeprand", functions, "random bytes from the kernel, getrandom(2)" },
	{ NULL, NULL, NULL, NULL },
};

static const struct algorithm *query(void *provider, int operation, int *no_cache)
{
	(void)provider;
	*no_cache = 0;
	return operation == OPERATION_RAND ? algorithms : NULL;
}

static const struct dispatch provider_functions[] = {
	FN(PROVIDER_QUERY, query),
	{ 0, NULL },
};

EXPORT int OSSL_provider_init(const void *core, const struct dispatch *in, const struct dispatch **out, void **provider)
{
	(void)in;
	*out = provider_functions;
	*provider = (void *)core;
	return 1;
}
