#!/usr/bin/env python3
"""Compares the system calls that each process makes with those that its sandbox lets it make.

  scripts/calls.py [--often] [STORY...]     stories of `cargo test -p tcptwin --test replay`; without any, some of all kinds

Runs the stories under strace(1), sandbox on, as root. Prints, for each process and each list that one had, which calls of the list
nobody made: for each of them the reason in supervisor/sandbox/src/calls.rs must say when it is made, or it goes. A call that is
missing from a list needs no search: it ends the process, and the story fails; it is printed too.

Two things are as they should be: intercept's guard of a host that forwards stays outside of its filter, and runs nft(8); and the
story of an answer that kills has an autopsy stopped at `socket`.

The lists are not read from our source: the program that the process hands to the kernel (seccomp(2)) is run through for every number.

strace makes a call some ten times slower, so those that packets are made of are left alone, and stories come to their end. With
--often they are looked at too; a story may fail then because of strace alone, and what was seen counts all the same.
"""

import collections
import json
import os
import re
import signal
import subprocess
import sys
import tempfile

# Every engine, every way to end, every process that dies and goes on, every kind of input.
STORIES = """
ctrl_c_drains_and_leaves_nothing_behind
keep_alive_with_the_simple_engine keep_alive_with_the_pcap_engine
link_does_it_all raw_ip_does_it_all libpcap_does_it_all
an_upgrade_under_load_loses_nothing the_capturer_is_killed_under_load the_injector_is_killed_under_load
a_file_from_standard_input a_compressed_recording_of_all_interfaces_with_loopback a_recording_stays_within_its_total
a_run_records_by_the_pcap_engine a_recording_by_the_simple_engine
intercept_on_the_target_with_a_tun_device a_return_channel_with_a_key real_client_addresses_are_kept
datagrams_of_every_length_beside_connections metrics_say_what_stats_say a_host_that_forwards_needs_a_rule
the_device_goes_down_and_another_takes_over the_return_channel_is_cut_for_ten_seconds
a_mirror_port_is_replayed_by_another_machine files_of_tcpdump_are_read_and_replayed
a_mirror_port_with_the_xdp_engine an_upgrade_of_a_recorded_mirror_port_loses_nothing
a_log_that_nobody_reads_holds_nothing_up an_answer_that_kills_twice_costs_its_session_alone
a_stopped_role_is_replaced_in_time under_a_service_manager_nothing_is_lost
a_named_pipe_whose_writer_or_reader_dies doctor_explains_a_run_that_goes_on
""".split()

# Made for packets and naps, thousands of times a second.
OFTEN = """
futex clock_nanosleep clock_gettime epoll_wait epoll_pwait poll ppoll sendmmsg recvmmsg recvfrom sendto read readv write writev
""".split()

ALLOW, TRAP = "SECCOMP_RET_ALLOW", "SECCOMP_RET_TRAP"
STEP = re.compile(r"BPF_(STMT|JUMP)\(([A-Z_|0-9a-fx]+), ([^,()]+)(?:, (\w+), (\w+))?\)")


def allowed(program, numbers):
    """Numbers that the program lets through with some arguments."""
    steps = [(kind, code.split("|"), k.strip(), jt, jf) for kind, code, k, jt, jf in STEP.findall(program)]

    def passes(number):
        # Where, and what the accumulator holds: the number, or something that may be anything.
        todo, seen = [(0, None)], set()
        while todo:
            at, held = todo.pop()
            if (at, held) in seen:
                continue
            seen.add((at, held))
            kind, code, k, jt, jf = steps[at]
            if "BPF_RET" in code:
                if k.split("|")[0].strip() == ALLOW:
                    return True
            elif "BPF_JMP" in code and "BPF_JA" in code:
                todo.append((at + 1 + int(k, 0), held))
            elif kind == "JUMP":
                yes, no = (at + 1 + int(jt, 0), held), (at + 1 + int(jf, 0), held)
                if held is None or "BPF_JEQ" not in code:
                    todo += [yes, no]
                else:
                    todo.append(yes if int(k, 0) == held else no)
            elif "BPF_LD" in code:
                todo.append((at + 1, number if k in ("0", "0x0", "offsetof(struct seccomp_data, nr)") else None))
            else:
                todo.append((at + 1, None))
        return False

    return frozenset(number for number in numbers if passes(number))


def names():
    """Of this machine, as strace has them."""
    header = subprocess.run(["gcc", "-dM", "-E", "-"], input="#include <sys/syscall.h>\n", text=True, capture_output=True, check=True)
    return {int(n): name for name, n in re.findall(r"#define __NR_(\w+) (\d+)$", header.stdout, re.M)}


def role(arguments):
    words = re.findall(r'"((?:[^"\\]|\\.)*)"', arguments)
    if len(words) > 2 and words[1] == "role":
        return words[2]
    if len(words) > 1 and (words[1] == "intercept" or words[1:3] == ["autopsy", "--inside"]):
        return words[1]
    return None


def read(trace, table):
    """For each process that entered a sandbox: its role, its list, what it called behind that, and what it died of."""
    lines = [line.split(None, 1) for line in open(trace, errors="replace") if " " in line]
    leader = {}
    pending = {}
    for pid, rest in lines:
        if "clone" in rest and "<unfinished" in rest:
            pending[pid] = rest
        done = re.search(r"clone3?(?: resumed>|\().* = (\d+)", rest)
        if done:
            if "CLONE_THREAD" in pending.pop(pid, "") + rest:
                leader[done.group(1)] = pid

    def of(pid):
        while pid in leader:
            pid = leader[pid]
        return pid

    kind, programs, found = {}, collections.defaultdict(list), {}
    for pid, rest in lines:
        process = of(pid)
        if rest.startswith("execve("):
            program = re.match(r'execve\("([^"]*)", \[(.*?)\]', rest)
            kind[process] = role(program.group(2)) if program else None
            programs.pop(process, None)
            found.pop(process, None) if process in found and not found[process]["seen"] else None
        elif kind.get(process) is None:
            continue
        elif rest.startswith("seccomp(SECCOMP_SET_MODE_FILTER"):
            programs[process].append(rest)
            if TRAP in rest:
                found[process] = {"role": kind[process], "list": allowed(rest, table), "seen": set(), "died": None}
        elif process in found:
            call = re.match(r"(?:<\.\.\. )?(\w+)(?:\(| resumed)", rest)
            if call:
                found[process]["seen"].add(call.group(1))
            died = re.search(r"SIGSYS .*si_syscall=__NR_(\w+)", rest)
            if died:
                found[process]["died"] = died.group(1)
    return found.values()


def main():
    often = "--often" in sys.argv
    stories = [word for word in sys.argv[1:] if word != "--often"] or STORIES[:]
    options, left_alone = ([], set()) if often else (["-e", "trace=!" + ",".join(OFTEN)], set(OFTEN))
    table = names()
    built = subprocess.run(
        ["cargo", "test", "--locked", "-p", "tcptwin", "--features", "xdp", "--test", "replay", "--no-run", "--message-format=json"],
        stdout=subprocess.PIPE, text=True, check=True)
    made = [json.loads(line) for line in built.stdout.splitlines() if line.startswith("{")]
    binary = next(one["executable"] for one in made if one.get("executable") and one["target"]["name"] == "replay")
    lists = collections.defaultdict(lambda: {"seen": set(), "stories": set()})
    # Ctrl-C prints what was seen so far.
    signal.signal(signal.SIGINT, lambda *_: stories.clear())
    while stories:
        story = stories.pop(0)
        with tempfile.TemporaryDirectory() as place:
            trace = os.path.join(place, "trace")
            done = subprocess.run(
                ["strace", "-f", "--seccomp-bpf", "-v", "-s", "24", *options, "-o", trace, binary, "--exact", story],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            said = [line for line in done.stdout.splitlines() if line.strip()][-1:]
            print(f"{story}: {' '.join(said)}", file=sys.stderr, flush=True)
            for one in read(trace, table):
                of = lists[one["role"], one["list"]]
                of["seen"] |= one["seen"]
                of["stories"].add(story)
                if one["died"]:
                    print(f"{story}: {one['role']} was stopped at {one['died']}", flush=True)
    for (who, numbers), of in sorted(lists.items(), key=lambda item: (item[0][0], len(item[0][1]))):
        listed = {table.get(number, str(number)) for number in numbers}
        listed -= left_alone
        print(f"{who}: {len(listed)} calls listed, {len(listed & of['seen'])} made (in {', '.join(sorted(of['stories']))})")
        print("  never: " + " ".join(sorted(listed - of["seen"])))
        # Its answer comes behind the filter.
        strange = of["seen"] - listed - left_alone - {"clone3", "seccomp"}
        if strange:
            print("  made, and not listed: " + " ".join(sorted(strange)))


main()
