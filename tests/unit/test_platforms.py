"""What differs between systems. Detaching for real is in tests/integration/test_platforms_daemon.py."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import types
import warnings

import pytest

from celery_clone import platforms
from celery_clone.exceptions import SecurityError, SecurityWarning
from celery_clone.platforms import (
    DaemonContext,
    LockFailed,
    Pidfile,
    check_privileges,
    close_open_fds,
    create_pidlock,
    detached,
    fd_by_path,
    get_errno_name,
    ignore_errno,
    initgroups,
    isatty,
    maybe_drop_privileges,
    parse_gid,
    parse_uid,
    pyimplementation,
    set_mp_process_title,
    set_pdeathsig,
    set_process_title,
    setgroups,
    signal_name,
    signals,
    strargv,
)

NOBODY = types.SimpleNamespace(pw_uid=65534, pw_gid=65533, pw_name="nobody")


# -- small answers


def test_only_terminals_are_terminals(tmp_path):
    assert isatty(io.StringIO()) is False
    assert isatty(object()) is None


def test_the_interpreter_has_a_name(monkeypatch):
    assert pyimplementation() in {"CPython", "PyPy"}
    monkeypatch.setattr(sys, "implementation", types.SimpleNamespace(name="snake"))
    assert pyimplementation() == "snake"


def test_command_lines_are_shown_without_the_program():
    assert strargv(["celery", "worker", "-l", "INFO"]) == "worker -l INFO"
    assert strargv(["manage.py", "celery", "beat"]) == "beat"
    assert strargv(["celery"]) == ""


def test_names_of_errors():
    assert get_errno_name("ENOENT") == get_errno_name(errno.ENOENT) == errno.ENOENT


def test_errors_can_be_ignored_by_name_and_number():
    with ignore_errno("ENOENT", errno.EPERM):
        raise OSError(errno.EPERM, "no")
    with pytest.raises(OSError, match="again"), ignore_errno("ENOENT"):
        raise OSError(errno.EAGAIN, "again")
    with pytest.raises(KeyError), ignore_errno("ENOENT"):
        raise KeyError("not of the system")
    with pytest.raises(OSError, match="no"), ignore_errno("ENOENT", types=(ValueError,)):
        raise OSError(errno.ENOENT, "no")


def test_parts_of_the_process_library_come_when_asked_for():
    assert platforms.current_process().name == "MainProcess"
    assert platforms.get_fdmax(None) is None or platforms.get_fdmax(None) > 0
    assert platforms.multiprocessing_util.get_logger().name
    with pytest.raises(AttributeError, match="no attribute 'get_fdmix'"):
        platforms.get_fdmix  # noqa: B018


# -- process titles


def test_a_title_names_program_host_process_and_state(monkeypatch):
    monkeypatch.delenv("NOSETPS", raising=False)
    shown = []
    monkeypatch.setitem(sys.modules, "setproctitle", types.SimpleNamespace(setproctitle=shown.append))
    assert set_process_title("celeryd") == "[celeryd]"
    assert set_mp_process_title("celeryd", info="-c 2", hostname="w@h") == "[celeryd: w@h:MainProcess] -c 2"
    assert shown == ["[celeryd]", "[celeryd: w@h:MainProcess] -c 2"]


def test_a_title_is_only_returned_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "setproctitle", None)
    assert set_process_title("beat", info="x") == "[beat] x"


def test_titles_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("NOSETPS", "1")
    assert set_mp_process_title("celeryd") is None


# -- pid files


@pytest.fixture
def pidfile(tmp_path):
    return Pidfile(tmp_path / "worker.pid")


@pytest.fixture
def dead_pid():
    """An id no process has."""
    candidates = range(2**22 - 1, 2, -1)
    return next(pid for pid in candidates if not os.path.exists(f"/proc/{pid}"))


def write(pidfile: Pidfile, text: str) -> None:
    with open(pidfile.path, "w") as file:
        file.write(text)


def test_a_pid_file_holds_our_id_while_it_is_held(pidfile):
    with pidfile as held:
        assert held is pidfile
        assert pidfile.is_locked()
        assert pidfile.read_pid() == os.getpid()
        assert os.stat(pidfile.path).st_mode & 0o777 == 0o644 & ~current_umask()
    assert not pidfile.is_locked()
    pidfile.release()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_pid_file_that_exists_is_not_taken_over(pidfile):
    pidfile.acquire()
    with pytest.raises(LockFailed, match="exists"):
        pidfile.acquire()


def test_a_pid_file_whose_content_changes_while_it_is_written_is_not_trusted(pidfile, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: write(pidfile, "1\n"))
    with pytest.raises(LockFailed, match="doesn't match at re-read"):
        pidfile.acquire()


def test_there_is_no_pid_without_a_file(pidfile):
    assert pidfile.read_pid() is None


@pytest.mark.parametrize(("text", "why"), [("123", "Partial"), ("x\n", "'x' is no process id"), ("", "Partial")])
def test_a_broken_pid_file_is_told_and_removed(pidfile, text, why, capsys):
    write(pidfile, text)
    with pytest.raises(ValueError, match=why):
        pidfile.read_pid()
    assert pidfile.remove_if_stale()
    assert not pidfile.is_locked()
    assert "Broken pidfile" in capsys.readouterr().err


def test_the_file_of_a_process_that_is_gone_is_stale(pidfile, dead_pid, capsys):
    write(pidfile, f"{dead_pid}\n")
    assert pidfile.remove_if_stale()
    assert "Stale pidfile" in capsys.readouterr().err
    assert not pidfile.is_locked()


@pytest.mark.parametrize("error", [OSError(errno.EPERM, "not yours"), SystemError("windows")])
def test_the_file_of_somebody_else_is_stale(pidfile, monkeypatch, error):
    def refuse(pid, signum):
        raise error

    write(pidfile, "4321\n")
    monkeypatch.setattr(os, "kill", refuse)
    assert pidfile.remove_if_stale()


def test_the_file_of_a_predecessor_with_our_id_is_stale(pidfile):
    write(pidfile, f"{os.getpid()}\n")
    assert pidfile.remove_if_stale()
    assert pidfile.remove_if_stale()


def test_a_lock_is_released_when_the_program_ends(pidfile, monkeypatch):
    at_exit = []
    monkeypatch.setattr(platforms.atexit, "register", at_exit.append)
    create_pidlock(pidfile.path)
    assert pidfile.is_locked()
    at_exit[0]()
    assert not pidfile.is_locked()


# -- file descriptors


def test_open_files_are_found_by_path(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with open(path) as file:
        assert file.fileno() in fd_by_path([str(path), str(tmp_path / "missing")])
    assert fd_by_path([str(path)]) == []


@pytest.fixture
def descriptors(monkeypatch):
    """Closing is written down instead of done."""
    closed = []
    monkeypatch.setattr(platforms, "_open_fds", lambda: [0, 1, 2, 70, 71])
    monkeypatch.setattr(os, "close", closed.append)
    return closed


def test_all_descriptors_but_those_kept_are_closed(descriptors):
    class File:
        def fileno(self):
            return 71

    close_open_fds([0, 1, File(), None, object()])
    assert descriptors == [2, 70]


def test_a_descriptor_that_is_gone_already_is_no_error(monkeypatch, descriptors):
    def gone(descriptor):
        descriptors.append(descriptor)
        raise OSError(errno.EBADF, "gone")

    monkeypatch.setattr(os, "close", gone)
    close_open_fds()
    assert descriptors == [0, 1, 2, 70, 71]


def test_a_system_that_does_not_list_descriptors_is_counted_through(monkeypatch, descriptors, tmp_path):
    monkeypatch.setattr(platforms, "_open_fds", lambda: None)
    monkeypatch.setitem(vars(platforms), "get_fdmax", lambda default=None: 5)
    close_open_fds([0, 1, 2])
    assert descriptors == [3, 4]
    assert fd_by_path([str(tmp_path)]) == []


def test_descriptors_are_listed_where_the_system_lists_them(monkeypatch, tmp_path):
    monkeypatch.setattr(platforms, "_FD_DIR", str(tmp_path))
    for name in ("2", "10", "x"):
        (tmp_path / name).touch()
    assert platforms._open_fds() == [2, 10]
    monkeypatch.setattr(platforms, "_FD_DIR", str(tmp_path / "none"))
    assert platforms._open_fds() is None


def test_the_short_list_of_the_bsds_is_not_trusted(monkeypatch):
    monkeypatch.setattr(platforms, "SYSTEM", "FreeBSD")
    monkeypatch.setattr(platforms, "_FD_DIR", "/dev")
    assert platforms._open_fds() is None


# -- daemons


@pytest.fixture
def stay_here(monkeypatch):
    """The directory and mask of the test's process are restored afterwards."""
    folder, mask = os.getcwd(), current_umask()
    yield
    os.chdir(folder)
    os.umask(mask)


def test_a_pretended_daemon_does_all_but_detach(tmp_path, stay_here):
    called = []
    with DaemonContext(workdir=tmp_path, umask="022", fake=True, after_chdir=lambda: called.append(os.getcwd())):
        assert os.getcwd() == str(tmp_path)
        assert current_umask() == 0o022
    assert called == [str(tmp_path)]


def test_opening_and_closing_twice_changes_nothing(tmp_path, stay_here):
    opened = []
    daemon = DaemonContext(workdir=tmp_path, fake=True, after_chdir=lambda: opened.append(1))
    daemon.close()
    daemon.open()
    daemon.open()
    daemon.close()
    daemon.close()
    assert opened == [1]


@pytest.mark.parametrize(("umask", "mask"), [("027", 0o027), ("23", 23), (7, 7), (None, None)])
def test_masks_are_octal_if_they_look_so(umask, mask):
    assert DaemonContext(umask=umask).umask == mask


def test_a_daemon_lives_in_the_root_unless_told_otherwise():
    assert DaemonContext().workdir == "/"


def test_a_daemon_whose_pid_file_is_taken_does_not_start(tmp_path, stay_here, monkeypatch):
    pidfile = tmp_path / "taken.pid"
    pidfile.write_text(f"{os.getppid()}\n")
    # Whatever runs the tests, it looks like a worker.
    command_line = tmp_path / "proc" / str(os.getppid()) / "cmdline"
    command_line.parent.mkdir(parents=True)
    command_line.write_bytes(b"python\0-m\0celery\0worker\0")
    monkeypatch.setattr(platforms, "_PROCESSES", tmp_path / "proc")
    with pytest.raises(SystemExit), detached(pidfile=str(pidfile), workdir=str(tmp_path), fake=True):
        pass
    assert pidfile.exists()


def test_a_pid_file_that_cannot_be_read_is_named_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        create_pidlock(tmp_path)
    assert ended.value.code == platforms.EX_CANTCREAT
    said = capsys.readouterr().err
    assert f"Pidfile ({tmp_path}) cannot be read: Is a directory." in said
    assert said.count("\n") == 1


def test_a_daemon_leaves_its_pid_file_to_the_program(tmp_path, stay_here):
    with detached(pidfile=str(tmp_path / "free.pid"), workdir=str(tmp_path), fake=True):
        assert not (tmp_path / "free.pid").exists()


def test_a_daemon_that_cannot_write_its_log_does_not_start(tmp_path, stay_here):
    with (
        pytest.raises(FileNotFoundError),
        detached(logfile=str(tmp_path / "no" / "log"), workdir=str(tmp_path), fake=True),
    ):
        pass
    with detached(logfile=str(tmp_path / "log"), fake=True, unknown_option=1):
        assert (tmp_path / "log").exists()


def test_detaching_needs_a_system_that_can(monkeypatch):
    monkeypatch.setattr(platforms, "resource", None)
    with pytest.raises(RuntimeError, match="does not support detach"):
        detached()


def test_a_stream_can_be_redirected_to_nothing(tmp_path):
    with open(tmp_path / "file", "w") as file:
        DaemonContext().redirect_to_null(file.fileno())
        file.write("lost")
    assert (tmp_path / "file").read_text() == ""
    DaemonContext().redirect_to_null(None)


# -- users and groups


class Rights:
    """A system call for call: who we are and what we may become."""

    def __init__(self, monkeypatch, uid=0, euid=0, gid=0, egid=0):
        self.calls = []
        self.ids = {"uid": uid, "euid": euid, "gid": gid, "egid": egid}
        for name in self.ids:
            monkeypatch.setattr(os, f"get{name}", lambda name=name: self.ids[name])
        for name in ("setuid", "setgid", "initgroups"):
            monkeypatch.setattr(os, name, lambda *given, name=name: self.change(name, *given))
        monkeypatch.setattr(
            platforms,
            "pwd",
            types.SimpleNamespace(getpwuid=lambda uid: NOBODY, getpwnam={"nobody": NOBODY}.__getitem__),
        )
        self.may_return = False
        self.sticky = False

    def change(self, name, *given):
        self.calls.append((name, *given))
        if self.sticky:
            return
        if name == "setuid":
            if given[0] == 0 and self.ids["uid"] and not self.may_return:
                raise PermissionError(errno.EPERM, "no way back")
            self.ids["uid"] = self.ids["euid"] = given[0]
        elif name == "setgid":
            self.ids["gid"] = self.ids["egid"] = given[0]


@pytest.fixture
def rights(monkeypatch):
    return lambda **ids: Rights(monkeypatch, **ids)


def test_a_user_takes_the_group_first_and_cannot_return(rights):
    system = rights()
    maybe_drop_privileges(uid="nobody", gid=1000)
    assert system.calls == [
        ("setgid", 1000),
        ("initgroups", "nobody", 1000),
        ("setuid", 65534),
        ("setuid", 0),
    ]


def test_a_user_brings_the_own_group(rights):
    system = rights()
    maybe_drop_privileges(uid=65534)
    assert system.calls[0] == ("setgid", 65533)


def test_a_group_alone_can_be_changed(rights):
    system = rights()
    maybe_drop_privileges(gid=1000)
    assert system.calls == [("setgid", 1000)]


def test_nothing_asked_nothing_done(rights):
    system = rights()
    maybe_drop_privileges()
    assert system.calls == []


def test_a_system_that_lets_one_return_is_not_safe(rights):
    rights().may_return = True
    with pytest.raises(SecurityError, match="able to become root again"):
        maybe_drop_privileges(uid=65534)


def test_another_error_on_the_way_back_is_not_hidden(rights, monkeypatch):
    rights()

    def broken(uid):
        if uid == 0:
            raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "setuid", broken)
    with pytest.raises(OSError, match="broken"):
        maybe_drop_privileges(uid=65534)


def test_rights_that_remain_are_noticed(rights):
    system = rights()
    system.sticky = True
    with pytest.raises(SecurityError, match="Still root gid"):
        maybe_drop_privileges(gid=1000)


def test_a_borrowed_user_cannot_be_given_up(rights):
    rights(uid=0, euid=1000)
    with pytest.raises(SecurityError, match="the effective user is not"):
        maybe_drop_privileges(uid=65534)


def test_users_and_groups_by_number_and_name():
    assert parse_uid("42") == parse_uid(42) == 42
    assert parse_gid("42") == 42
    assert parse_uid("root") == 0
    assert parse_gid("root") == 0
    with pytest.raises(KeyError, match="User does not exist: nobody-there"):
        parse_uid("nobody-there")
    with pytest.raises(KeyError, match="Group does not exist: nobody-there"):
        parse_gid("nobody-there")


def test_without_a_table_of_users_there_are_no_names(monkeypatch):
    monkeypatch.setattr(platforms, "pwd", None)
    with pytest.raises(KeyError, match="root"):
        parse_uid("root")
    assert initgroups(1, 1) is None


def test_groups_beyond_what_the_system_takes_are_dropped(monkeypatch):
    taken = []

    def set_groups(groups):
        if len(groups) > 2:
            raise OSError(errno.EINVAL, "too many")
        taken.append(groups)

    monkeypatch.setattr(os, "setgroups", set_groups)
    monkeypatch.setattr(os, "sysconf", lambda name: 4)
    setgroups([1, 2, 3, 4, 5])
    assert taken == [[1, 2]]


def test_groups_may_stay_if_they_are_the_right_ones(monkeypatch):
    def refuse(groups):
        raise OSError(errno.EPERM, "not root")

    monkeypatch.setattr(os, "setgroups", refuse)
    monkeypatch.setattr(os, "getgroups", lambda: [1])
    setgroups([1, 2])
    with pytest.raises(OSError, match="not root"):
        setgroups([2])


@pytest.mark.parametrize("error", [ValueError("bad"), OSError(errno.EIO, "bad")])
def test_groups_that_cannot_be_set_at_all_are_an_error(monkeypatch, error):
    def fail(groups):
        raise error

    monkeypatch.setattr(os, "setgroups", fail)
    with pytest.raises(type(error), match="bad"):
        setgroups([1])


# -- the superuser and pickle


@pytest.fixture
def groups(monkeypatch):
    """``groups(gid=name)``: the table of groups."""

    def set_table(table):
        def entry(gid):
            return types.SimpleNamespace(gr_name=table[gid])

        monkeypatch.setattr(platforms, "grp", types.SimpleNamespace(getgrgid=entry))

    monkeypatch.delenv("C_FORCE_ROOT", raising=False)
    return set_table


def test_ordinary_users_may_accept_pickle(rights, groups):
    rights(uid=1000, euid=1000, gid=1000, egid=1000)
    groups({1000: "users"})
    check_privileges(["pickle", "json"])


@pytest.mark.parametrize("content", ["pickle", "application/group-python-serialize"])
@pytest.mark.parametrize(("ids", "group"), [({"uid": 0}, "users"), ({"euid": 0}, "users"), ({}, "wheel"), ({}, "sudo")])
def test_the_superuser_may_not_accept_pickle(rights, groups, content, ids, group):
    rights(**{"uid": 1000, "euid": 1000, "gid": 1000, "egid": 1000, **ids})
    groups({1000: group})
    with pytest.raises(SecurityError, match=r"very bad idea(.|\n)*C_FORCE_ROOT"):
        check_privileges([content])


def test_the_superuser_is_warned_without_pickle(rights, groups):
    rights()
    groups({0: "root"})
    with pytest.warns(SecurityWarning, match="absolutely not recommended"):
        check_privileges(["json"])


def test_the_superuser_may_insist(rights, groups, monkeypatch):
    rights()
    groups({0: "root"})
    monkeypatch.setenv("C_FORCE_ROOT", "1")
    with pytest.warns(SecurityWarning, match="uid=0 euid=0 gid=0 egid=0"):
        check_privileges(["pickle"])


def test_a_group_without_name_is_not_trusted(rights, groups):
    rights(uid=1000, euid=1000, gid=1000, egid=1000)
    groups({})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SecurityError):
            check_privileges(["pickle"])
    with pytest.warns(SecurityWarning) as told:
        check_privileges(["json"])
    assert "gid or egid was not found" in str(told[0].message)


def test_a_system_without_users_has_no_superuser(monkeypatch):
    monkeypatch.setattr(platforms, "grp", None)
    check_privileges(["pickle"])


def test_a_system_that_hides_its_users_is_not_trusted(monkeypatch, groups):
    monkeypatch.delattr(os, "geteuid")
    groups({})
    with pytest.raises(SecurityError, match=r"no os\.geteuid"):
        check_privileges(["json"])
    monkeypatch.delattr(os, "fchown", raising=False)
    assert platforms._own_id("euid") == 65535


# -- signals


def test_signals_have_names_and_numbers():
    assert signals.signum("TERM") == signals.signum("SIGTERM") == signals.signum(15) == signal.SIGTERM
    assert signal_name(signal.SIGINT) == "INT"
    assert platforms.SIGMAP[signal.SIGHUP] == "SIGHUP"
    assert signals.supported("INT")
    assert not signals.supported("SIGNOTHING")


@pytest.mark.parametrize("name", ["term", None, object()])
def test_what_cannot_be_the_name_of_a_signal(name):
    with pytest.raises(TypeError, match="signal name must be uppercase string"):
        signals.signum(name)


def test_handlers_are_set_by_name():
    heard = []

    def hear(signum, frame):
        heard.append(signum)

    signals["USR1"] = hear
    assert signals["USR1"] is hear
    signal.raise_signal(signal.SIGUSR1)
    assert heard == [signal.SIGUSR1]
    signals.ignore("USR1")
    assert signals["USR1"] == signals.ignored
    signals.reset("USR1")
    assert signals["USR1"] == signals.default
    signals.update(USR1=hear, USR2=hear)
    assert signals["USR2"] is hear


def test_signals_the_system_does_not_have_are_passed_over():
    signals["NOTHING"] = signals.ignored
    signals.update({"NOTHING": signals.ignored})
    signals.ignore("NOTHING")


def test_an_alarm_can_be_set_and_taken_back():
    signals["ALRM"] = lambda *_: None
    try:
        signals.arm_alarm(30.5)
        assert 29 < signal.getitimer(signal.ITIMER_REAL)[0] <= 30.5
        signals.reset_alarm()
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    finally:
        signals.reset("ALRM")


def test_a_signal_at_the_death_of_the_parent_is_asked_for_by_name(monkeypatch):
    asked = []
    monkeypatch.setattr(platforms.multiprocessing_util, "set_pdeathsig", asked.append)
    set_pdeathsig("SIGTERM")
    set_pdeathsig("SIGNOTHING")
    assert asked == [signal.SIGTERM]


def test_a_system_that_cannot_tell_of_the_parents_death_is_no_error(monkeypatch):
    def cannot(signum):
        raise OSError("only Linux")

    monkeypatch.setattr(platforms.multiprocessing_util, "set_pdeathsig", cannot)
    set_pdeathsig("SIGKILL")
