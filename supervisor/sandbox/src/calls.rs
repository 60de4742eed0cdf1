//! The system calls that processes of the pipeline make, each with its reason. A process has several of these lists; what is on none of
//! them ends it.
//!
//! They come from reading our own code, the C library's and the standard library's, and from the stories, in which each process lives
//! its whole life; where an argument decides what a call can do, it is looked at too.

use libc::{c_int, c_long};

/// One system call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number on this machine.
    pub number: c_long,
    /// With which arguments.
    pub when: When,
    /// What for.
    pub why: &'static str,
}

/// With which arguments a call is made. Arguments are counted from 0 and compared in their low 32 bits.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// Any.
    Always,
    /// One is one of these values.
    Is(u8, &'static [u64]),
    /// One is not this value.
    IsNot(u8, u64),
    /// One has none of these bits.
    Without(u8, u64),
    /// One has all of these bits.
    With(u8, u64),
    /// The first is this process's number.
    Itself,
    /// The first two are a family and a kind of sockets.
    Socket(&'static [(c_int, c_int)]),
    /// The second and third are level and name of a socket's option.
    Setting(&'static [(c_int, c_int)]),
}

/// What a system call is called on this machine.
pub fn name(number: c_int) -> Option<&'static str> {
    let number = usize::try_from(number).ok()?;
    syscalls::Sysno::new(number).map(|call| call.name())
}

/// A call in the word that a stopped process leaves: not zero, which is none.
pub(crate) const fn word_of(number: c_int) -> u32 {
    number.cast_unsigned().wrapping_add(1)
}

/// The call in such a word; none where nothing was left. Whoever wrote it may have written anything.
pub fn named_by(word: u32) -> Option<String> {
    let number = word.checked_sub(1)?.cast_signed();
    Some(name(number).map_or_else(|| format!("number {number}"), str::to_owned))
}

/// Calls that belong together.
pub type List = &'static [Call];

const fn call(number: c_long, when: When, why: &'static str) -> Call {
    Call { number, when, why }
}

use When::{Always, Is, IsNot, Itself, Setting, Socket, With, Without};

/// What every process does: think, sleep, speak, die.
pub const LIVE: List = &[
    call(libc::SYS_futex, Always, "doorbells in the region, locks of the standard library"),
    call(libc::SYS_clock_gettime, Always, "the clocks, where the vDSO cannot tell them"),
    call(libc::SYS_gettimeofday, Always, "the same, as the C library asks"),
    call(libc::SYS_clock_nanosleep, Always, "naps"),
    call(libc::SYS_nanosleep, Always, "naps, as an older C library takes them"),
    call(libc::SYS_sched_yield, Always, "waiting for a thread that is about to be done"),
    call(libc::SYS_restart_syscall, Always, "the kernel resumes a sleep with it after SIGSTOP and SIGCONT"),
    call(libc::SYS_rt_sigreturn, Always, "the end of a signal handler"),
    call(libc::SYS_rt_sigprocmask, Always, "abort; starting a thread"),
    call(
        libc::SYS_rt_sigaction,
        IsNot(0, libc::SIGSYS as u64),
        "the handler of stack overflows steps aside; abort. Never the filter's own",
    ),
    call(libc::SYS_sigaltstack, Always, "the stack of that handler, for each thread"),
    call(libc::SYS_getpid, Always, "abort"),
    call(libc::SYS_gettid, Always, "abort"),
    call(libc::SYS_tgkill, Itself, "abort: a signal to itself, and to nobody else"),
    call(libc::SYS_exit, Always, "the end of a thread"),
    call(libc::SYS_exit_group, Always, "the end"),
    call(libc::SYS_brk, Always, "memory"),
    call(libc::SYS_mmap, Without(2, libc::PROT_EXEC as u64), "memory, of which none becomes code"),
    call(libc::SYS_mprotect, Without(2, libc::PROT_EXEC as u64), "memory, of which none becomes code"),
    call(libc::SYS_mremap, Always, "memory that grows in place"),
    call(libc::SYS_munmap, Always, "memory given back"),
    call(libc::SYS_madvise, Always, "memory given back; a thread's stack at its end"),
    call(libc::SYS_getrandom, Always, "keys of hash maps; the allocator's own seed"),
    call(libc::SYS_write, Always, "log lines; what else is open is the process's own"),
    call(libc::SYS_writev, Always, "the last words of the C library"),
    call(libc::SYS_close, Always, "descriptors given up"),
    call(
        libc::SYS_fcntl,
        Is(1, &[libc::F_GETFD as u64]),
        "whether they were open, where the standard library checks that",
    ),
];

/// For processes that start threads.
pub const THREADS: List = &[
    call(
        libc::SYS_clone,
        With(0, (libc::CLONE_THREAD | libc::CLONE_VM) as u64),
        "threads, and never a process",
    ),
    call(
        libc::SYS_clone3,
        Always,
        "threads: answered as by a kernel that has it not, because its flags cannot be seen (`filter`)",
    ),
    call(libc::SYS_set_robust_list, Always, "the C library, in each new thread"),
    call(libc::SYS_rseq, Always, "the C library, in each new thread"),
    call(libc::SYS_sched_getaffinity, Always, "the C library asks where a thread's stack ends"),
    call(libc::SYS_prctl, Is(0, &[libc::PR_SET_NAME as u64]), "a thread's name"),
    call(libc::SYS_prlimit64, Is(2, &[0]), "the C library asks how long a stack may be"),
    call(libc::SYS_eventfd2, Always, "one thread wakes another that waits for sockets"),
];

/// Naps that end when they should.
pub const FINE_TIMERS: List =
    &[call(libc::SYS_prctl, Is(0, &[libc::PR_SET_TIMERSLACK as u64]), "naps that end when they should")];

/// Waiting for descriptors.
pub const WAIT: List = &[
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_poll, Always, "waiting for a socket or a pipe"),
    call(libc::SYS_ppoll, Always, "waiting for a socket or a pipe"),
    call(libc::SYS_read, Always, "the counter that a thread is woken by; streams and files that are open"),
];

/// Waiting for many sockets, live capturer and injector.
pub const EPOLL: List = &[
    call(libc::SYS_epoll_create1, Always, "waiting for sockets"),
    call(libc::SYS_epoll_ctl, Always, "waiting for sockets"),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_epoll_wait, Always, "waiting for sockets"),
    call(libc::SYS_epoll_pwait, Always, "waiting for sockets"),
];

/// The capturer at work on packet sockets that were opened, filtered and handed to it.
pub const CAPTURE: List = &[
    call(libc::SYS_getsockopt, Always, "how many frames the kernel dropped; a device's error"),
    call(libc::SYS_getsockname, Always, "whether the device is still there"),
    call(
        libc::SYS_setsockopt,
        Setting(&[(libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP)]),
        "a mirror port again after its device was away",
    ),
    call(
        libc::SYS_bind,
        Always,
        "the socket to no protocol, which ends the capture, and again to a device that was away; its filter is locked",
    ),
    call(libc::SYS_recvfrom, Always, "frames, where there is no ring"),
];

/// Which devices there are (getifaddrs(3), if_nametoindex(3)).
pub const DEVICES: List = &[
    call(
        libc::SYS_socket,
        Socket(&[
            (libc::AF_NETLINK, libc::SOCK_RAW),
            (libc::AF_INET, libc::SOCK_DGRAM),
            (libc::AF_UNIX, libc::SOCK_DGRAM),
        ]),
        "the kernel's word about devices; without capabilities it takes no orders by these",
    ),
    call(libc::SYS_bind, Always, "netlink"),
    call(libc::SYS_getsockname, Always, "netlink"),
    call(libc::SYS_sendto, Always, "the question"),
    call(libc::SYS_recvmsg, Always, "the answer"),
    call(
        libc::SYS_ioctl,
        Is(1, &[libc::SIOCGIFINDEX, libc::SIOCGIFNAME, libc::SIOCGIFHWADDR, libc::SIOCGIFFLAGS]),
        "a device's number, name, address and state",
    ),
];

/// Files that are read.
pub const READ_FILES: List = &[
    call(libc::SYS_openat, Always, "files, as far as they are in reach (landlock)"),
    call(libc::SYS_read, Always, "what is in them"),
    call(libc::SYS_pread64, Always, "what is in them"),
    call(libc::SYS_readv, Always, "what is in them"),
    call(libc::SYS_lseek, Always, "from their begin again"),
    call(libc::SYS_fstat, Always, "how long they are"),
    call(libc::SYS_statx, Always, "how long they are"),
    call(libc::SYS_newfstatat, Always, "how long they are"),
    call(
        libc::SYS_fcntl,
        Is(
            1,
            &[
                libc::F_GETFD as u64,
                libc::F_SETFD as u64,
                libc::F_GETFL as u64,
                libc::F_SETFL as u64,
                libc::F_DUPFD_CLOEXEC as u64,
            ],
        ),
        "flags of what was opened: a pipe does not block its open, but its reads",
    ),
];

/// Files that are made, written, named and removed, one after the other.
pub const WRITE_FILES: List = &[
    call(libc::SYS_getdents64, Always, "the recordings that there are"),
    call(libc::SYS_flock, Always, "a file that is being written is locked"),
    call(libc::SYS_ftruncate, Always, "a block that did not fit is taken back"),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_rename, Always, "a file that is whole gets its name"),
    call(libc::SYS_renameat2, Always, "a file that is whole gets its name"),
    call(libc::SYS_renameat, Always, "a file that is whole gets its name"),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_unlink, Always, "the oldest recordings go"),
    call(libc::SYS_unlinkat, Always, "the oldest recordings go"),
    call(libc::SYS_getppid, Always, "whose cores the recorder may use: the supervisor's"),
    call(libc::SYS_getpriority, Always, "which CPU priority the capturer has"),
    call(libc::SYS_setpriority, Is(1, &[0]), "the recorder's own, which is lower"),
    call(libc::SYS_sched_setaffinity, Always, "the recorder leaves the capturer's core"),
    call(libc::SYS_sched_getaffinity, Always, "which cores there are"),
];

/// libpcap, which opens its sockets by itself, when it likes.
pub const LIBPCAP: List = &[
    call(
        libc::SYS_socket,
        Socket(&[
            (libc::AF_PACKET, libc::SOCK_RAW),
            (libc::AF_PACKET, libc::SOCK_DGRAM),
            (libc::AF_NETLINK, libc::SOCK_RAW),
            (libc::AF_UNIX, libc::SOCK_RAW),
            (libc::AF_INET, libc::SOCK_RAW),
        ]),
        "its capture sockets; questions about devices",
    ),
    call(libc::SYS_setsockopt, Always, "their rings and filters"),
    call(libc::SYS_getsockopt, Always, "their errors"),
    call(libc::SYS_ioctl, Always, "a device's type, number and offloads"),
    call(libc::SYS_readlinkat, Always, "whether a device is wireless"),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_readlink, Always, "whether a device is wireless"),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_access, Always, "whether a device is wireless"),
    call(libc::SYS_faccessat, Always, "whether a device is wireless"),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_stat, Always, "whether a device is wireless"),
    call(libc::SYS_fcntl, Always, "sockets that do not block"),
    call(libc::SYS_uname, Always, "which kernel this is"),
    call(libc::SYS_sendto, Always, "a frame"),
    call(libc::SYS_write, Always, "a frame"),
    call(libc::SYS_eventfd2, Always, "its way to be interrupted"),
];

/// The capturer on AF_XDP, whose sockets and memory were made before.
pub const XDP: List = &[call(
    libc::SYS_bpf,
    Is(0, &[2, 3]),
    "BPF_MAP_UPDATE_ELEM, BPF_MAP_DELETE_ELEM: sockets in the map, and out of it",
)];

/// The injector: packets out by sockets that were opened and handed to it.
pub const INJECT: List = &[
    call(libc::SYS_sendmmsg, Always, "packets"),
    call(libc::SYS_recvfrom, Always, "the supervisor's word about the ways to the targets"),
    call(
        libc::SYS_socket,
        Socket(&[(libc::AF_INET, libc::SOCK_DGRAM), (libc::AF_INET6, libc::SOCK_DGRAM)]),
        "a packet was too long: the kernel is asked for the route's MTU; nothing is sent by this",
    ),
    call(libc::SYS_bind, Always, "the same"),
    call(libc::SYS_connect, Always, "the same"),
    call(libc::SYS_getsockname, Always, "the same"),
    call(libc::SYS_getsockopt, Always, "the same"),
];

/// The return channel: it dials, and nobody can dial it.
pub const RETURNS: List = &[
    call(
        libc::SYS_socket,
        Socket(&[(libc::AF_INET, libc::SOCK_STREAM), (libc::AF_INET6, libc::SOCK_STREAM)]),
        "the connection to each intercept",
    ),
    call(libc::SYS_connect, Always, "the connection to each intercept; to no other port (landlock)"),
    call(libc::SYS_getsockopt, Always, "whether it came about"),
    call(libc::SYS_getpeername, Always, "whether it came about"),
    call(
        libc::SYS_setsockopt,
        Setting(&[
            (libc::IPPROTO_TCP, libc::TCP_NODELAY),
            (libc::SOL_SOCKET, libc::SO_RCVBUF),
            (libc::SOL_SOCKET, libc::SO_SNDBUF),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
        ]),
        "small frames leave at once",
    ),
    call(libc::SYS_sendto, Always, "hello, claims, pings"),
    call(libc::SYS_recvfrom, Always, "headers of answers"),
];

/// intercept: a door, a control socket and a page of figures, all of which listen already.
pub const SERVE: List = &[
    call(libc::SYS_sendmsg, Always, "signs of life to the service manager"),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_dup2, Always, "at the end stderr is the given one again"),
    call(libc::SYS_dup3, Always, "at the end stderr is the given one again"),
    call(libc::SYS_accept4, Always, "connections of instances; the control socket; who reads the figures"),
    call(libc::SYS_getsockname, Always, "where it arrived"),
    call(libc::SYS_getsockopt, Always, "errors of a connection"),
    call(
        libc::SYS_setsockopt,
        Setting(&[
            (libc::IPPROTO_TCP, libc::TCP_NODELAY),
            (libc::SOL_SOCKET, libc::SO_RCVBUF),
            (libc::SOL_SOCKET, libc::SO_SNDBUF),
            (libc::SOL_SOCKET, libc::SO_RCVTIMEO),
            (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
        ]),
        "small frames leave at once; nobody holds the reader of figures up",
    ),
    call(libc::SYS_sendto, Always, "headers of answers"),
    call(libc::SYS_recvfrom, Always, "hello, claims, pings; requests"),
    call(libc::SYS_shutdown, Always, "the end of a connection"),
    call(libc::SYS_ioctl, Is(1, &[libc::FIONBIO]), "a connection that does not block"),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_unlink, Always, "the control socket goes"),
    call(libc::SYS_unlinkat, Always, "the control socket goes"),
    call(libc::SYS_pipe2, Always, "Ctrl-C is told to a thread"),
    call(
        libc::SYS_fcntl,
        Is(1, &[libc::F_GETFL as u64, libc::F_SETFL as u64]),
        "the pipe that tells it does not block",
    ),
    call(
        libc::SYS_socket,
        Socket(&[(libc::AF_INET, libc::SOCK_DGRAM), (libc::AF_INET6, libc::SOCK_DGRAM)]),
        "the kernel is asked for this host's address towards a target, for the advice about routes; nothing is sent",
    ),
    call(libc::SYS_connect, Always, "the same; TCP to nowhere (landlock)"),
    call(libc::SYS_getcwd, Always, "a panic's backtrace, where RUST_BACKTRACE asks for one"),
    call(libc::SYS_readlinkat, Always, "the same"),
    #[cfg(target_arch = "x86_64")]
    call(libc::SYS_readlink, Always, "the same"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_names_the_call_that_was_put_into_it() {
        assert_eq!(named_by(0), None);
        assert_eq!(named_by(word_of(libc::SYS_openat as c_int)).unwrap(), "openat");
        // The first one on x86-64 is number 0.
        assert_eq!(named_by(word_of(libc::SYS_read as c_int)).unwrap(), "read");
        assert_eq!(named_by(4_242).unwrap(), "number 4241");
        assert_eq!(named_by(u32::MAX).unwrap(), "number -2");
    }
}
