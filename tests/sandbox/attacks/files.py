"""Files, descriptors and the environment: of the machine, and of other calls."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import glob
import mmap
import os
import re
import socket
import struct
import sys
import tempfile
from pathlib import Path
from types import FrameType

from tests.sandbox.attacks.corpus import LIBC, NUMBERS, Channel, attack, call, raw

HOST_NAMES = ("home", "root/.ssh", "var", "usr/bin", "opt", "srv", "boot", "sys", "proc", "run", "mnt", "work")
HOST_FILES = (
    "etc/shadow",
    "etc/hostname",
    "etc/hosts",
    "etc/ssl",
    "etc/machine-id",
    "etc/os-release",
    "etc/ld.so.cache",
)
"""Of ``/etc`` a sandbox has what names its own user."""
OWN_VARIABLES = {"HOME", "TMPDIR", "LANG", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"}
"""What the sandbox itself sets."""
AT_FDCWD = -100
CAPABILITY_VERSION_3 = 0x2008_0522
CAP_SYS_CHROOT = 18


@attack
def read_passwd(_: Channel) -> object:
    """Of users, there is the sandbox's own."""
    return [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("sandbox:x:1000:")]


@attack
def read_groups(_: Channel) -> object:
    return [line for line in Path("/etc/group").read_text().splitlines() if line != "sandbox:x:1000:"]


@attack
def read_shadow_through_parents(_: Channel) -> object:
    return Path("../../../../../../../../etc/shadow").read_bytes()


@attack
def list_host_directories(_: Channel) -> object:
    return [name for name in (*HOST_NAMES, *HOST_FILES) if Path("/", name).exists()]


@attack
def read_environment(_: Channel) -> object:
    return {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}


@attack
def read_environment_of_the_process(_: Channel) -> object:
    environ = ctypes.POINTER(ctypes.c_char_p).in_dll(LIBC, "environ")
    found = []
    index = 0
    while entry := environ[index]:
        found.append(entry)
        index += 1
    return [entry for entry in found if entry.split(b"=")[0].decode() not in OWN_VARIABLES]


@attack
def read_other_bundles(_: Channel) -> object:
    return os.listdir("/bundles")


@attack
def open_other_bundles_beneath_the_cover(_: Channel) -> object:
    return [name for name in ("innocent", "../bundles/innocent") if Path("/bundles", name).exists()]


@attack
def list_private_directories(_: Channel) -> object:
    return os.listdir("/tmp")


@attack
def glob_private_directories(_: Channel) -> object:
    return [name for name in glob.glob("/**", recursive=True, include_hidden=True) if "private" in name]


@attack
def find_private_directories_in_memory(_: Channel) -> object:
    """What this process's zygote knew of calls that run or come, in its frames and in all of its objects."""
    frame: FrameType | None = sys._getframe()
    found = set()
    while frame is not None:
        found |= {name for value in frame.f_locals.values() for name in getattr(value, "_names", {}).values()}
        frame = frame.f_back
    gc.unfreeze()
    found |= {one for one in gc.get_referents(*gc.get_objects()) if isinstance(one, bytes) and len(one) in (16, 32)}
    places = [f"{root}/{name.decode(errors='ignore')}" for name in found for root in ("", "/tmp", "/bundles", "/code")]
    return [place for place in places if "\0" not in place and not place.endswith("/") and os.path.exists(place)]


@attack
def keep_descriptors_of_other_roots(_: Channel) -> object:
    """Directories that the zygote was given for calls, and did not close in time."""
    found = []
    for descriptor in range(4, 256):
        with contextlib.suppress(OSError):
            found.append((descriptor, os.fstat(descriptor)))
    return found


@attack
def climb_above_the_root(_: Channel) -> object:
    top = os.open("/", os.O_PATH | os.O_DIRECTORY)
    above = top
    for _step in range(64):
        above = os.open("..", os.O_PATH | os.O_DIRECTORY, dir_fd=above)
        if (os.fstat(above).st_dev, os.fstat(above).st_ino) != (os.fstat(top).st_dev, os.fstat(top).st_ino):
            return os.listdir(above)
        os.fchdir(above)
    return None


@attack
def leave_by_another_root(_: Channel) -> object:
    """The old way out of chroot: a root below the current directory."""
    above = os.open("/", os.O_PATH | os.O_DIRECTORY)
    os.mkdir("below")
    os.chroot("below")
    os.fchdir(above)
    return os.listdir("..")


@attack
def take_back_the_right_to_another_root(_: Channel) -> object:
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    right = 1 << CAP_SYS_CHROOT
    return call("capset", header, struct.pack("=6I", right, right, right, 0, 0, 0)) == 0


@attack
def keep_a_right(_: Channel) -> object:
    have = ctypes.create_string_buffer(24)
    raw(NUMBERS["capget"], struct.pack("=Ii", CAPABILITY_VERSION_3, 0), have)
    return any(have.raw)


@attack
def make_a_directory_above_the_private_one(_: Channel) -> object:
    os.mkdir("../for-the-next-call")
    return "made"


@attack
def write_to_the_code(_: Channel) -> object:
    return Path("/code/changed.py").write_text("x = 1")


@attack
def overwrite_the_interpreter(_: Channel) -> object:
    return os.open("/python/bin/python3", os.O_WRONLY)


@attack
def write_anywhere(_: Channel) -> object:
    made = []
    for directory in ("/", "/code", "/bundles", "/python", "/packages", "/runtime", "/dev", "/lib", "/root"):
        try:
            Path(directory, "x").write_bytes(b"x")
        except OSError:
            continue
        made.append(directory)
    return made


@attack
def symlink_out_of_the_private_directory(_: Channel) -> object:
    Path("link").symlink_to("/etc/hostname")
    return Path("link").read_bytes()


@attack
def symlink_above_the_root(_: Channel) -> object:
    Path("up").symlink_to("/../../..", target_is_directory=True)
    return set(os.listdir("up")) - set(os.listdir("/"))


@attack
def symlink_loop(_: Channel) -> object:
    Path("a").symlink_to("b")
    Path("b").symlink_to("a")
    return Path("a").read_bytes()


@attack
def hard_link_from_outside(_: Channel) -> object:
    os.link("/runtime/taskworker/sandbox/frames.py", "stolen")
    return "linked"


@attack
def rename_into_the_parent(_: Channel) -> object:
    Path("file").write_bytes(b"x")
    Path("file").rename("../file")
    return "renamed"


@attack
def remove_the_private_directory(_: Channel) -> object:
    home = Path.cwd()
    home.rmdir()
    return "removed"


@attack
def leave_through_the_working_directory(_: Channel) -> object:
    os.chdir("/")
    above = [os.open("..", os.O_RDONLY | os.O_DIRECTORY)]
    for _step in range(20):
        above.append(os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=above[-1]))
    return set(os.listdir(above[-1])) & {"home", "root", "var", "opt", "bin", "sbin", "boot", "work", "proc", "sys"}


@attack
def use_inherited_descriptors(_: Channel) -> object:
    found = []
    for descriptor in range(3, 4096):
        try:
            os.fstat(descriptor)
        except OSError:
            continue
        found.append(descriptor)
    return found[1:]  # the channel is one


@attack
def list_directories_behind_descriptors(_: Channel) -> object:
    found = []
    for descriptor in range(64):
        try:
            found.append(os.listdir(descriptor))
        except OSError:
            continue
    return found


@attack
def read_the_other_end_of_output(_: Channel) -> object:
    return os.read(1, 1) or os.read(2, 1)


@attack
def open_by_handle(_: Channel) -> object:
    handle = ctypes.create_string_buffer(b"\x80\0\0\0\1\0\0\0" + bytes(128))
    return call("open_by_handle_at", AT_FDCWD, handle, 0)


@attack
def name_to_handle(_: Channel) -> object:
    handle = ctypes.create_string_buffer(b"\x80\0\0\0" + bytes(132))
    identity = ctypes.c_int()
    return call("name_to_handle_at", AT_FDCWD, b"/tmp", handle, ctypes.byref(identity), 0) == 0


@attack
def make_a_device(_: Channel) -> object:
    os.mknod("disk", 0o60666, os.makedev(8, 0))
    return os.open("disk", os.O_RDONLY)


@attack
def execute_from_the_private_directory(_: Channel) -> object:
    Path("program").write_bytes(b"#!/python/bin/python3\n")
    Path("program").chmod(0o755)
    os.execv("./program", ["program"])


@attack
def map_executable_from_the_private_directory(_: Channel) -> object:
    with Path("code").open("wb+") as file:
        file.write(b"\xc3" * 4096)
        file.flush()
        return mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)


@attack
def share_memory_with_other_calls(_: Channel) -> object:
    return mmap.mmap(-1, 4096)


@attack
def make_a_nameless_file(_: Channel) -> object:
    return call("memfd_create", b"x", 0) or call("memfd_secret", 0)


@attack
def devices_beyond_the_harmless(_: Channel) -> object:
    return set(os.listdir("/dev")) - {"null", "random", "urandom"}


@attack
def read_host_logs_and_memory(_: Channel) -> object:
    return [name for name in ("/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/tty", "/dev/shm") if Path(name).exists()]


@attack
def set_user_id_bit(_: Channel) -> object:
    Path("root").write_bytes(b"x")
    os.chown("root", 0, 0)
    return "owned by root"


@attack
def watch_the_file_system(_: Channel) -> object:
    return call("inotify_init1", 0)


@attack
def watch_the_file_system_whole(_: Channel) -> object:
    return call("fanotify_init", 0, 0)


@attack
def be_told_of_directory_changes(_: Channel) -> object:
    import fcntl

    directory = os.open(".", os.O_RDONLY)
    fcntl.fcntl(directory, fcntl.F_NOTIFY, fcntl.DN_CREATE)
    return "told"


@attack
def take_a_lease(_: Channel) -> object:
    import fcntl

    descriptor = os.open("leased", os.O_CREAT | os.O_RDWR)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    return "leased"


@attack
def find_what_the_last_call_left(_: Channel) -> object:
    left = os.listdir(".") + os.listdir(tempfile.gettempdir()) + os.listdir(Path.home())
    Path("left-behind").write_bytes(b"secret of this call")
    return left


@attack
def find_what_the_last_call_left_again(_: Channel) -> object:
    return os.listdir(".")


@attack
def pass_a_descriptor_to_the_worker(channel: Channel) -> object:
    """Descriptors sent over the channel must not pile up there, nor their count be the worker's death."""
    connection = socket.socket(fileno=os.dup(3))
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
    frame = b"\x05\0\0\0\x05hello"
    socket.send_fds(connection, [frame], opened)
    answer = connection.recv(64)
    return b"" if answer.endswith(b"hello") else answer


@attack
def statistics_of_mounts(_: Channel) -> object:
    got: list[object] = []
    for name in ("statmount", "listmount"):
        try:
            got.append(call(name, 0, 0, 0, 0))
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOSYS):
                got.append(error.errno)
    return got


@attack
def unknown_system_calls(_: Channel) -> object:
    reached = []
    for number in [*range(463, 600), 100_000]:
        if number in NUMBERS.values():
            continue
        try:
            raw(number, 0, 0, 0, 0, 0, 0)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOSYS):
                continue
        reached.append(number)
    return reached


@attack
def tell_others_by_a_lock(_: Channel) -> object:
    """Of a file that all functions see."""
    with Path("/runtime/taskworker/sandbox/frames.py").open() as shared:
        return call("flock", shared.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB) == 0


@attack
def find_functions_in_memory(_: Channel) -> object:
    """Names of bundles, its own too, which whoever forked this process may have heard: what is read is a pipe's."""
    unmasked = bytes(one ^ 0x55 for one in range(256))
    before, end, after = (text.translate(unmasked) for text in (b'"code": "', b'"', b'", "disk_bytes": '))
    named = re.compile(re.escape(before) + b"([^" + re.escape(end) + b"]{0,200})" + re.escape(after))
    reader, writer = os.pipe()
    LIBC.sbrk.restype = ctypes.c_void_p
    gc.unfreeze()
    places = {id(one) >> 20 for one in gc.get_objects()} | {(LIBC.sbrk(0) >> 20) - back for back in range(32)}
    found: set[bytes] = set()
    for place in places:
        for page in range(0, 1 << 20, 4096):
            if LIBC.write(writer, ctypes.c_void_p((place << 20) + page), ctypes.c_size_t(4096)) == 4096:
                # What was read stays in this process's memory and may be read again: names are counted, not places.
                found.update(named.findall(os.read(reader, 4096).translate(unmasked)))
    return found
