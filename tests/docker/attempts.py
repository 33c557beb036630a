"""What generated code may try in order to get out of its container: `python -c "$(cat attempts.py)" NAME LAB`.

Each attempt is a function of the laboratory (where things lie and listen) that returns what it got hold of, or raises.
The text of this module is sent into a container as a job's code, so it imports nothing but the standard library.
All of them are bounded: what would be a bomb stops by itself. The laboratory spells its key backwards, so that an
attempt that finds the key has found somebody else's copy.
"""

# Nothing is to be in the way of the system calls that are tried.
# ruff: noqa: PTH107, PTH116, PTH118, PTH123, PTH202, PTH207, PTH208

from __future__ import annotations

import ctypes
import glob
import json
import os
import platform
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

Lab = dict[str, Any]
MB = 1 << 20


def system_call(name: str, *arguments: Any) -> int:
    """A function of libc; OSError where it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(getattr(libc, name)(*arguments))
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def the_key(of: Lab) -> str:
    return str(of["key"])[::-1]


# Reading what it was not given


def read_the_hosts_passwords(lab: Lab) -> str:
    for path in ("/etc/shadow", "/proc/1/root/etc/shadow", "/proc/self/cwd/../../../../../../../etc/shadow"):
        try:
            with open(path) as file:
                return file.read(100)
        except OSError as problem:
            error = problem
    raise error


def read_the_journal(lab: Lab) -> str:
    with open(lab["journal"]) as file:
        return file.read()


def read_another_trial(lab: Lab) -> str:
    with open(lab["other"]) as file:
        return file.read()


def climb_out_of_the_workspace(lab: Lab) -> str:
    with open(os.path.join(lab["workspace"], "..", "..", "0001", "train", "secret.txt")) as file:
        return file.read()


def find_a_key_in_the_environment(lab: Lab) -> str:
    found = [name for name, value in os.environ.items() if the_key(lab) in value]
    if not found:
        raise LookupError("no key in the environment")
    return found[0]


def find_a_key_in_a_file(lab: Lab) -> str:
    for directory, _, names in os.walk(lab["anywhere"]):
        if directory.startswith(("/proc", "/sys")):
            continue
        for name in names:
            path = os.path.join(directory, name)
            try:
                if os.path.getsize(path) > MB or not stat.S_ISREG(os.stat(path).st_mode):
                    continue
                with open(path, "rb") as file:
                    if the_key(lab).encode() in file.read():
                        return str(path)
            except OSError:
                continue
    raise LookupError("no key in any file")


def find_a_key_in_a_process(lab: Lab) -> str:
    for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                if the_key(lab).encode() in file.read():
                    return path
        except OSError:
            continue
    raise LookupError("no key in any process")


def open_a_file_by_its_handle(lab: Lab) -> str:
    """The way past mounts that every container of 2014 had open: a file's handle opens it wherever it lies."""

    class Handle(ctypes.Structure):
        _fields_ = (("size", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128))

    path = os.path.join(lab["workspace"], "handle")
    with open(path, "w") as file:
        file.write("x")
    handle, mount = Handle(size=128), ctypes.c_int()
    system_call("name_to_handle_at", -100, path.encode(), ctypes.byref(handle), ctypes.byref(mount), 0)
    directory = os.open(lab["workspace"], os.O_RDONLY)
    return f"descriptor {system_call('open_by_handle_at', directory, ctypes.byref(handle), os.O_RDONLY)}"


# Writing where it must not


def write_into_the_system(lab: Lab) -> str:
    for path in ("/ftloop-test", "/etc/ftloop-test", "/usr/ftloop-test"):
        try:
            with open(path, "w") as file:
                file.write("was here")
        except OSError as problem:
            error = problem
        else:
            os.remove(path)
            return path
    raise error


def change_the_model(lab: Lab) -> str:
    with open(os.path.join(lab["model"], "weights"), "a") as file:
        file.write("")
    return "opened the weights for writing"


def put_a_file_beside_the_programs(lab: Lab) -> str:
    path = os.path.join(lab["programs"], "sitecustomize.py")
    with open(path, "w") as file:
        file.write("")
    os.remove(path)
    return path


def mount_the_model_writable(lab: Lab) -> str:
    remount, bind = 32, 4096
    system_call("mount", None, lab["model"].encode(), None, remount | bind, None)
    return change_the_model(lab)


def link_to_the_model(lab: Lab) -> str:
    path = os.path.join(lab["workspace"], "hard-link")
    os.link(os.path.join(lab["model"], "weights"), path)
    os.remove(path)
    return path


# Reaching somebody


def reach_a_service_of_the_host(lab: Lab) -> str:
    with socket.create_connection(("127.0.0.1", lab["tcp"]), timeout=3) as connection:
        return connection.recv(100).decode()


def ask_a_name_server(lab: Lab) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        query.settimeout(3)
        query.connect(("127.0.0.1", lab["udp"]))
        query.send(b"who is example.org?")
        return query.recv(100).decode()


def reach_another_machine(lab: Lab) -> str:
    return reach(lab["machine"])


def reach_the_metadata_service(lab: Lab) -> str:
    return reach(lab["metadata"])


def reach(address: list[Any]) -> str:
    """A way out is an escape; it is not walked, so that no packet leaves the machine that runs the tests."""
    if ways := [name for name in os.listdir("/sys/class/net") if name != "lo"]:
        return f"ways out: {ways}"
    with socket.create_connection((address[0], address[1]), timeout=3):
        return f"connected to {address}"


def open_a_raw_socket(lab: Lab) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        return f"descriptor {raw.fileno()}"


def reach_a_socket_without_a_path(lab: Lab) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("\0" + lab["abstract"])
        return connection.recv(100).decode()


def reach_a_socket_of_the_host(lab: Lab) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(lab["unix"])
        return connection.recv(100).decode()


def talk_to_the_engine(lab: Lab) -> str:
    for path in (lab["engine"], "/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock"):
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(path)
                connection.send(b"GET /_ping HTTP/1.0\r\n\r\n")
                return connection.recv(100).decode()
        except OSError as problem:
            error = problem
    raise error


# Using up the machine


def fork_without_end(lab: Lab) -> str:
    children: list[int] = []
    try:
        for _ in range(300):
            if (pid := os.fork()) == 0:
                time.sleep(30)
                os._exit(0)
            children.append(pid)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
    return f"{len(children)} processes"


def eat_the_memory(lab: Lab) -> str:
    eaten = [b"x" * (16 * MB) for _ in range(16)]
    return f"{len(eaten) * 16} MB"


def eat_the_memory_through_tmp(lab: Lab) -> str:
    for number in range(16):
        with open(f"/tmp/part-{number}", "wb") as file:
            file.write(b"x" * (16 * MB))
    return "256 MB"


def fill_the_disk(lab: Lab) -> str:
    for number in range(60):
        with open(os.path.join(lab["workspace"], f"part-{number}"), "wb") as file:
            file.write(bytes(2 * MB))
        time.sleep(lab["pause"])
    return "120 MB"


def fill_the_disk_with_empty_files(lab: Lab) -> str:
    for number in range(20_000):
        with open(os.path.join(lab["workspace"], f"empty-{number}"), "wb"):
            pass
        time.sleep(lab["pause"] / 200)
    return "20,000 files"


def fill_the_disk_unseen(lab: Lab) -> str:
    """A file that has no name is in no directory that could be counted."""
    path = os.path.join(lab["workspace"], "hidden")
    with open(path, "wb", buffering=0) as file:
        os.remove(path)
        for _ in range(16):
            file.write(b"x" * (4 * MB))
    return "64 MB"


def flood_the_log(lab: Lab) -> str:
    for _ in range(15):
        os.write(2, (b"x" * 99 + b"\n") * 40_000)
        time.sleep(lab["pause"] * 3)
    return "60 MB"


# Gaining rights


def run_a_program_of_roots(lab: Lab) -> str:
    environment = {"PYTHONHOME": "/usr/local"}
    code = "import os; print(os.geteuid())"
    argv = [os.path.join(lab["model"], "setuid-python"), "-S", "-c", code]
    run = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    if run.stdout.strip() != "0":
        raise PermissionError(f"still user {run.stdout.strip()}")
    return "effective user 0"


def become_root(lab: Lab) -> str:
    os.setgroups([0])
    os.setgid(0)
    os.setuid(0)
    return f"user {os.getuid()}"


def show_its_rights(lab: Lab) -> str:
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
    shown = " ".join(f"{name}={int(status[name], 16)}" for name in names)
    if shown == "CapInh=0 CapPrm=0 CapEff=0 CapBnd=0 CapAmb=0 NoNewPrivs=1 Seccomp=2":
        raise PermissionError(shown)
    return shown


def make_a_device(lab: Lab) -> str:
    path = os.path.join(lab["workspace"], "disk")
    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(7, 99))
    os.remove(path)
    return path


def open_the_kernels_devices(lab: Lab) -> str:
    for path in ("/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg", "/proc/kcore", "/dev/vda", "/dev/sda"):
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        except OSError as problem:
            error = problem
        else:
            return path
    raise error


def mount_a_file_system(lab: Lab) -> str:
    system_call("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None)
    return "mounted"


def make_a_namespace(lab: Lab) -> str:
    new_mounts, new_user = 0x00020000, 0x10000000
    system_call("unshare", new_user | new_mounts)
    return "root of a new user namespace"


def change_its_root(lab: Lab) -> str:
    os.chroot(lab["workspace"])
    return "chroot"


def set_the_clock(lab: Lab) -> str:
    time.clock_settime(time.CLOCK_REALTIME, time.time())
    return "to the time that it showed"


def set_a_kernel_parameter(lab: Lab) -> str:
    """Opened, never written: sysrq-trigger would restart the machine."""
    for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory"):
        try:
            os.close(os.open(path, os.O_WRONLY))
        except OSError as problem:
            error = problem
        else:
            return path
    raise error


def unload_a_kernel_module(lab: Lab) -> str:
    """Of a name that no module has: the kernel looks for it only if the caller has the right to unload one."""
    number = {"x86_64": 176, "aarch64": 106}[platform.machine()]
    try:
        system_call("syscall", number, b"ftloop_no_such_module", os.O_NONBLOCK)
    except FileNotFoundError:
        return "the kernel looked for it"
    return "unloaded"


def run_a_program_on_the_host(lab: Lab) -> str:
    """The first step of the release_agent escape: to write into the control groups."""
    wanted = {"release_agent", "notify_on_release", "cgroup.procs", "pids.max", "memory.limit_in_bytes"}
    error: OSError = FileNotFoundError("no control groups")
    for directory, _, names in os.walk("/sys/fs/cgroup"):
        for name in wanted.intersection(names):
            try:
                os.close(os.open(os.path.join(directory, name), os.O_WRONLY))
            except OSError as problem:
                error = problem
            else:
                return os.path.join(directory, name)
    raise error


def trace_a_process_of_the_host(lab: Lab) -> str:
    attach, detach, all_children = 16, 17, 0x40000000
    system_call("ptrace", attach, lab["process"], None, None)
    os.waitpid(lab["process"], all_children)
    system_call("ptrace", detach, lab["process"], None, None)
    return f"traced {lab['process']}"


def kill_a_process_of_the_host(lab: Lab) -> str:
    os.kill(lab["process"], signal.SIGCONT)
    return f"signalled {lab['process']}"


def take_priority(lab: Lab) -> str:
    os.setpriority(os.PRIO_PROCESS, 0, -10)
    return "nice -10"


def rename_the_machine(lab: Lab) -> str:
    system_call("sethostname", b"ftloop", 6)
    return "sethostname"


if __name__ == "__main__" and len(sys.argv) == 3:
    attempt: Callable[[Lab], str] = globals()[sys.argv[1]]
    got = attempt(json.loads(sys.argv[2]))
    print("ESCAPED:", got)
