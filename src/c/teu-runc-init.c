// SPDX-License-Identifier: Apache-2.0
/*
 * teu-runc-init: the last step of a container's process.
 *
 * teu-runc (Python) prepares a process and then executes this program from a sealed memfd. It
 * joins namespaces (exec only), takes terminal, keyring, labels, identity, capabilities,
 * no-new-privileges and seccomp, waits for the word to go, and becomes the user's program.
 *
 * It exists because from here on /proc/PID/exe can be looked at, and executed again, by what runs
 * in the container: so that must be a file nobody can write (CVE-2019-5736), and nothing may be
 * looked up in the container's root on the way (no libraries, no interpreter, no imports).
 * Hence: static, no C library, no allocation, its whole input in one descriptor.
 *
 * argv: teu-runc-init FD, FD being a memfd with records { u32 tag, u32 length, bytes, pad to 8 }.
 * The tags are in teu.runc.process. The other end of the sync socket (SOCK_SEQPACKET) is teu-runc:
 *
 *     to teu-runc   'P' u32 pid            the forked process (exec; the sender then leaves)
 *                   'C' + SCM_RIGHTS       the master of the terminal (exec)
 *                   'S' u32 fd             the seccomp listener, to be fetched with pidfd_getfd
 *                   'L'                    about to change identity: set limits on me now
 *                   'R'                    ready: all that can fail before execve has been done
 *                   'E' u32 errno, text    failed
 *     from          'g'                    go on (after 'P', 'C', 'S' and 'L'; first of all for exec)
 *                   'f'                    all is recorded: wait at the fifo or execute
 *
 * End of file on the socket before 'f' means that teu-runc died: leave.
 */
#include <asm/ioctls.h>
#include <asm/unistd.h>
#include <linux/capability.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/stat.h>
#include <linux/types.h>

typedef unsigned long ulong;
typedef __u32 u32;
typedef __u64 u64;

/* -- system calls ---------------------------------------------------------------------------- */

#if defined(__x86_64__)
static long sys6(long n, long a, long b, long c, long d, long e, long f)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}
__asm__(".globl _start\n_start:\n\txor %ebp,%ebp\n\tmov %rsp,%rdi\n\tand $-16,%rsp\n\tcall start_c\n");
#elif defined(__aarch64__)
static long sys6(long n, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}
__asm__(".globl _start\n_start:\n\tmov x29,#0\n\tmov x0,sp\n\tand sp,x0,#-16\n\tbl start_c\n");
#elif defined(__riscv) && __riscv_xlen == 64
static long sys6(long n, long a, long b, long c, long d, long e, long f)
{
	register long a7 __asm__("a7") = n;
	register long a0 __asm__("a0") = a;
	register long a1 __asm__("a1") = b;
	register long a2 __asm__("a2") = c;
	register long a3 __asm__("a3") = d;
	register long a4 __asm__("a4") = e;
	register long a5 __asm__("a5") = f;
	__asm__ volatile("ecall" : "+r"(a0) : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5) : "memory");
	return a0;
}
__asm__(".globl _start\n_start:\n\tmv a0,sp\n\tandi sp,sp,-16\n\tcall start_c\n");
#else
#error "teu-runc-init: add this architecture's system call and entry"
#endif

#define SYS(n, a, b, c, d, e) sys6((n), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)

void *memcpy(void *to, const void *from, ulong n)
{
	char *t = to;
	const char *f = from;
	while (n--)
		*t++ = *f++;
	return to;
}

void *memset(void *to, int c, ulong n)
{
	char *t = to;
	while (n--)
		*t++ = (char)c;
	return to;
}

static ulong length(const char *s)
{
	ulong n = 0;
	while (s[n])
		n++;
	return n;
}

static int equal(const char *a, const char *b, ulong n)
{
	for (ulong i = 0; i < n; i++)
		if (a[i] != b[i])
			return 0;
	return 1;
}

/* -- the input --------------------------------------------------------------------------------- */

enum {
	TAG_ARGV = 1, TAG_ENV, TAG_CWD, TAG_IDENTITY, TAG_GROUPS, TAG_CAPABILITIES, TAG_FLAGS, TAG_SECCOMP,
	TAG_NAMESPACES, TAG_LABEL, TAG_FDS, TAG_KEYRING, TAG_PERSONALITY, TAG_MEMORY_POLICY, TAG_PATH,
};

enum {
	FLAG_NO_NEW_PRIVS = 1, FLAG_FORK = 2, FLAG_TERMINAL = 4, FLAG_SECCOMP_EARLY = 8, FLAG_SETGROUPS = 16,
	FLAG_START_STOPPED = 32, FLAG_CHOWN_STDIO = 64, FLAG_KEEP_IDENTITY = 128, FLAG_SECCOMP_NOTIFY = 256, FLAG_LIMITS = 512,
};

struct filter_program {
	unsigned short count;
	void *filter;
};

static struct {
	char **argv, **env;
	const char *cwd, *keyring, *label, *label_file, *path;
	u32 uid, gid, umask, *groups, group_count, keyring_permissions;
	u64 *capabilities; /* bounding, effective, inheritable, permitted, ambient */
	u32 flags;
	u32 seccomp_flags;
	struct filter_program seccomp;
	u32 namespaces; /* CLONE_* to join through pidfd */
	int sync, fifo, console, proc, pidfd;
	u32 preserved; /* descriptors above stderr that the program gets */
	u64 personality;
	int has_personality;
	u32 policy_mode;
	u64 *policy_nodes;
	u32 policy_words;
} in = { .sync = -1, .fifo = -1, .console = -1, .proc = -1, .pidfd = -1 };

/* -- telling teu-runc ---------------------------------------------------------------------------- */

static char message[4608];

static const char *reason(long error)
{
	switch (error) {
	case ENOENT: return "no such file or directory";
	case EACCES: return "permission denied";
	case EPERM: return "operation not permitted";
	case ENOEXEC: return "exec format error";
	case E2BIG: return "argument list too long";
	case EISDIR: return "is a directory";
	case ELOOP: return "too many levels of symbolic links";
	case ENOMEM: return "cannot allocate memory";
	case EINVAL: return "invalid argument";
	default: return "failed";
	}
}

static ulong append(ulong at, const char *text)
{
	while (*text && at < sizeof message - 1)
		message[at++] = *text++;
	return at;
}

static void leave(int code) __attribute__((noreturn));
static void leave(int code)
{
	for (;;)
		SYS(__NR_exit_group, code, 0, 0, 0, 0);
}

/* fail with the error (0: the text says it all); text, name and rest are put together */
static void fail(long error, const char *text, const char *name, const char *rest) __attribute__((noreturn));
static void fail(long error, const char *text, const char *name, const char *rest)
{
	u32 number = (u32)(error < 0 ? -error : error);
	message[0] = 'E';
	memcpy(message + 1, &number, 4);
	ulong n = append(append(append(5, text), name), rest);
	if (in.sync < 0 || SYS(__NR_write, in.sync, message, n, 0, 0) < 0) {
		/* nobody waits for us any more: the container's own stderr is where a person looks */
		if (number)
			n = append(append(n, ": "), reason(number));
		n = append(n, "\n");
		SYS(__NR_write, 2, message + 5, n - 5, 0, 0);
	}
	leave(255);
}

static void check(long result, const char *what)
{
	if (result < 0)
		fail(result, what, "", "");
}

static void tell(char kind, u32 value)
{
	message[0] = kind;
	memcpy(message + 1, &value, 4);
	if (SYS(__NR_write, in.sync, message, 5, 0, 0) < 0)
		leave(255);
}

static void await(char kind)
{
	char word = 0;
	long n;
	do
		n = SYS(__NR_read, in.sync, &word, 1, 0, 0);
	while (n == -EINTR);
	if (n != 1 || word != kind)
		leave(255);
}

/* -- reading the input --------------------------------------------------------------------------- */

static char **strings(char *data, u32 size, char **store, u32 room)
{
	u32 count = 0;
	for (u32 at = 0; at < size && count + 1 < room; at += length(data + at) + 1)
		store[count++] = data + at;
	store[count] = 0;
	return store;
}

static void read_input(int fd)
{
	/* mapped, not read: as large as it needs to be, and shared with nobody (sealed) */
	struct { u64 words[32]; } status;
	(void)status;
	long size = SYS(__NR_lseek, fd, 0, 2, 0, 0);
	if (size <= 0)
		leave(255);
	char *data = (char *)sys6(__NR_mmap, 0, size, 3 /* READ|WRITE */, 2 /* PRIVATE */, fd, 0);
	if ((long)data < 0 && (long)data > -4096)
		leave(255);
	for (long at = 0; at + 8 <= size;) {
		u32 tag, n;
		memcpy(&tag, data + at, 4);
		memcpy(&n, data + at + 4, 4);
		char *body = data + at + 8;
		u32 *words = (u32 *)body;
		switch (tag) {
		case TAG_ARGV:
		case TAG_ENV: {
			/* room for the pointers: one per byte at most */
			u32 room = 2;
			for (u32 i = 0; i < n; i++)
				room += body[i] == 0;
			char **store = (char **)sys6(__NR_mmap, 0, room * sizeof(char *), 3, 0x22 /* PRIVATE|ANONYMOUS */, -1, 0);
			if ((long)store < 0 && (long)store > -4096)
				leave(255);
			if (tag == TAG_ARGV)
				in.argv = strings(body, n, store, room);
			else
				in.env = strings(body, n, store, room);
			break;
		}
		case TAG_CWD: in.cwd = body; break;
		case TAG_PATH: in.path = body; break;
		case TAG_IDENTITY: in.uid = words[0]; in.gid = words[1]; in.umask = words[2]; break;
		case TAG_GROUPS: in.groups = words; in.group_count = n / 4; break;
		case TAG_CAPABILITIES: in.capabilities = (u64 *)body; break;
		case TAG_FLAGS: in.flags = words[0]; in.preserved = words[1]; break;
		case TAG_SECCOMP:
			in.seccomp_flags = words[0];
			in.seccomp.count = (unsigned short)((n - 8) / 8);
			in.seccomp.filter = body + 8;
			break;
		case TAG_NAMESPACES: in.namespaces = words[0]; break;
		case TAG_LABEL: in.label_file = body; in.label = body + length(body) + 1; break;
		case TAG_FDS:
			in.sync = (int)words[0]; in.fifo = (int)words[1]; in.console = (int)words[2];
			in.proc = (int)words[3]; in.pidfd = (int)words[4];
			break;
		case TAG_KEYRING: in.keyring_permissions = words[0]; in.keyring = body + 4; break;
		case TAG_PERSONALITY: in.personality = *(u64 *)body; in.has_personality = 1; break;
		case TAG_MEMORY_POLICY:
			in.policy_mode = words[0];
			in.policy_nodes = (u64 *)(body + 8);
			in.policy_words = (n - 8) / 8;
			break;
		}
		at += 8 + ((n + 7) & ~7u);
	}
	SYS(__NR_close, fd, 0, 0, 0, 0);
}

/* -- the steps ------------------------------------------------------------------------------------ */

static void not_dumpable(void)
{
	SYS(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
}

/* A file of the host's procfs, opened through teu-runc's descriptor: the container's own /proc may lie. */
static void write_label(const char *file)
{
	char path[64] = "self/attr/";
	ulong n = length(path);
	for (const char *c = file; *c && n < sizeof path - 1;)
		path[n++] = *c++;
	path[n] = 0;
	long fd = SYS(__NR_openat, in.proc, path, O_WRONLY | O_CLOEXEC, 0, 0);
	if (fd == -ENOENT && equal(file, "apparmor/", 9)) /* before Linux 5.8 */
		fd = SYS(__NR_openat, in.proc, "self/attr/exec", O_WRONLY | O_CLOEXEC, 0, 0);
	if (fd < 0)
		fail(fd, "unable to open the label file ", path, "");
	long done = SYS(__NR_write, fd, in.label, length(in.label), 0, 0);
	if (done < 0)
		fail(done, "unable to apply the security label ", in.label, "");
	SYS(__NR_close, fd, 0, 0, 0, 0);
}

/*
 * The session keyring by its name: the first process makes it, an exec's finds it, if it may search it. It has the
 * process's SELinux label; the label for new keys goes with execve.
 */
static void join_keyring(void)
{
	if (in.label && equal(in.label_file, "exec", 5))
		write_label("keycreate");
	long key = SYS(__NR_keyctl, 1 /* JOIN_SESSION_KEYRING */, in.keyring, 0, 0, 0);
	if (key == -ENOSYS || key == -EDQUOT || key == -EPERM || key == -EACCES)
		return;
	check(key, "join the session keyring");
	if (!in.keyring_permissions)
		return;
	char text[512]; /* type;uid;gid;permissions;description */
	long n = SYS(__NR_keyctl, 6 /* DESCRIBE */, key, text, sizeof text, 0);
	check(n, "read the session keyring's permissions");
	u32 permissions = 0;
	int field = 0;
	for (long i = 0; i < n && i < (long)sizeof text && field < 4; i++) {
		char c = text[i];
		if (c == ';')
			field++;
		else if (field == 3)
			permissions = permissions << 4 | (u32)(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
	}
	check(SYS(__NR_keyctl, 5 /* SETPERM */, key, permissions | in.keyring_permissions, 0, 0),
	      "set the session keyring's permissions");
}

static void load_seccomp(void)
{
	if (!in.seccomp.count)
		return;
	long fd = SYS(__NR_seccomp, SECCOMP_SET_MODE_FILTER, in.seccomp_flags, &in.seccomp, 0, 0);
	check(fd, "unable to load the seccomp filter");
	if (in.flags & FLAG_SECCOMP_NOTIFY) {
		tell('S', (u32)fd);
		await('g');
		SYS(__NR_close, fd, 0, 0, 0, 0);
	}
}

/* struct msghdr and friends, which the kernel's headers for user space leave to the C library */
struct piece { void *base; ulong length; };
struct letter { void *name; int name_length; struct piece *pieces; ulong count; void *control; ulong control_length; int flags; };

static void send_descriptor(char kind, int fd)
{
	struct { ulong length; int level, type; int fd; int pad; } control = { 20, 1 /* SOL_SOCKET */, 1 /* SCM_RIGHTS */, fd, 0 };
	struct piece piece = { &kind, 1 };
	struct letter letter = { 0, 0, &piece, 1, &control, sizeof control, 0 };
	check(SYS(__NR_sendmsg, in.sync, &letter, 0, 0, 0), "unable to send the terminal");
}

/*
 * A terminal of the container's own devpts. /dev/pts/ptmx is taken only if it is what it should
 * be; the slave is reached from the master and never by a path (CVE-2025-52565).
 */
static void open_terminal(void)
{
	ulong status[16];
	struct statx info;
	long master = SYS(__NR_openat, AT_FDCWD, "/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NOFOLLOW, 0, 0);
	check(master, "open /dev/pts/ptmx");
	check(SYS(__NR_fstatfs, master, status, 0, 0, 0), "fstatfs /dev/pts/ptmx");
	check(SYS(__NR_statx, master, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &info), "stat /dev/pts/ptmx");
	if (status[0] != DEVPTS_SUPER_MAGIC || info.stx_rdev_major != 5 || info.stx_rdev_minor != 2)
		fail(0, "/dev/pts/ptmx is not a terminal multiplexer of a devpts", "", "");
	int zero = 0;
	check(SYS(__NR_ioctl, master, TIOCSPTLCK, &zero, 0, 0), "unlock the terminal");
	long slave = SYS(__NR_ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC, 0, 0);
	check(slave, "open the terminal");
	send_descriptor('C', (int)master);
	SYS(__NR_close, master, 0, 0, 0, 0);
	await('g'); /* teu-runc set its size and passed it on */
	in.console = (int)slave;
}

static void take_terminal(void)
{
	SYS(__NR_setsid, 0, 0, 0, 0, 0);
	if (in.console < 0)
		return;
	check(SYS(__NR_ioctl, in.console, TIOCSCTTY, 0, 0, 0), "make the terminal the controlling one");
	for (int fd = 0; fd < 3; fd++)
		check(SYS(__NR_dup3, in.console, fd, 0, 0, 0), "dup the terminal");
	SYS(__NR_close, in.console, 0, 0, 0, 0);
}

/* So that the user can open /dev/stdout again. What is refused (pipes of others) stays as it is. */
static void chown_stdio(void)
{
	for (int fd = 0; fd < 3; fd++) {
		struct statx info;
		if (SYS(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &info) < 0)
			continue;
		if (info.stx_uid == in.uid || (info.stx_rdev_major == 1 && info.stx_rdev_minor == 3))
			continue;
		SYS(__NR_fchown, fd, in.uid, -1, 0, 0);
	}
}

static void set_identity(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];
	u64 *set = in.capabilities;

	for (int cap = 0; cap < 64; cap++) {
		if (set[0] >> cap & 1)
			continue;
		long result = SYS(__NR_prctl, PR_CAPBSET_DROP, cap, 0, 0, 0);
		if (result == -EINVAL)
			break; /* the kernel's last capability is passed */
		check(result, "drop a capability from the bounding set");
	}
	check(SYS(__NR_prctl, PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities");
	if (!(in.flags & FLAG_KEEP_IDENTITY)) {
		if (in.flags & FLAG_SETGROUPS)
			check(SYS(__NR_setgroups, in.group_count, in.groups, 0, 0, 0), "setgroups");
		check(SYS(__NR_setresgid, in.gid, in.gid, in.gid, 0, 0), "setresgid");
		check(SYS(__NR_setresuid, in.uid, in.uid, in.uid, 0, 0), "setresuid");
	}
	not_dumpable(); /* a change of identity resets it to what fs.suid_dumpable says */
	check(SYS(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "clear the ambient capabilities");
	for (int i = 0; i < 2; i++) {
		data[i].effective = (u32)(set[1] >> 32 * i);
		data[i].inheritable = (u32)(set[2] >> 32 * i);
		data[i].permitted = (u32)(set[3] >> 32 * i);
	}
	check(SYS(__NR_capset, &header, data, 0, 0, 0), "set capabilities");
	SYS(__NR_prctl, PR_SET_KEEPCAPS, 0, 0, 0, 0);
	for (int cap = 0; cap < 64; cap++)
		if (set[4] >> cap & 1)
			/* one that is not inheritable and permitted cannot be ambient: as runc, without it then */
			SYS(__NR_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0);
}

static int change_directory(void)
{
	static char where[4096];
	long result = SYS(__NR_chdir, in.cwd, 0, 0, 0, 0);
	if (result < 0)
		return (int)result;
	/* a descriptor of the host as working directory (CVE-2024-21626) shows as "(unreachable)..." */
	result = SYS(__NR_getcwd, where, sizeof where, 0, 0, 0);
	if (result == -ERANGE)
		return 0;
	if (result <= 0 || where[0] != '/')
		fail(0, "current working directory is outside of container mount namespace root", "", "");
	return 0;
}

/*
 * Whether execve will be allowed, by the effective identity: CAP_DAC_OVERRIDE counts. A filter that
 * is loaded already may know neither call: then execve itself has the word.
 */
static int executable(const char *path)
{
	long result = SYS(__NR_faccessat2, AT_FDCWD, path, 1, AT_EACCESS, 0);
	if (result == -ENOSYS || result == -EPERM)
		result = SYS(__NR_faccessat, AT_FDCWD, path, 1, 0, 0);
	return result != -EACCES;
}

/* The program's path: argv[0] itself if it has a slash, else by PATH, as Go's LookPath and with its words. */
static const char *find_program(void)
{
	static char path[4200];
	const char *name = in.argv[0], *search = "";
	struct statx info;
	int denied = 0;

	for (const char *c = name; *c; c++) {
		if (*c != '/')
			continue;
		long result = SYS(__NR_statx, AT_FDCWD, name, 0, STATX_BASIC_STATS, &info);
		if (result < 0) {
			const char *from = "\": stat ";
			ulong n = 0;
			while (*from)
				path[n++] = *from++;
			for (from = name; *from && n < sizeof path - 1;)
				path[n++] = *from++;
			path[n] = 0;
			fail(result, "exec: \"", name, path);
		}
		if ((info.stx_mode & S_IFMT) == S_IFDIR)
			fail(EISDIR, "exec: \"", name, "\"");
		if (!(info.stx_mode & 0111) || !executable(name))
			fail(EACCES, "exec: \"", name, "\"");
		return name;
	}
	for (char **e = in.env; *e; e++)
		if (equal(*e, "PATH=", 5))
			search = *e + 5;
	while (*search && *name) {
		ulong n = 0;
		while (*search && *search != ':' && n < 4090)
			path[n++] = *search++;
		int relative = n == 0 || path[0] != '/'; /* "" is the working directory: Go refuses it, and so do we */
		path[n++] = '/';
		for (const char *c = name; *c && n < sizeof path - 1;)
			path[n++] = *c++;
		path[n] = 0;
		while (*search && *search != ':')
			search++;
		if (*search == ':')
			search++;
		if (relative || SYS(__NR_statx, AT_FDCWD, path, 0, STATX_BASIC_STATS, &info) < 0)
			continue;
		if ((info.stx_mode & S_IFMT) == S_IFDIR)
			continue;
		if (!(info.stx_mode & 0111) || !executable(path)) {
			denied = 1;
			continue;
		}
		return path;
	}
	if (denied)
		fail(EACCES, "exec: \"", name, "\"");
	fail(0, "exec: \"", name, "\": executable file not found in $PATH");
}

static void default_signals(void)
{
	/* Python ignores SIGPIPE and SIGXFSZ, and what is ignored stays so over execve */
	struct { void *handler; ulong flags, restorer, mask; } action = { 0, 0, 0, 0 };
	u64 none = 0;
	for (int signal = 1; signal <= 64; signal++)
		SYS(__NR_rt_sigaction, signal, &action, 0, 8, 0);
	SYS(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &none, 0, 8, 0);
}

/*
 * The first process of a pid namespace gets no signal that it has no handler for, but a container that has been
 * created can be ended by those that end a program: as runc's. execve takes the handlers away.
 */
static void end_by_signal(int number) __attribute__((noreturn));
static void end_by_signal(int number)
{
	leave(128 + number);
}

static void ending_signals(void)
{
#if defined(__riscv)
	struct { void *handler; ulong flags, mask; } action = { (void *)end_by_signal, 0, 0 };
#else
	/* the kernel wants a place to return to, although nobody will */
	struct { void *handler; ulong flags; void *restorer; ulong mask; } action = {
		(void *)end_by_signal, 0x04000000 /* SA_RESTORER */, (void *)end_by_signal, 0
	};
#endif
	static const int ending[] = { 1 /* HUP */, 2 /* INT */, 3 /* QUIT */, 15 /* TERM */ };
	for (ulong i = 0; i < sizeof ending / sizeof *ending; i++)
		SYS(__NR_rt_sigaction, ending[i], &action, 0, 8, 0);
}

/* exec: into the container's namespaces, all at once, and as a new process into its pid namespace. */
static void join(void)
{
	check(SYS(__NR_setns, in.pidfd, in.namespaces, 0, 0, 0), "join the container's namespaces");
	if (!(in.flags & FLAG_FORK))
		return;
	/* the parent of the new one is our own parent, so that we need not stay */
	long pid = sys6(__NR_clone, CLONE_PARENT | 17 /* SIGCHLD */, 0, 0, 0, 0, 0);
	check(pid, "clone");
	if (pid) {
		tell('P', (u32)pid);
		leave(0);
	}
	not_dumpable();
	await('g');
}

void start_c(long *stack) __attribute__((noreturn, used));
void start_c(long *stack)
{
	char **argv = (char **)(stack + 1);
	int fd = 0;
	not_dumpable();
	if (stack[0] < 2)
		leave(255);
	for (const char *c = argv[1]; *c >= '0' && *c <= '9'; c++)
		fd = fd * 10 + (*c - '0');
	read_input(fd);
	/*
	 * Nothing of ours is left open after execve, whatever it was (CVE-2024-21626): said here, where
	 * no filter of the container is loaded yet that could refuse it. What is opened later is O_CLOEXEC.
	 */
	check(SYS(__NR_close_range, 3 + in.preserved, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */, 0, 0), "close_range");
	if (!in.label) {
		/* only labels are written by it, and a container that may ptrace would find it */
		SYS(__NR_close, in.proc, 0, 0, 0, 0);
		in.proc = -1;
	}
	SYS(__NR_prctl, PR_SET_NAME, "teu-runc:[INIT]", 0, 0, 0);
	if (in.namespaces) {
		await('g');
		join();
	}
	default_signals();
	if (in.fifo >= 0)
		ending_signals();
	if (in.flags & FLAG_TERMINAL && in.console < 0)
		open_terminal();
	take_terminal();
	if (in.keyring)
		join_keyring();
	if (in.has_personality)
		check(SYS(__NR_personality, in.personality, 0, 0, 0, 0), "set the personality");
	if (in.policy_words)
		check(SYS(__NR_set_mempolicy, in.policy_mode, in.policy_nodes, in.policy_words * 64 + 1, 0, 0), "set_mempolicy");
	if (in.label) {
		write_label(in.label_file);
		SYS(__NR_close, in.proc, 0, 0, 0, 0);
	}
	/* without no-new-privileges a filter needs CAP_SYS_ADMIN, which goes with the identity */
	if (in.flags & FLAG_NO_NEW_PRIVS)
		check(SYS(__NR_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs");
	if (in.flags & FLAG_CHOWN_STDIO)
		chown_stdio();
	int error = change_directory();
	if (error && error != -EACCES && error != -EPERM)
		fail(error, "chdir to cwd (\"", in.cwd, "\") set in config.json failed");
	SYS(__NR_umask, in.umask, 0, 0, 0, 0);
	if (in.flags & FLAG_LIMITS) {
		/* prlimit(2) from outside asks for our identity to be its own, or for CAP_SYS_RESOURCE */
		tell('L', 0);
		await('g');
	}
	if (in.flags & FLAG_SECCOMP_EARLY)
		load_seccomp();
	set_identity();
	if (error) {
		error = change_directory();
		if (error)
			fail(error, "chdir to cwd (\"", in.cwd, "\") set in config.json failed");
	}
	const char *program = in.path ? in.path : find_program();
	/* With no-new-privileges the filter comes last; with a listener it must come while teu-runc is there. */
	int late = !(in.flags & FLAG_SECCOMP_EARLY);
	if (late && in.flags & FLAG_SECCOMP_NOTIFY) {
		load_seccomp();
		late = 0;
	}
	/* from here on the end of the socket tells of teu-runc's death, and after 'f' it may end */
	SYS(__NR_prctl, PR_SET_PDEATHSIG, 0, 0, 0, 0);
	tell('R', 0);
	await('f');
	/*
	 * What goes wrong from here on is the container's own affair: its stderr says it. The one
	 * by which we were told to go, socket or fifo, stays open until execve closes it: so teu-runc
	 * knows that it has happened.
	 */
	if (in.fifo >= 0)
		SYS(__NR_close, in.sync, 0, 0, 0, 0);
	in.sync = -1;
	if (in.fifo >= 0) {
		char word;
		long n;
		do
			n = SYS(__NR_read, in.fifo, &word, 1, 0, 0);
		while (n == -EINTR);
		if (n != 1)
			leave(255);
	}
	if (late)
		load_seccomp();
	error = (int)SYS(__NR_execve, program, in.argv, in.env, 0, 0);
	fail(error, "exec ", program, "");
}
