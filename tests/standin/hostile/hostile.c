/* What hostile code tries from inside a bot's container. One attack, or one table of attacks, a call:

     hostile calls                        system calls; one line each: NAME, tab, "done" or the errno's name
     hostile writes PATH...               open for writing; the same lines
     hostile probe PROTOCOL:ADDRESS:PORT...    connect; NAME, tab, "open", "silent" or the errno's name
     hostile processes                    how many processes of others it sees, and may trace
     hostile forks COUNT SECONDS          fork up to COUNT children, hold them; prints how many there were
     hostile files PROCESSES SECONDS      open files in PROCESSES children, hold them; prints each one's number
     hostile inodes DIRECTORY             make empty files until that fails; prints how many and why
     hostile memory MEGABYTES             allocate and touch
     hostile spin PROCESSES SECONDS       burn CPU time
     hostile connections ADDRESS PORT COUNT SECONDS    open connections, hold them; prints how many there were

   Installed a second time with the setuid bit, as hostile-setuid, and a third time with a file capability, as
   hostile-filecap: `euid` says who it runs as, `raw` whether it gets a raw socket. Each attack runs in a child of its
   own, so that one which succeeds does not change what the next one sees. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/keyctl.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define OTHERS_UID 200000 + 4000 /* of a bot that is not this one */

static long set_uid(void) { return setuid(0); }
static long set_gid(void) { return setgid(0); }
static long set_groups(void) { gid_t root = 0; return setgroups(1, &root); }
static long another_bots_uid(void) { return setresuid(OTHERS_UID, OTHERS_UID, OTHERS_UID); }

static long gain_capabilities(void)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{~0u, ~0u, ~0u}, {~0u, ~0u, ~0u}};
    return syscall(SYS_capset, &head, data);
}
static long ambient_capability(void) { return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_RAW, 0, 0); }
static long new_privileges(void) { return prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0); }

static long raw_icmp(void) { return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
static long raw_tcp(void) { return socket(AF_INET, SOCK_RAW, IPPROTO_TCP); }
static long packet_socket(void) { return socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL)); }
static long packet_datagram(void) { return socket(AF_PACKET, SOCK_DGRAM, htons(ETH_P_ARP)); }
static long vsock(void) { return socket(AF_VSOCK, SOCK_STREAM, 0); }

static long change_interface(unsigned long request)
{
    struct ifreq wish = {.ifr_name = "eth0"};
    struct sockaddr_in *address = (struct sockaddr_in *)&wish.ifr_addr;
    if (request == SIOCSIFHWADDR) {
        memcpy(wish.ifr_hwaddr.sa_data, "\x02\x42\x0a\xc8\x00\x01", 6);
        wish.ifr_hwaddr.sa_family = 1;
    } else {
        address->sin_family = AF_INET;
        address->sin_addr.s_addr = inet_addr("10.200.0.1");
    }
    return ioctl(socket(AF_INET, SOCK_DGRAM, 0), request, &wish);
}
static long take_address(void) { return change_interface(SIOCSIFADDR); }
static long take_mac(void) { return change_interface(SIOCSIFHWADDR); }

/* A neighbour entry of one's own making: the first step of ARP spoofing from this side. */
static long poison_arp(void)
{
    struct {
        struct nlmsghdr head;
        struct ndmsg neighbour;
        struct rtattr attribute;
        unsigned char address[4];
    } message = {.head = {.nlmsg_len = sizeof message,
                          .nlmsg_type = RTM_NEWNEIGH,
                          .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE},
                 .neighbour = {.ndm_family = AF_INET, .ndm_ifindex = (int)if_nametoindex("eth0"), .ndm_state = NUD_PERMANENT},
                 .attribute = {sizeof(struct rtattr) + 4, NDA_DST},
                 .address = {10, 200, 0, 1}};
    struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
        char rest[512];
    } answer = {0};
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    if (fd < 0 || send(fd, &message, sizeof message, 0) < 0 || recv(fd, &answer, sizeof answer, 0) < 0)
        return -1;
    errno = -answer.error.error;
    return errno ? -1 : 0;
}

static long mount_tmpfs(void) { return mount("none", "/tmp", "tmpfs", 0, ""); }
static long mount_proc(void) { return mount("proc", "/tmp", "proc", 0, ""); }
static long mount_cgroup(void) { return mount("none", "/tmp", "cgroup2", 0, ""); }
static long mount_bind(void) { return mount("/", "/tmp", NULL, MS_BIND, NULL); }
static long remount_root(void) { return mount("none", "/", NULL, MS_REMOUNT | MS_BIND, NULL); }
static long uncover_masked(void) { return umount2("/proc/keys", MNT_DETACH); }
static long uncover_proc_sys(void) { return mount("none", "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL); }
static long pivot(void) { return syscall(SYS_pivot_root, "/tmp", "/tmp"); }
static long change_root(void) { return chroot("/tmp"); }
static long fs_open(void) { return syscall(SYS_fsopen, "tmpfs", 0); }
static long open_tree_clone(void) { return syscall(SYS_open_tree, AT_FDCWD, "/", 1 /* OPEN_TREE_CLONE */); }
static long move_a_mount(void) { return syscall(SYS_move_mount, AT_FDCWD, "/tmp", AT_FDCWD, "/dev/shm", 0); }

static long unshare_user(void) { return unshare(CLONE_NEWUSER); }
static long unshare_mount(void) { return unshare(CLONE_NEWNS); }
static long unshare_network(void) { return unshare(CLONE_NEWNET); }
static long unshare_pid(void) { return unshare(CLONE_NEWPID); }
static long unshare_cgroup(void) { return unshare(CLONE_NEWCGROUP); }
static long clone_user(void)
{
    long pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL);
    if (pid == 0)
        _exit(0);
    return pid;
}
static long clone3_user(void)
{
    struct { unsigned long long flags, rest[10]; } arguments = {.flags = CLONE_NEWUSER};
    long pid = syscall(SYS_clone3, &arguments, 64);
    if (pid == 0)
        _exit(0);
    return pid;
}
static long enter_namespace(void) { return setns(open("/proc/1/ns/mnt", O_RDONLY), 0); }

static long key_add(void) { return syscall(SYS_add_key, "user", "hostile", "x", 1, KEY_SPEC_SESSION_KEYRING); }
static long key_session(void) { return syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL); }
static long key_user_ring(void) { return syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_USER_KEYRING, 1); }
static long key_request(void) { return syscall(SYS_request_key, "user", "hostile", NULL, 0); }

static long bpf_map(void)
{
    struct { unsigned type, key, value, entries, rest[26]; } map = {2, 4, 4, 1, {0}};
    return syscall(SYS_bpf, 0, &map, sizeof map);
}
static long perf(void)
{
    unsigned long attributes[16] = {(unsigned long)128 << 32 | 1, 0};
    return syscall(SYS_perf_event_open, attributes, -1, 0, -1, 0);
}
static long user_fault(void) { return syscall(SYS_userfaultfd, 0); }
static long io_uring(void) { char parameters[120] = {0}; return syscall(SYS_io_uring_setup, 4, parameters); }
static long fanotify(void) { return syscall(SYS_fanotify_init, 0, O_RDONLY); }
static long handle_open(void)
{
    struct { unsigned bytes; int type; unsigned char handle[8]; } root = {8, 1, {2}};
    return syscall(SYS_open_by_handle_at, open("/etc/hosts", O_RDONLY), &root, O_RDONLY);
}
static long load_module(void) { return syscall(SYS_init_module, "", 0, ""); }
static long load_module_file(void) { return syscall(SYS_finit_module, open("/bin/busybox", O_RDONLY), "", 0); }
static long unload_module(void) { return syscall(SYS_delete_module, "nf_tables", O_NONBLOCK); }
static long kexec(void) { return syscall(SYS_kexec_load, 0, 0, NULL, 0); }
static long restart_machine(void) { return syscall(SYS_reboot, 0xfee1dead, 672274793, 0, NULL); }
static long swap_on(void) { return swapon("/tmp/swap", 0); }
static long swap_off(void) { return swapoff("/dev/vda"); }
static long accounting(void) { return acct("/tmp/acct"); }
static long quota(void) { return syscall(SYS_quotactl, 0, "/dev/loop0", 0, NULL); }
static long kernel_log(void) { char text[16]; return syscall(SYS_syslog, 3, text, sizeof text); }
static long host_name(void) { return sethostname("hostile", 7); }
static long domain_name(void) { return setdomainname("hostile", 7); }
static long set_clock(void) { struct timespec t = {.tv_sec = 1}; return clock_settime(CLOCK_REALTIME, &t); }
static long slew_clock(void) { struct timex t = {.modes = ADJ_OFFSET}; return adjtimex(&t); }
static long io_privilege(void) { return syscall(SYS_iopl, 3); }
static long io_ports(void) { return syscall(SYS_ioperm, 0x64, 1, 1); }
static long hang_up(void) { return vhangup(); }
static long block_device(void) { return mknod("/tmp/disk", S_IFBLK | 0600, makedev(254, 0)); }
static long memory_device(void) { return mknod("/tmp/mem", S_IFCHR | 0600, makedev(1, 1)); }
static long give_to_root(void)
{
    int fd = open("/tmp/own", O_CREAT | O_WRONLY, 0600);
    return fchown(fd, 0, 0);
}

static long more_priority(void) { return setpriority(PRIO_PROCESS, 0, -20); }
static long realtime(void)
{
    struct sched_param wish = {.sched_priority = 50};
    return sched_setscheduler(0, SCHED_FIFO, &wish);
}
static long raise_limit(int resource)
{
    struct rlimit wish = {1 << 20, 1 << 20};
    return setrlimit(resource, &wish);
}
static long more_files(void) { return raise_limit(RLIMIT_NOFILE); }
static long core_dumps(void) { return raise_limit(RLIMIT_CORE); }
static long escape_oom(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY);
    return fd < 0 ? -1 : write(fd, "-1000", 5);
}
/* The one mistake that would open all others: a file that is executed as its owner, or with capabilities. */
static long exec_setuid(void)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        execl("/usr/local/bin/hostile-setuid", "hostile-setuid", "euid", NULL);
        _exit(errno);
    }
    waitpid(pid, &status, 0);
    errno = WEXITSTATUS(status);
    return errno ? -1 : 0;
}
static long exec_filecap(void)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        execl("/usr/local/bin/hostile-filecap", "hostile-filecap", "raw", NULL);
        _exit(errno);
    }
    waitpid(pid, &status, 0);
    errno = WEXITSTATUS(status);
    return errno ? -1 : 0;
}

static const struct attack {
    const char *name;
    long (*run)(void);
} calls[] = {
    {"become root", set_uid},
    {"become the group root", set_gid},
    {"join the group root", set_groups},
    {"become another bot", another_bots_uid},
    {"run a setuid program", exec_setuid},
    {"run a program with a file capability", exec_filecap},
    {"take capabilities", gain_capabilities},
    {"raise an ambient capability", ambient_capability},
    {"drop no-new-privileges", new_privileges},
    {"raw ICMP socket", raw_icmp},
    {"raw TCP socket", raw_tcp},
    {"packet socket", packet_socket},
    {"packet socket for ARP", packet_datagram},
    {"socket to the hypervisor", vsock},
    {"take the gateway's address", take_address},
    {"take another MAC address", take_mac},
    {"set an ARP entry", poison_arp},
    {"mount a tmpfs", mount_tmpfs},
    {"mount proc", mount_proc},
    {"mount a cgroup tree", mount_cgroup},
    {"bind the root elsewhere", mount_bind},
    {"remount the root writable", remount_root},
    {"remount /proc/sys writable", uncover_proc_sys},
    {"uncover a masked path", uncover_masked},
    {"pivot_root", pivot},
    {"chroot", change_root},
    {"fsopen", fs_open},
    {"open_tree", open_tree_clone},
    {"move_mount", move_a_mount},
    {"unshare a user namespace", unshare_user},
    {"unshare a mount namespace", unshare_mount},
    {"unshare a network namespace", unshare_network},
    {"unshare a PID namespace", unshare_pid},
    {"unshare a cgroup namespace", unshare_cgroup},
    {"clone into a user namespace", clone_user},
    {"clone3 into a user namespace", clone3_user},
    {"enter a namespace", enter_namespace},
    {"add a key", key_add},
    {"join a session keyring", key_session},
    {"open the user's keyring", key_user_ring},
    {"request a key", key_request},
    {"bpf", bpf_map},
    {"perf_event_open", perf},
    {"userfaultfd", user_fault},
    {"io_uring", io_uring},
    {"fanotify", fanotify},
    {"open_by_handle_at", handle_open},
    {"load a kernel module", load_module},
    {"load a kernel module from a file", load_module_file},
    {"unload a kernel module", unload_module},
    {"kexec", kexec},
    {"reboot the machine", restart_machine},
    {"swap on", swap_on},
    {"swap off", swap_off},
    {"process accounting", accounting},
    {"quotactl", quota},
    {"read the kernel's log", kernel_log},
    {"set the host name", host_name},
    {"set the domain name", domain_name},
    {"set the clock", set_clock},
    {"slew the clock", slew_clock},
    {"iopl", io_privilege},
    {"ioperm", io_ports},
    {"vhangup", hang_up},
    {"make a block device", block_device},
    {"make a memory device", memory_device},
    {"give a file to root", give_to_root},
    {"raise the priority", more_priority},
    {"real-time scheduling", realtime},
    {"raise the limit of open files", more_files},
    {"allow core dumps", core_dumps},
    {"hide from the OOM killer", escape_oom},
};

static void say(const char *name, int error)
{
    printf("%s\t%s\n", name, error ? strerrorname_np(error) : "done");
    fflush(stdout);
}

static void try_calls(void)
{
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        int status;
        pid_t pid = fork();
        if (pid == 0) {
            alarm(3);
            errno = 0;
            _exit(calls[i].run() < 0 ? errno : 0);
        }
        waitpid(pid, &status, 0);
        say(calls[i].name, WIFEXITED(status) ? WEXITSTATUS(status) : EINTR);
    }
}

static void try_writes(int count, char **paths)
{
    for (int i = 0; i < count; i++)
        say(paths[i], open(paths[i], O_WRONLY | O_CLOEXEC | O_NOCTTY) < 0 ? errno : 0);
}

/* All at once: what is silent costs its time-out once. UDP counts as open if anything answers. */
static void probe(int count, char **targets)
{
    struct pollfd *waiting = calloc((size_t)count, sizeof *waiting);
    const char **answers = calloc((size_t)count, sizeof *answers);
    for (int i = 0; i < count; i++) {
        char *text = strdup(targets[i]);
        char *address = strchr(text, ':') + 1, *port = strrchr(text, ':');
        *port++ = '\0';
        bool udp = strncmp(text, "udp", 3) == 0, six = strchr(address, ':') != NULL;
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
        struct sockaddr_in6 to6 = {.sin6_family = AF_INET6, .sin6_port = to.sin_port};
        char *scope = strchr(address, '%');
        if (scope) {
            *scope++ = '\0';
            to6.sin6_scope_id = if_nametoindex(scope);
        }
        if (inet_pton(six ? AF_INET6 : AF_INET, address, six ? (void *)&to6.sin6_addr : (void *)&to.sin_addr) != 1)
            exit(64);
        int fd = socket(six ? AF_INET6 : AF_INET, (udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK, 0);
        int result = six ? connect(fd, (struct sockaddr *)&to6, sizeof to6) : connect(fd, (struct sockaddr *)&to, sizeof to);
        if (udp && result == 0)
            result = (int)send(fd, "hostile", 7, 0);
        waiting[i] = (struct pollfd){fd, udp ? POLLIN : POLLOUT, 0};
        if (result < 0 && errno != EINPROGRESS) {
            answers[i] = strerrorname_np(errno);
            waiting[i].fd = -1;
        }
    }
    struct timespec end, now;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += 2;
    for (;;) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        int left = (int)((end.tv_sec - now.tv_sec) * 1000 + (end.tv_nsec - now.tv_nsec) / 1000000);
        int open = 0;
        for (int i = 0; i < count; i++)
            open += waiting[i].fd >= 0;
        if (left <= 0 || open == 0 || poll(waiting, (nfds_t)count, left) <= 0)
            break;
        for (int i = 0; i < count; i++)
            if (waiting[i].fd >= 0 && waiting[i].revents) {
                int error = 0;
                socklen_t size = sizeof error;
                getsockopt(waiting[i].fd, SOL_SOCKET, SO_ERROR, &error, &size);
                answers[i] = error ? strerrorname_np(error) : "open";
                waiting[i].fd = -1;
            }
    }
    for (int i = 0; i < count; i++)
        printf("%s\t%s\n", targets[i], answers[i] ? answers[i] : "silent");
}

/* A process of somebody else shows as EPERM; one of the bot's own may be traced, which is no harm. */
static void count_processes(void)
{
    int others = 0, traced = 0;
    for (pid_t pid = 1; pid < 65536; pid++)
        if (kill(pid, 0) < 0 && errno == EPERM) {
            others++;
            traced += ptrace(PTRACE_SEIZE, pid, 0, 0) == 0;
        }
    printf("%d others, %d traced\n", others, traced);
}

/* Starts `wanted` children that run `act`, keeps them for `seconds`; prints how many could be started. */
static void many(int wanted, unsigned seconds, void (*act)(void))
{
    pid_t *children = calloc((size_t)wanted, sizeof *children);
    int made = 0;
    for (; made < wanted; made++) {
        children[made] = fork();
        if (children[made] < 0)
            break;
        if (children[made] == 0) {
            act();
            for (;;)
                pause();
        }
    }
    printf("%d %s\n", made, made < wanted ? strerrorname_np(errno) : "all");
    fflush(stdout);
    sleep(seconds);
    while (made > 0)
        kill(children[--made], SIGKILL);
}

static void nothing(void) {}
static void burn(void) { for (;;) __asm__ volatile(""); }
static void open_files(void)
{
    int made = 0;
    while (open("/dev/null", O_RDONLY) >= 0)
        made++;
    dprintf(1, "%d %s\n", made, strerrorname_np(errno));
}

static void make_inodes(const char *directory)
{
    char path[256];
    int made = 0;
    for (;; made++) {
        snprintf(path, sizeof path, "%s/%d", directory, made);
        int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
        if (fd < 0)
            break;
        close(fd);
    }
    printf("%d %s\n", made, strerrorname_np(errno));
}

static void use_memory(size_t megabytes)
{
    for (size_t i = 0; i < megabytes; i++)
        memset(malloc(1 << 20), 1, 1 << 20);
    printf("%zu MB\n", megabytes);
}

static void hold_connections(const char *address, int port, int wanted, unsigned seconds)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, address, &to.sin_addr);
    int made = 0;
    for (; made < wanted; made++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        struct timeval patience = {.tv_sec = 1};
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
            break;
    }
    printf("%d\n", made);
    fflush(stdout);
    sleep(seconds);
}

int main(int count, char **arguments)
{
    const char *what = count > 1 ? arguments[1] : "";
    if (strcmp(what, "calls") == 0)
        try_calls();
    else if (strcmp(what, "writes") == 0)
        try_writes(count - 2, arguments + 2);
    else if (strcmp(what, "probe") == 0)
        probe(count - 2, arguments + 2);
    else if (strcmp(what, "processes") == 0)
        count_processes();
    else if (strcmp(what, "forks") == 0 && count == 4)
        many(atoi(arguments[2]), (unsigned)atoi(arguments[3]), nothing);
    else if (strcmp(what, "files") == 0 && count == 4)
        many(atoi(arguments[2]), (unsigned)atoi(arguments[3]), open_files);
    else if (strcmp(what, "spin") == 0 && count == 4)
        many(atoi(arguments[2]), (unsigned)atoi(arguments[3]), burn);
    else if (strcmp(what, "inodes") == 0 && count == 3)
        make_inodes(arguments[2]);
    else if (strcmp(what, "memory") == 0 && count == 3)
        use_memory((size_t)atoi(arguments[2]));
    else if (strcmp(what, "connections") == 0 && count == 6)
        hold_connections(arguments[2], atoi(arguments[3]), atoi(arguments[4]), (unsigned)atoi(arguments[5]));
    else if (strcmp(what, "euid") == 0)
        return geteuid() == 0 ? 0 : EPERM;
    else if (strcmp(what, "raw") == 0)
        return raw_icmp() < 0 ? errno : 0;
    else
        return 64;
    return 0;
}
