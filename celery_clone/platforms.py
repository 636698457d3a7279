"""What differs between systems: signals, pid files, daemons, users, titles.

Called by the programs, the commands and the pools, and by ``worker.state`` and
``utils`` for the names of signals and codes of exit.
Owns nothing but :data:`signals`; everything acts on the current process at once.
It may not log (a daemon has no log yet) and may not know about tasks.
"""

from __future__ import annotations

import atexit
import errno
import os
import signal as _signal
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from celery_clone.exceptions import SecurityError, SecurityWarning
from celery_clone.local import try_import

if TYPE_CHECKING:
    from billiard import util as multiprocessing_util
    from billiard.compat import get_fdmax
    from billiard.process import current_process

    from celery_clone.apps.start_report import StartReport

# Modules that only some systems have.
resource: Any = try_import("resource")
pwd: Any = try_import("pwd")
grp: Any = try_import("grp")

__all__ = (
    "EX_OK",
    "EX_FAILURE",
    "EX_UNAVAILABLE",
    "EX_USAGE",
    "EX_CANTCREAT",
    "SYSTEM",
    "IS_macOS",
    "IS_WINDOWS",
    "SIGMAP",
    "pyimplementation",
    "LockFailed",
    "get_fdmax",
    "Pidfile",
    "PIDFile",
    "create_pidlock",
    "close_open_fds",
    "current_process",
    "multiprocessing_util",
    "DaemonContext",
    "detached",
    "parse_uid",
    "parse_gid",
    "setgroups",
    "initgroups",
    "setgid",
    "setuid",
    "maybe_drop_privileges",
    "check_privileges",
    "Signals",
    "signals",
    "signal_name",
    "strargv",
    "set_pdeathsig",
    "set_process_title",
    "set_mp_process_title",
    "get_errno_name",
    "ignore_errno",
    "fd_by_path",
    "isatty",
    "is_perhaps_celery",
    "is_running",
)

SignalHandler: TypeAlias = "Callable[[int, FrameType | None], Any] | int | _signal.Handlers | None"

# Codes a program ends with (see sysexits.h).
EX_OK = getattr(os, "EX_OK", 0)
EX_FAILURE = 1
EX_UNAVAILABLE = getattr(os, "EX_UNAVAILABLE", 69)
EX_USAGE = getattr(os, "EX_USAGE", 64)
EX_CANTCREAT = getattr(os, "EX_CANTCREAT", 73)

SYSTEM: str = os.uname().sysname if hasattr(os, "uname") else "Windows"
IS_macOS = SYSTEM == "Darwin"
IS_WINDOWS = SYSTEM == "Windows"

DAEMON_WORKDIR = "/"

PIDFILE_FLAGS = os.O_CREAT | os.O_EXCL | os.O_WRONLY
PIDFILE_MODE = 0o644

PIDLOCKED = """ERROR: Pidfile ({0}) already exists.
Seems we're already running? (pid: {1})"""

PID_UNREADABLE = "ERROR: Pidfile ({0}) cannot be read: {1}. Remove it, or name another with --pidfile."

ROOT_DISALLOWED = """\
Running a worker with superuser privileges when the
worker accepts messages serialized with pickle is a very bad idea!
Whoever can send it a message can run any program as root.

Start it as another user (--uid), or stop accepting pickle (accept_content).
To do it nevertheless, set the environment variable C_FORCE_ROOT.

User information: uid={uid} euid={euid} gid={gid} egid={egid}
"""

ROOT_DISCOURAGED = """\
You're running the worker with superuser privileges: this is
absolutely not recommended!

Please specify a different user using the --uid option.

User information: uid={uid} euid={euid} gid={gid} egid={egid}
"""

ASSUMING_ROOT = """\
An entry for the specified gid or egid was not found.
We're assuming this is a potential security issue.
"""

#: Groups whose members may become the superuser.
RISKY_GROUPS = frozenset({"sudo", "wheel"})

SIGNAMES = {name for name in dir(_signal) if name.startswith("SIG") and "_" not in name}
SIGMAP: dict[int, str] = {getattr(_signal, name): name for name in sorted(SIGNAMES, reverse=True)}


def isatty(fh: Any) -> bool | None:
    """Return true if ``fh`` is a terminal, ``None`` if it is no file at all."""
    try:
        return bool(fh.isatty())
    except AttributeError:
        return None


def pyimplementation() -> str:
    """Return the name of the Python that runs this, such as ``CPython``."""
    name = sys.implementation.name
    return {"cpython": "CPython", "pypy": "PyPy"}.get(name, name)


# -- parts of billiard -----------------------------------------------------
#
# Fetched when first asked for: nearly everything imports this module, and
# loading the process library takes longer than all of the rest.

_FROM_BILLIARD: dict[str, tuple[str, str | None]] = {
    "current_process": ("billiard.process", "current_process"),
    "get_fdmax": ("billiard.compat", "get_fdmax"),
    "multiprocessing_util": ("billiard.util", None),
}


def __getattr__(name: str) -> Any:
    if name not in _FROM_BILLIARD:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _from_billiard(name)


def _from_billiard(name: str) -> Any:
    if name not in globals():
        module_name, attribute = _FROM_BILLIARD[name]
        module = import_module(module_name)
        globals()[name] = module if attribute is None else getattr(module, attribute)
    return globals()[name]


# -- errors of the system --------------------------------------------------


def get_errno_name(n: int | str) -> int:
    """Return the number of an error given by name (``"ENOENT"``); numbers are returned as they are."""
    return int(getattr(errno, n)) if isinstance(n, str) else n


@contextmanager
def ignore_errno(*errnos: int | str, **kwargs: Any) -> Iterator[None]:
    """Leave the body quietly on one of these errors of the system.

    ``errnos`` are numbers or names; ``types`` restricts the classes of
    exceptions looked at.
    """
    ignored = {get_errno_name(code) for code in errnos}
    types: tuple[type[BaseException], ...] = kwargs.get("types") or (Exception,)
    try:
        yield
    except types as error:
        if getattr(error, "errno", None) not in ignored:
            raise


# -- pid files -------------------------------------------------------------


class LockFailed(Exception):
    """A pid file could not be written, so nobody can tell that we run."""


class Pidfile:
    """A file that holds the id of the process that may run.

    Use :func:`create_pidlock`, which also clears away the file of a process
    that no longer exists.
    """

    #: Where the file is.
    path: Any = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)

    def acquire(self) -> Pidfile:
        """Write the file; raise :exc:`LockFailed` if it exists or cannot be written."""
        try:
            self.write_pid()
        except OSError as error:
            raise LockFailed(
                f"The pid file {str(self.path)!r} cannot be written: {error.strerror}. Name another (--pidfile), in a "
                "folder that is there and may be written by this user."
            ) from error
        return self

    def __enter__(self) -> Pidfile:
        return self.acquire()

    def is_locked(self) -> bool:
        """Return true if the file exists."""
        return os.path.exists(self.path)

    def release(self, *args: Any) -> None:
        """Remove the file; doing so twice is harmless."""
        self.remove()

    def __exit__(self, *args: Any) -> None:
        self.release()

    def read_pid(self) -> int | None:
        """Return the id in the file, ``None`` if there is no file.

        Raises :exc:`ValueError` if the file holds something else, or was not
        written to its end.
        """
        try:
            with open(self.path) as file:
                line = file.readline()
        except FileNotFoundError:
            return None
        if not line.endswith("\n"):
            raise ValueError(f"Partial or invalid pidfile {self.path}: remove it if no such process runs.")
        try:
            return int(line)
        except ValueError:
            raise ValueError(
                f"pidfile {self.path} contents invalid: {line.strip()!r} is no process id. "
                "Remove the file if no such process runs."
            ) from None

    def remove(self) -> None:
        """Remove the file if it is there and may be removed."""
        with ignore_errno(errno.ENOENT, errno.EACCES):
            os.unlink(self.path)

    def remove_if_stale(self) -> bool:
        """Remove the file if its process no longer runs; return whether it is gone."""
        try:
            pid = self.read_pid()
        except ValueError:
            print("Broken pidfile found - Removing it.", file=sys.stderr)
            self.remove()
            return True
        # In a container the process before us had the same id as we have.
        if not pid or pid == os.getpid():
            self.remove()
            return True
        if is_running(pid) and (is_perhaps_celery(pid) or self._was_written_by_older(pid)):
            return False
        print("Stale pidfile exists - Removing it.", file=sys.stderr)
        self.remove()
        return True

    def _was_written_by_older(self, pid: int) -> bool:
        """Is *pid* a Python program that ran when the file was written?  Then it wrote it, whatever its name is."""
        try:
            if b"python" not in _PROCESSES.joinpath(str(pid), "cmdline").read_bytes().partition(b"\0")[0]:
                return False
            begun = _PROCESSES.joinpath(str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()[19]
            since_boot = float(_PROCESSES.joinpath("uptime").read_text().split()[0])
            age = since_boot - int(begun) / os.sysconf("SC_CLK_TCK")
            return age + 1.0 > time.time() - os.stat(self.path).st_mtime
        except (OSError, ValueError, IndexError):
            return False

    def write_pid(self) -> None:
        """Create the file, write the id of this process to disk and read it back."""
        content = f"{os.getpid()}\n"
        descriptor = os.open(self.path, PIDFILE_FLAGS, PIDFILE_MODE)
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        with open(self.path) as file:
            if file.read() != content:
                raise LockFailed(
                    f"Inconsistency: Pidfile {self.path} doesn't match at re-read. Does another process write it?"
                )


PIDFile = Pidfile


_PROCESSES = Path("/proc")

#: States of processes that have ended and only wait for their parent to notice.
_ENDED_STATES = frozenset("ZX")


def is_running(pid: int) -> bool:
    """Tell whether a process of ours has that id.

    One that we may not signal belongs to another user, so it is not the one
    that wrote our file: the id was used again.  A zombie has ended; in a
    container there may be nobody to take it away.
    """
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno not in (errno.ESRCH, errno.EPERM)
    except SystemError:  # Windows, no such process
        return False
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[:1]
    except OSError:  # no such file system, or the process has just ended
        return True
    return not _ENDED_STATES.intersection(state)


def is_perhaps_celery(pid: int) -> bool:
    """May this process be one of Celery's?  If not, its id was used again; its command line is for all to read."""
    process = _PROCESSES / str(pid)
    try:
        if b"celery" in (process / "cmdline").read_bytes().lower():
            return True
    except OSError:  # no such file system
        return True
    try:
        # A project may start its workers by a program of any name.
        return b"CELERY_" in (process / "environ").read_bytes()
    except OSError:  # another user's
        return False


def create_pidlock(pidfile: str | os.PathLike[str]) -> Pidfile:
    """Write a pid file that is removed when this process exits.

    Ends the program with :data:`EX_CANTCREAT` if the process named in an
    existing file still runs, or the file cannot be read.  A process that
    is none of Celery's has got the id anew, and does not count.
    """
    lock = _create_pidlock(pidfile)
    atexit.register(lock.release)
    return lock


def _create_pidlock(pidfile: str | os.PathLike[str]) -> Pidfile:
    lock = Pidfile(pidfile)
    try:
        if not lock.is_locked() or lock.remove_if_stale():
            return lock.acquire()
        problem = PIDLOCKED.format(pidfile, lock.read_pid())
    except OSError as error:
        problem = PID_UNREADABLE.format(pidfile, error.strerror)
    print(problem, file=sys.stderr)
    raise SystemExit(EX_CANTCREAT)


# -- file descriptors ------------------------------------------------------

_DESCRIPTOR_DIRECTORIES = {"Darwin": "/dev/fd", "FreeBSD": "/dev/fd", "DragonFly": "/dev/fd"}
_FD_DIR = _DESCRIPTOR_DIRECTORIES.get(SYSTEM, "/proc/self/fd")


def _open_fds() -> list[int] | None:
    """Return the open descriptors of this process, ``None`` if the system cannot list them.

    Counting up to the limit instead takes minutes in containers where that is a
    billion.
    """
    try:
        # The BSDs show 0 to 2 only, unless a file system of its own is mounted there.
        if SYSTEM in ("FreeBSD", "DragonFly") and os.stat("/dev").st_dev == os.stat(_FD_DIR).st_dev:
            return None
        names = os.listdir(_FD_DIR)
    except OSError:
        return None
    return sorted(int(name) for name in names if name.isdigit())


def _descriptor_of(file: Any) -> int | None:
    """Return the descriptor of a file or of a number, ``None`` if it has none."""
    if isinstance(file, int):
        return file
    try:
        return file.fileno()  # type: ignore[no-any-return]
    except (AttributeError, ValueError, OSError):
        return None


def fd_by_path(paths: Iterable[str]) -> list[int]:
    """Return the open descriptors of this process that are one of the files ``paths``."""
    wanted = set()
    for path in paths:
        try:
            found = os.stat(path)
        except OSError:
            continue
        wanted.add((found.st_ino, found.st_dev))

    def is_wanted(descriptor: int) -> bool:
        try:
            found = os.fstat(descriptor)
        except OSError:
            return False
        return (found.st_ino, found.st_dev) in wanted

    known = _open_fds()
    return [
        descriptor
        for descriptor in (range(_from_billiard("get_fdmax")(2048)) if known is None else known)
        if is_wanted(descriptor)
    ]


def close_open_fds(keep: Iterable[Any] | None = None) -> None:
    """Close every open descriptor except those of the files or numbers in ``keep``."""
    kept = {_descriptor_of(file) for file in keep or ()}
    known = _open_fds()
    if known is None:
        known = list(range(_from_billiard("get_fdmax")(2048)))
    for descriptor in known:
        if descriptor not in kept:
            with ignore_errno(errno.EBADF):
                os.close(descriptor)


# -- daemons ---------------------------------------------------------------


class DaemonContext:
    """Turns this process into a daemon while the context is open.

    ``pidfile`` is checked (not written) after the change of directory,
    ``workdir`` is where the daemon lives, ``umask`` a number or a text (octal if
    it begins with 0), ``fake`` does everything but leave the terminal,
    ``after_chdir`` is called when the directory is set, ``after_forkers`` says
    whether to run what libraries registered to be run in a forked process,
    ``report`` lets the first process wait for word from the daemon.
    Unknown options are accepted, since commands hand over all they have.
    """

    _is_open = False

    def __init__(
        self,
        pidfile: str | None = None,
        workdir: str | None = None,
        umask: int | str | None = None,
        fake: bool = False,
        after_chdir: Callable[[], Any] | None = None,
        after_forkers: bool = True,
        report: StartReport | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(umask, str):
            umask = int(umask, 8 if umask.startswith("0") else 10)
        self.pidfile = pidfile
        self.workdir = workdir or DAEMON_WORKDIR
        self.umask = umask
        self.fake = fake
        self.after_chdir = after_chdir
        self.after_forkers = after_forkers
        self.report = report
        self.stdfds = (sys.stdin, sys.stdout, sys.stderr)

    def redirect_to_null(self, fd: int | None) -> None:
        """Make the descriptor read nothing and write nowhere."""
        if fd is None:
            return
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, fd)
        if null != fd:
            os.close(null)

    def open(self) -> None:
        """Become a daemon; doing so twice changes nothing."""
        if self._is_open:
            return
        if not self.fake:
            self._detach()
        os.chdir(self.workdir)
        if self.umask is not None:
            os.umask(self.umask)
        if self.pidfile:
            # The file itself is written later, by the program that runs on.
            _create_pidlock(self.pidfile).release()
        if self.after_chdir:
            self.after_chdir()
        if not self.fake:
            self._let_go_of_terminal()
        self._is_open = True

    def __enter__(self) -> None:
        self.open()

    def close(self, *args: Any) -> None:
        """Note that the daemon ends; there is no way back to the terminal."""
        self._is_open = False

    def __exit__(self, *args: Any) -> None:
        self.close()

    def _detach(self) -> None:
        """Go on in a grandchild, in a session of its own that can have no terminal."""
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()  # os._exit() would drop it
        if self.report is not None:
            self.report.open()
        if os.fork() != 0:
            os._exit(0 if self.report is None else self.report.wait())
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        if self.report is not None:
            self.report.adopt()

    def _let_go_of_terminal(self) -> None:
        reported_to = [] if self.report is None else [self.report.writer]
        # Random numbers may come from this file, opened before we got here.
        close_open_fds([*self.stdfds, *reported_to, *fd_by_path(["/dev/urandom"])])
        for stream in self.stdfds:
            self.redirect_to_null(_descriptor_of(stream))
        standard_library = sys.modules.get("multiprocessing.util")
        if self.after_forkers and standard_library is not None:
            standard_library._run_after_forkers()


def detached(
    logfile: str | None = None,
    pidfile: str | None = None,
    uid: int | str | None = None,
    gid: int | str | None = None,
    umask: int | str | None = 0,
    workdir: str | None = None,
    fake: bool = False,
    report: StartReport | None = None,
    **opts: Any,
) -> DaemonContext:
    """Return a context in which this process runs in the background.

    ``logfile`` must be writable, or opening the context fails, since nobody
    would see an error later.  ``pidfile`` is not written but must not belong to
    a running process.  ``uid`` and ``gid`` are numbers or names; privileges are
    dropped at once.  ``umask``, ``workdir``, ``fake`` and ``report``: see
    :class:`DaemonContext`.  Unknown options are accepted.
    Raises :exc:`RuntimeError` where the system has no daemons.
    """
    if resource is None:
        raise RuntimeError("This platform does not support detach. Run in the foreground, under a service manager.")
    workdir = os.getcwd() if workdir is None else workdir
    # A parent that ignored its children would make us ignore ours.
    signals.reset("SIGCLD")
    maybe_drop_privileges(uid=uid, gid=gid)

    def check_logfile() -> None:
        if logfile:
            with open(logfile, "a"):
                pass

    return DaemonContext(
        pidfile=pidfile, umask=umask, workdir=workdir, fake=fake, after_chdir=check_logfile, report=report
    )


# -- users and groups ------------------------------------------------------


def parse_uid(uid: int | str) -> int:
    """Return the number of a user given by number or name; :exc:`KeyError` if there is none."""
    try:
        return int(uid)
    except ValueError:
        pass
    try:
        return int(pwd.getpwnam(str(uid)).pw_uid)
    except (AttributeError, KeyError):
        raise KeyError(f"User does not exist: {uid}") from None


def parse_gid(gid: int | str) -> int:
    """Return the number of a group given by number or name; :exc:`KeyError` if there is none."""
    try:
        return int(gid)
    except ValueError:
        pass
    try:
        return int(grp.getgrnam(str(gid)).gr_gid)
    except (AttributeError, KeyError):
        raise KeyError(f"Group does not exist: {gid}") from None


def setgroups(groups: Sequence[int]) -> None:
    """Become a member of these groups only, or of as many as the system allows.

    Not being allowed to is an error only if it would change anything.
    """
    wanted = list(groups)
    try:
        limit: int | None = os.sysconf("SC_NGROUPS_MAX")
    except (AttributeError, OSError, ValueError):
        limit = None
    if limit is not None and limit >= 0:
        del wanted[limit:]
    try:
        _set_as_many_groups_as_possible(wanted)
    except OSError as error:
        if error.errno != errno.EPERM or any(group not in groups for group in os.getgroups()):
            raise


def _set_as_many_groups_as_possible(groups: list[int]) -> None:
    while True:
        try:
            return os.setgroups(groups)
        except (OSError, ValueError) as error:
            # Systems have limits they do not tell; groups beyond them are dropped.
            too_many = isinstance(error, ValueError) or error.errno == errno.EINVAL
            if not too_many or len(groups) <= 1:
                raise
            groups = groups[:-1]


def initgroups(uid: int, gid: int) -> None:
    """Become a member of all groups of the user ``uid``, and of ``gid``."""
    if pwd is None:
        return
    os.initgroups(pwd.getpwuid(uid).pw_name, gid)


def setgid(gid: int | str) -> None:
    """Change to a group given by number or name."""
    os.setgid(parse_gid(gid))


def setuid(uid: int | str) -> None:
    """Change to a user given by number or name."""
    os.setuid(parse_uid(uid))


def maybe_drop_privileges(uid: int | str | None = None, gid: int | str | None = None) -> None:
    """Become another user, group or both, for good.

    With ``uid`` alone the group becomes that user's own.  Does nothing on
    Windows.  Raises :exc:`~celery_clone.exceptions.SecurityError` if the
    superuser's rights would remain.
    """
    if IS_WINDOWS:
        return
    if os.geteuid() and not os.getuid():
        raise SecurityError(
            "Cannot change user: the real user is root, the effective user is not. Start as root or as the user wanted."
        )
    user_id = parse_uid(uid) if uid else None
    group_id = parse_gid(gid) if gid else None
    if user_id:
        _become_user(user_id, group_id)
    elif group_id:
        setgid(group_id)
    if user_id and not os.getuid() and not os.geteuid():
        raise SecurityError("Still root uid after drop privileges! Start the program as that user instead.")
    if group_id and not os.getgid() and not os.getegid():
        raise SecurityError("Still root gid after drop privileges! Start the program in that group instead.")


def _become_user(uid: int, gid: int | None) -> None:
    if not gid and pwd is not None:
        gid = pwd.getpwuid(uid).pw_gid
    # The order matters: after setuid() the groups can no longer be changed, and
    # on some systems setgid() clears the list of groups.
    setgid(gid or 0)
    initgroups(uid, gid or 0)
    setuid(uid)
    try:
        setuid(0)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        return  # the way back is closed, as it must be
    raise SecurityError(f"User {uid} is able to become root again after setuid. Do not run tasks on this system.")


PICKLE_NAMES = frozenset({"pickle", "application/x-python-serialize", "application/group-python-serialize"})
"""What ``accept_content`` may call it."""


def check_privileges(accept_content: Collection[str]) -> None:
    """Refuse or warn if this process has the superuser's rights.

    Raises :exc:`~celery_clone.exceptions.SecurityError` if pickled messages
    would be accepted too, unless ``C_FORCE_ROOT`` is set in the environment.
    """
    if grp is None or pwd is None:
        return
    ids = {name: _own_id(name) for name in ("uid", "euid", "gid", "egid")}
    try:
        groups = {grp.getgrgid(ids["gid"]).gr_name, grp.getgrgid(ids["egid"]).gr_name}
    except KeyError:
        warnings.warn(SecurityWarning(ASSUMING_ROOT), stacklevel=2)
    else:
        if ids["uid"] and ids["euid"] and not groups & RISKY_GROUPS:
            return
    accepts_pickle = not PICKLE_NAMES.isdisjoint(accept_content or ())
    if accepts_pickle and not os.environ.get("C_FORCE_ROOT"):
        raise SecurityError(ROOT_DISALLOWED.format(**ids))
    warnings.warn(SecurityWarning(ROOT_DISCOURAGED.format(**ids)), stacklevel=2)


def _own_id(name: str) -> int:
    """Return one of the four ids of this process; a system that hides it is not trusted."""
    ask = getattr(os, f"get{name}", None)
    if ask is not None:
        return int(ask())
    if hasattr(os, "fchown"):
        raise SecurityError(
            f"This system has users but no os.get{name}(), so rights cannot be checked. Do not run here."
        )
    return 65535


# -- signals ---------------------------------------------------------------


class Signals:
    """The signals of this process by name: ``signals["TERM"] = handler``.

    Names are upper case, with or without ``SIG``.  What the system does not
    have is passed over, so that callers need no checks.
    """

    ignored = _signal.SIG_IGN
    default = _signal.SIG_DFL

    def arm_alarm(self, seconds: float) -> Any:
        """Have ``ALRM`` sent after that many seconds."""
        return _signal.setitimer(_signal.ITIMER_REAL, seconds)

    def reset_alarm(self) -> int:
        """Take the alarm back."""
        return _signal.alarm(0)

    def supported(self, name: str) -> bool:
        """Return true if the system has that signal."""
        try:
            self.signum(name)
        except AttributeError:
            return False
        return True

    def signum(self, name: str | int) -> int:
        """Return the number of a signal; numbers are returned as they are.

        Raises :exc:`AttributeError` if the system has no such signal and
        :exc:`TypeError` if it cannot be a name of one.
        """
        if isinstance(name, int):
            return name
        if not isinstance(name, str) or not name.isupper():
            raise TypeError(f"signal name must be uppercase string, not {name!r}.")
        full_name = name if name.startswith("SIG") else f"SIG{name}"
        return getattr(_signal, full_name)  # type: ignore[no-any-return]

    def reset(self, *signal_names: str) -> None:
        """Give these signals back to the system."""
        self.update((name, self.default) for name in signal_names)

    def ignore(self, *names: str) -> None:
        """Let these signals pass without effect."""
        self.update((name, self.ignored) for name in names)

    def __getitem__(self, name: str | int) -> Any:
        return _signal.getsignal(self.signum(name))

    def __setitem__(self, name: str | int, handler: SignalHandler) -> None:
        try:
            _signal.signal(self.signum(name), handler)
        except (AttributeError, ValueError):
            pass  # no such signal here, or not the main thread

    def update(
        self,
        _d_: Mapping[str, SignalHandler] | Iterable[tuple[str, SignalHandler]] | None = None,
        **sigmap: SignalHandler,
    ) -> None:
        """Install several handlers."""
        for name, handler in {**dict(_d_ or {}), **sigmap}.items():
            self[name] = handler


signals = Signals()

get_signal = signals.signum
install_signal_handler = signals.__setitem__
reset_signal = signals.reset
ignore_signal = signals.ignore


def signal_name(signum: int) -> str:
    """Return the short name of a signal number, such as ``TERM``."""
    return SIGMAP[signum][3:]


def set_pdeathsig(name: str) -> None:
    """Have that signal sent to this process when its parent ends, where the system can."""
    if signals.supported(name):
        try:
            _from_billiard("multiprocessing_util").set_pdeathsig(signals.signum(name))
        except OSError:
            pass  # only Linux can


# -- titles ----------------------------------------------------------------


def strargv(argv: Sequence[str]) -> str:
    """Return the arguments of a command line as one text, without the program."""
    return " ".join(argv[2 if "manage" in argv[0] else 1 :])


def set_process_title(progname: str, info: str | None = None) -> str:
    """Show ``[progname] info`` in lists of processes and return it.

    Needs the package ``setproctitle``; without it the title is only returned.
    """
    title = f"[{progname}] {info}" if info else f"[{progname}]"
    library: ModuleType | None = try_import("setproctitle")
    if library is not None:
        library.setproctitle(title)
    return title


def set_mp_process_title(progname: str, info: str | None = None, hostname: str | None = None) -> str | None:
    """Show ``[progname: hostname:process] info`` in lists of processes and return it.

    Does nothing if ``NOSETPS`` is set in the environment.
    """
    if os.environ.get("NOSETPS"):
        return None
    if hostname:
        progname = f"{progname}: {hostname}"
    return set_process_title(f"{progname}:{_from_billiard('current_process')().name}", info=info)
