"""Several workers at once: the command lines of nodes, their processes, and how they are stopped.

Called by ``celery multi`` (``bin.multi``) and by ``contrib.testing``.  Nothing is remembered between two
runs: a node is its name and its options, and the id of its process is in its pid file.
It may not print; what happens is told to the callbacks of :class:`Cluster`.
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
import time
from collections import UserList
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from subprocess import Popen
from typing import Any

from celery_clone.apps.processes import started_with, was_started_with
from celery_clone.apps.start_report import DIED_AT_START
from celery_clone.platforms import (
    EX_CANTCREAT,
    EX_FAILURE,
    EX_OK,
    IS_WINDOWS,
    PIDLOCKED,
    Pidfile,
    is_perhaps_celery,
    is_running,
    signal_name,
)
from celery_clone.utils.ids import uuid
from celery_clone.utils.nodenames import NODENAME_SEP, gethostname, host_format, node_format, nodename, nodesplit
from celery_clone.utils.saferepr import saferepr
from celery_clone.utils.suggest import hint
from celery_clone.utils.text import RE_FORMAT

__all__ = ("Cluster", "MissingValue", "MultiParser", "NamespacedOptionParser", "Node", "UnknownNode")

DEFAULT_COMMAND = "-m celery_clone worker --detach"

#: Folders of pid and log files; where they cannot be written, the files are in the current folder.
PID_FOLDER = "/var/run/celery"
LOG_FOLDER = "/var/log/celery"

PIDFILE_OPTIONS = ("--pidfile", "-p")
LOGFILE_OPTIONS = ("--logfile", "-f")
DETACH_OPTIONS = frozenset({"--detach", "-D"})

#: Options of ``celery`` itself, which stand before the name of its command.
GLOBAL_OPTIONS = frozenset(
    ("-A", "--app", "-b", "--broker", "--result-backend", "--loader", "--config", "--workdir", "-C", "--no-color")
    + ("-q", "--quiet")
)

#: Options that the guide spells otherwise than the worker does.
SPELLINGS = {"-L": "-l"}

#: Names of the program that global options follow.
PROGRAMS = frozenset({"celery", "celery_clone", "celery-clone"})

#: Seconds a worker has to write its pid file.
START_TIMEOUT_S = 30.0

#: Seconds after which a pid file that is still there counts as the worker's own.
STEADY_S = 1.0

#: Seconds between two looks at processes that start or end.
LOOK_EVERY_S = 0.1

#: Environment variable that tells the processes of one start from all others.
START_MARK = "CELERY_START_MARK"

#: Environment variable that a worker in the background has, with its id.
DETACHED_PID = "CELERY_DETACHED_PID"

NOT_UP = "The worker wrote no pid file ({pidfile}) within {seconds:g} seconds. See its log file, {logfile}."
NO_FOLDER = "Cannot make the folder {folder} for {file}: {reason}. Choose another with --pidfile and --logfile."
NOT_EXECUTABLE = "Cannot run {program!r}: {reason}. Name the Python to use with --executable."
NOT_OURS = "the pid file is stale, its number is another program's now"
NO_NODE = "There is no node {asked!r} for the options {options}.{hint} The nodes are {known}."
NEEDS_VALUE = "The option {option} names a file. Write it in one word: {option}=FILE."
INDEX_FROM_ONE = "Nodes are counted from 1: there is no node {asked!r} for the options {options}."

Callback = Callable[..., Any]
Options = dict[str, "str | None"]


class UnknownNode(KeyError):
    """Options were given to a node that is not there.

    Give them to a name, or to a number from 1 to the number of nodes.
    """

    def __str__(self) -> str:
        return str(self.args[0])


class MissingValue(ValueError):
    """A long option was given no value.

    Long options do not take the next word: write ``--option=value``.
    """


# -- names and command lines


def build_nodename(name: str, prefix: str, suffix: str) -> tuple[str, str, str]:
    """The name that options are given to, the full name, and the host of a node called *name*."""
    if NODENAME_SEP in name:
        full_name = host_format(name)
        short_name, host = nodesplit(full_name)
        return str(short_name), full_name, host
    return name, host_format(nodename(f"{prefix}{name}", suffix)), suffix


def build_expander(nodename: str, shortname: str, hostname: str) -> Callable[[Any], Any]:
    """A function that fills in a text for a node: ``%n %N`` short name, ``%h %p`` full name, ``%d`` host.

    ``%i`` and ``%I`` are left to the worker, which knows its processes, and so is everything else: the
    ``%40`` in a URL is no format.
    """
    letters = {"%": "%", "n": shortname, "N": shortname, "h": nodename, "p": nodename, "d": hostname}

    def expand(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        return RE_FORMAT.sub(lambda found: letters.get(found[1], found[0]), text)

    return expand


def format_opt(opt: str, value: str | None) -> str:
    """An option with its value, as a shell would want it."""
    if not value:
        return opt
    return f"{opt}={shlex.quote(value)}" if opt.startswith("--") else f"{opt} {shlex.quote(value)}"


def _folder_or_here(folder: str, file: str) -> str:
    """*file* in *folder*; alone, if that cannot be written."""
    existing = folder
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing)
    return os.path.join(folder, file) if os.access(existing, os.W_OK | os.X_OK) else file


def _tell(callback: Callback | None, *args: Any, **kwargs: Any) -> None:
    if callback is not None:
        callback(*args, **kwargs)


class NamespacedOptionParser:
    """Words of a command line, sorted.

    Attributes:
        values: words that are no options: names of nodes.
        options: options of all nodes.
        namespaces: options of some nodes, by what stood behind the colon (``-c:1-3``).
        passthrough: ``--`` and what follows it.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.args = args
        self.options: Options = {}
        self.values: list[str] = []
        self.passthrough = ""
        self.namespaces: dict[str, Options] = {}

    def parse(self) -> None:
        """Sort the words.  A short option takes the next word, unless that is an option; a long one does not."""
        words = [word for word in self.args if word]
        while words:
            word = words.pop(0)
            if word == "--":
                self.passthrough = shlex.join([word, *words])
                break
            if word.startswith("--"):
                self.process_long_opt(word[2:])
            elif word.startswith("-") and word != "-":
                takes_next = bool(words) and not words[0].startswith("-")
                self.process_short_opt(word[1:], words.pop(0) if takes_next else None)
            else:
                self.values.append(word)

    def process_long_opt(self, arg: str, value: str | None = None) -> None:
        """Add ``name`` or ``name=value``."""
        name, assigned, after = arg.partition("=")
        self.add_option(name, after if assigned else value, short=False)

    def process_short_opt(self, arg: str, value: str | None = None) -> None:
        """Add a short option."""
        self.add_option(arg, value, short=True)

    def add_option(self, name: str, value: str | None, short: bool = False, ns: str | None = None) -> None:
        """Add an option, of some nodes if there is a colon in its name, or *ns*."""
        name, _, behind_colon = name.partition(":")
        selector = behind_colon or ns
        options = self.namespaces.setdefault(selector, {}) if selector else self.options
        spelling = f"{'-' if short else '--'}{name}"
        options[SPELLINGS.get(spelling, spelling)] = value

    def optmerge(self, ns: str, defaults: Mapping[str, str | None] | None = None) -> Options:
        """The options of all nodes (or *defaults*) with those of *ns* in their places."""
        return {**(self.options if defaults is None else defaults), **self.namespaces.get(ns, {})}


# -- one node


class Node:
    """A worker that is, or is to be, a process of its own.

    Arguments:
        name: its full name; the host may be missing.
        cmd: how it is started, without the Python program; :data:`DEFAULT_COMMAND` if not given.
        append: words to put behind everything.
        options: of the worker, and of ``celery``; *None* as the value of a flag.
        extra_args: ``--`` and what follows it.

    Attributes:
        problem: why the last start failed, or the last signal could not be sent, as a sentence.
        refused: was it that its process is another user's?
    """

    def __init__(
        self,
        name: str,
        cmd: str | None = None,
        append: str | None = None,
        options: Mapping[str, Any] | None = None,
        extra_args: str | None = None,
    ) -> None:
        self.name = host_format(name if NODENAME_SEP in name else nodename(name, gethostname()))
        self.cmd = cmd or DEFAULT_COMMAND
        self.append = append
        self.extra_args = extra_args or ""
        self.options = self._completed(dict(options or {}))
        short_name, host = nodesplit(self.name)
        self.expander = build_expander(self.name, str(short_name), host)
        self.argv = self._prepare_argv()
        self.problem: str | None = None
        self.refused = False
        self._pid: int | None = None

    @classmethod
    def from_kwargs(cls, name: str, **kwargs: Any) -> Node:
        """A node whose options are given as keywords: ``Q="a,b", time_limit=3``."""
        options = {_spelled(keyword): f"{value}" for keyword, value in kwargs.items()}
        return cls(name, options=options)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name}>"

    def _completed(self, options: dict[str, Any]) -> dict[str, Any]:
        options["-n"] = self.name
        for spellings, folder, file in (
            (PIDFILE_OPTIONS, PID_FOLDER, "%n.pid"),
            (LOGFILE_OPTIONS, LOG_FOLDER, "%n%I.log"),
        ):
            given = next((spelling for spelling in spellings if spelling in options), None)
            if given is None:
                options[spellings[0]] = _folder_or_here(folder, file)
            elif not options[given]:
                raise MissingValue(NEEDS_VALUE.format(option=given))
            else:
                options[given] = os.path.expanduser(options[given])
        options.setdefault("--executable", sys.executable)
        return options

    def _prepare_argv(self) -> tuple[str, ...]:
        """The words behind the Python program, each option with its value in one of them."""
        command = self.expander(self.cmd).split(" ")
        program = next((i for i, word in enumerate(command) if os.path.basename(word) in PROGRAMS), None)
        options = {name: self.expander(value) for name, value in self.options.items()}
        if program is not None:
            for name in [name for name in options if name in GLOBAL_OPTIONS]:
                value = options.pop(name)
                # No shell will do it: the worker is started without one.
                command.insert(program + 1, format_opt(name, os.path.expanduser(value) if value else value))
        words = (" ".join(command), *(format_opt(*option) for option in options.items()), self.extra_args)
        return (*words, self.expander(self.append)) if self.append else words

    def prepare_argv(self, argv: Sequence[str], path: str) -> list[str]:
        """The words to start the program *path* with."""
        return [path, *shlex.split(" ".join(argv), posix=not IS_WINDOWS)]

    @cached_property
    def executable(self) -> str:
        """The Python program."""
        return str(self.options["--executable"])

    @cached_property
    def argv_with_executable(self) -> tuple[str, ...]:
        """The whole command line."""
        return (self.executable, *self.argv)

    def getopt(self, *alt: str) -> Any:
        """The value of an option that has several spellings.

        Raises:
            KeyError: it is not given.
        """
        for spelling in alt:
            if spelling in self.options:
                return self.options[spelling]
        raise KeyError(alt[0])

    @cached_property
    def pidfile(self) -> str:
        """Where the worker writes the id of its process."""
        # The worker fills it in once more.
        return self._in_its_folder(node_format(self.expander(self.getopt(*PIDFILE_OPTIONS)), self.name))

    @cached_property
    def logfile(self) -> str:
        """Where the worker logs; ``%i`` and ``%I`` are filled in by its processes."""
        return self._in_its_folder(self.expander(self.getopt(*LOGFILE_OPTIONS)))

    def _in_its_folder(self, path: str) -> str:
        workdir = self.expander(self.options.get("--workdir"))
        return os.path.join(os.path.expanduser(workdir), path) if workdir else path

    # --- its process

    @property
    def pid(self) -> int | None:
        """The id in the pid file; ``None`` if there is no such file, or no id in it.

        An id that is set counts instead, until ``None`` is set.
        """
        if self._pid is not None:
            return self._pid
        try:
            return Pidfile(self.pidfile).read_pid()
        except ValueError:
            return None

    @pid.setter
    def pid(self, value: int | None) -> None:
        self._pid = value

    def alive(self) -> bool:
        """Does its process run?"""
        pid = self.pid
        return bool(pid) and is_running(pid or 0) and is_perhaps_celery(pid or 0)

    def send(self, sig: int, on_error: Callback | None = None) -> bool | None:
        """Send a process signal; ``None`` if there is no process known, false if there is none of that id."""
        self.problem, self.refused = None, False
        pid = self.pid
        if not pid:
            _tell(on_error, self)
            return None
        try:
            os.kill(pid, 0)
            if not is_running(pid):  # a zombie takes signals, too
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            if not is_perhaps_celery(pid):
                raise ProcessLookupError(errno.ESRCH, NOT_OURS)
            os.kill(pid, sig)
        except (ProcessLookupError, PermissionError) as error:
            self.problem = error.strerror
            self.refused = isinstance(error, PermissionError) and is_perhaps_celery(pid)
            _tell(on_error, self)
            return False
        return True

    def start(self, env: Mapping[str, str] | None = None, **kwargs: Any) -> int:
        """Start it, and return 0 when it is up.

        Arguments:
            env: its environment; ours without it.
            kwargs: the callbacks ``on_spawn``, ``on_signalled`` and ``on_failure``.
        """
        self.problem = None
        if self.alive():
            self.problem = PIDLOCKED.format(self.pidfile, self.pid)
            return EX_CANTCREAT
        for file in (self.pidfile, self.logfile):
            folder = os.path.dirname(os.path.abspath(file))
            try:
                os.makedirs(folder, exist_ok=True)
            except OSError as error:
                self.problem = NO_FOLDER.format(folder=folder, file=os.path.basename(file), reason=error.strerror)
                return EX_CANTCREAT
        return self._run(env, **kwargs)

    def _run(
        self,
        env: Mapping[str, str] | None,
        on_spawn: Callback | None = None,
        on_signalled: Callback | None = None,
        on_failure: Callback | None = None,
    ) -> int:
        words = self.prepare_argv(self.argv, self.executable)
        environment = os.environ if env is None else env
        mark = uuid()
        _tell(on_spawn, self, argstr=" ".join(words), env=env)
        try:
            process = Popen(words, env={**environment, START_MARK: mark})
        except OSError as error:
            self.problem = NOT_EXECUTABLE.format(program=words[0], reason=error.strerror)
            return EX_FAILURE
        code = self.handle_process_exit(process.wait(), on_signalled=on_signalled, on_failure=on_failure)
        stayed = DETACH_OPTIONS.isdisjoint(words) or environment.get("C_FAKEFORK")
        # A command that went into the background has only promised to start.
        return code if code or stayed else self._wait_until_up(mark)

    def _wait_until_up(self, mark: str) -> int:
        now = begun = time.monotonic()
        seen_since: float | None = None
        processes = started_with(START_MARK, mark)
        while now < begun + START_TIMEOUT_S:
            if self.alive():
                seen_since = now if seen_since is None else seen_since
                # Before the worker is there, its pid file is written and removed again, to see if that can be done.
                if was_started_with(self.pid or 0, DETACHED_PID, str(self.pid)) or now - seen_since > STEADY_S:
                    return EX_OK
            else:
                seen_since = None
                if processes is not None and not any(map(is_running, processes)):
                    processes = started_with(START_MARK, mark)
                    if not processes:
                        self.problem = DIED_AT_START.format(program="worker", logfile=self._log_of_parent())
                        return EX_FAILURE
            time.sleep(LOOK_EVERY_S)
            now = time.monotonic()
        self.problem = NOT_UP.format(pidfile=self.pidfile, seconds=START_TIMEOUT_S, logfile=self._log_of_parent())
        return EX_FAILURE

    def _log_of_parent(self) -> str:
        return node_format(self.logfile, self.name)

    def handle_process_exit(
        self, retcode: int, on_signalled: Callback | None = None, on_failure: Callback | None = None
    ) -> int:
        """Turn the code of an ended process into ours, and tell of its failure."""
        if retcode < 0:
            _tell(on_signalled, self, -retcode)
            return -retcode
        if retcode > 0:
            _tell(on_failure, self, retcode)
        return retcode


def _spelled(keyword: str) -> str:
    return f"-{keyword}" if len(keyword) == 1 else f"--{keyword.replace('_', '-')}"


# -- from words to nodes


class MultiParser:
    """Makes nodes of what an option parser found.

    Arguments:
        cmd, append: see :class:`Node`.
        prefix: put before the names of nodes.
        suffix: the host of the nodes.
        range_prefix: name of nodes of which only the number is given.
    """

    Node: type[Node] = Node

    def __init__(
        self,
        cmd: str | None = "celery_clone worker",
        append: str = "",
        prefix: str = "",
        suffix: str = "",
        range_prefix: str = "celery",
    ) -> None:
        self.cmd = cmd
        self.append = append
        self.prefix = prefix
        self.suffix = suffix
        self.range_prefix = range_prefix

    def parse(self, p: NamespacedOptionParser) -> list[Any]:
        """Return the nodes.

        Raises:
            UnknownNode: options were given to a node that is none of them.
        """
        options = dict(p.options)
        host = options.pop("--hostname", None) or options.pop("-n", None) or gethostname()
        options.pop("-n", None)
        cmd = options.pop("--cmd", None) or self.cmd
        append = options.pop("--append", None) or self.append
        prefix = options.pop("--prefix", None) or self.prefix
        suffix = options.pop("--suffix", None) or self.suffix or host
        range_prefix = options.pop("--range-prefix", None) or self.range_prefix
        suffix = "" if suffix in ('""', "''") else suffix

        counted = len(p.values) == 1 and p.values[0].isdigit()
        names = [str(number + 1) for number in range(int(p.values[0]))] if counted else p.values
        built = [build_nodename(name, range_prefix if counted else prefix, suffix) for name in names]
        chosen = Selection(p.namespaces, built, counted=counted)
        return [
            self.Node(full_name, cmd, append, {**options, **chosen.options_of(index)}, p.passthrough)
            for index, (_, full_name, _) in enumerate(built)
        ]


class Selection:
    """Which options are given to which nodes.

    Arguments:
        namespaces: options by what stood behind the colon: names or numbers, with commas between them;
            and ranges, if the nodes are *counted*, as their names may contain dashes otherwise.
        nodes: what :func:`build_nodename` says of each.
        counted: was only the number of nodes given?
    """

    def __init__(
        self, namespaces: Mapping[str, Options], nodes: Sequence[tuple[str, str, str]], *, counted: bool
    ) -> None:
        self._namespaces = namespaces
        self._names = [{namespace, full_name, str(nodesplit(full_name)[0])} for namespace, full_name, _ in nodes]
        self._full_names = [full_name for _, full_name, _ in nodes]
        self._counted = counted
        self._layers = self._ordered()

    def options_of(self, index: int) -> Options:
        """The options of the node at *index*, the ones that win last."""
        full_name = self._full_names[index]
        if full_name in self._namespaces:
            return self._namespaces[full_name]
        found: Options = {}
        for indices, options in self._layers:
            if index in indices:
                found.update(options)
        return found

    def _ordered(self) -> list[tuple[set[int], Options]]:
        # Numbers win over names; of counted nodes, lists and ranges win over a single number.
        ranked: list[tuple[bool, set[int], Options]] = []
        for selector, options in self._namespaces.items():
            parts = selector.split(",")
            found = {part: self._indices(part, options) for part in parts if part}
            # Fewer nodes than usual may be started with the usual options, as long as these are for some of them.
            wanting = [part for part, indices in found.items() if not indices]
            if wanting and (not self._counted or len(wanting) == len(found)):
                raise UnknownNode(self._no_node(wanting[0], options))
            for part, indices in found.items():
                late = len(parts) > 1 or not part.isdigit() if self._counted else part.isdigit()
                ranked.append((late, indices, options))
        return [(indices, options) for _, indices, options in sorted(ranked, key=lambda layer: layer[0])]

    def _indices(self, part: str, options: Options) -> set[int]:
        first, dash, last = part.partition("-")
        if self._counted and dash and first.isdigit() and last.isdigit():
            return set(range(int(first) - 1, int(last))) & set(range(len(self._names)))
        if part.isdigit() and int(part) == 0:
            raise UnknownNode(INDEX_FROM_ONE.format(asked=part, options=" ".join(options)))
        by_number = {int(part) - 1} & set(range(len(self._names))) if part.isdigit() else set()
        return by_number | {index for index, names in enumerate(self._names) if part in names}

    def _no_node(self, asked: str, options: Options) -> str:
        known = sorted(set().union(*self._names))
        return NO_NODE.format(
            asked=asked, options=" ".join(options), hint=hint(asked, known), known=", ".join(self._full_names)
        )


# -- all nodes


class Cluster(UserList[Node]):
    """Nodes, and callbacks that are told what happens to them.

    Arguments:
        nodes: the nodes.
        cmd: kept for callers; each node has its own.
        env: environment of the workers; ours without it.
        on_stopping_preamble: takes the nodes that are about to be stopped.
        on_send_signal: takes a node and the name of the signal it is about to get, to be stopped.
        on_still_waiting_for: takes the nodes that have not ended yet.
        on_still_waiting_progress: takes them too; called again and again.
        on_still_waiting_end: takes nothing.
        on_node_start, on_node_restart: take a node that is about to be started.
        on_node_status: takes a node and the code of its start.
        on_node_shutdown_ok: takes a node that has ended.
        on_node_signal: takes a node and the name of the signal it is about to get.
        on_node_signal_dead: takes a node that could not be signalled.
        on_node_down: takes a node that does not run.
        on_child_spawn: takes a node, ``argstr`` and ``env``.
        on_child_signalled: takes a node and the number of the signal that ended its start.
        on_child_failure: takes a node and the exit code of its start.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        cmd: str | None = None,
        env: Mapping[str, str] | None = None,
        on_stopping_preamble: Callback | None = None,
        on_send_signal: Callback | None = None,
        on_still_waiting_for: Callback | None = None,
        on_still_waiting_progress: Callback | None = None,
        on_still_waiting_end: Callback | None = None,
        on_node_start: Callback | None = None,
        on_node_restart: Callback | None = None,
        on_node_shutdown_ok: Callback | None = None,
        on_node_status: Callback | None = None,
        on_node_signal: Callback | None = None,
        on_node_signal_dead: Callback | None = None,
        on_node_down: Callback | None = None,
        on_child_spawn: Callback | None = None,
        on_child_signalled: Callback | None = None,
        on_child_failure: Callback | None = None,
    ) -> None:
        self.nodes = list(nodes)
        self.cmd = cmd or "celery_clone worker"
        self.env = env
        self.on_stopping_preamble = on_stopping_preamble
        self.on_send_signal = on_send_signal
        self.on_still_waiting_for = on_still_waiting_for
        self.on_still_waiting_progress = on_still_waiting_progress
        self.on_still_waiting_end = on_still_waiting_end
        self.on_node_start = on_node_start
        self.on_node_restart = on_node_restart
        self.on_node_shutdown_ok = on_node_shutdown_ok
        self.on_node_status = on_node_status
        self.on_node_signal = on_node_signal
        self.on_node_signal_dead = on_node_signal_dead
        self.on_node_down = on_node_down
        self.on_child_spawn = on_child_spawn
        self.on_child_signalled = on_child_signalled
        self.on_child_failure = on_child_failure

    @property
    def data(self) -> list[Node]:  # type: ignore[override]
        """The nodes, as :class:`~collections.UserList` calls them."""
        return self.nodes

    def __repr__(self) -> str:
        return f"<{type(self).__name__}({len(self)}): {saferepr([node.name for node in self])}>"

    def find(self, name: str) -> Node:
        """The node of that full name.

        Raises:
            KeyError: there is none.
        """
        for node in self:
            if node.name == name:
                return node
        raise KeyError(name)

    def getpids(self, on_down: Callback | None = None) -> Iterator[Node]:
        """The nodes whose process is known; *on_down* takes each of the others."""
        for node in self:
            if node.pid:
                yield node
            else:
                _tell(on_down, node)

    def start(self) -> list[int]:
        """Start all nodes, and return their codes."""
        return [self.start_node(node) for node in self]

    def start_node(self, node: Node) -> int:
        """Start a node, and return its code."""
        return self._start(node, self.on_node_start)

    def _start(self, node: Node, announce: Callback | None) -> int:
        _tell(announce, node)
        code = node.start(
            self.env,
            on_spawn=self.on_child_spawn,
            on_signalled=self.on_child_signalled,
            on_failure=self.on_child_failure,
        )
        _tell(self.on_node_status, node, code)
        return code

    def restart(self, sig: int = signal.SIGTERM) -> list[int]:
        """Stop all nodes and start each when it has ended; return the codes of the starts."""
        codes: list[int] = []

        def start_again(node: Node) -> None:
            codes.append(self._start(node, self.on_node_restart))

        self._stop_nodes(retry=2, on_down=start_again, sig=sig)
        return codes

    def stop(self, retry: float | None = None, callback: Callback | None = None, sig: int = signal.SIGTERM) -> None:
        """Send *sig* to all nodes; *callback* takes those that are down."""
        self._stop_nodes(retry=retry, on_down=callback, sig=sig)

    def stopwait(self, retry: float | None = 2, callback: Callback | None = None, sig: int = signal.SIGTERM) -> None:
        """As :meth:`stop`, and wait until they have ended, telling of it every *retry* seconds."""
        self._stop_nodes(retry=retry, on_down=callback, sig=sig)

    def _stop_nodes(self, retry: float | None, on_down: Callback | None, sig: int) -> None:
        on_down = self.on_node_down if on_down is None else on_down
        nodes = list(self.getpids(on_down=on_down))
        if nodes:
            for node in self.shutdown_nodes(nodes, sig=sig, retry=retry):
                _tell(on_down, node)

    def shutdown_nodes(
        self, nodes: Iterable[Node], sig: int = signal.SIGTERM, retry: float | None = None
    ) -> Iterator[Node]:
        """Send *sig* to *nodes*, and yield each that has ended; without *retry*, only those that had before."""
        left = list(nodes)
        _tell(self.on_stopping_preamble, left)
        for node in list(left):
            # Workers remove their pid file a little before their process ends.
            node.pid = node.pid
            _tell(self.on_send_signal, node, signal_name(sig))
            if not node.send(sig, self.on_node_signal_dead):
                left.remove(node)
                node.pid = None
                if not node.refused:
                    yield node
        if retry and left:
            yield from self._wait(left, retry)
        for node in left:
            node.pid = None

    def _wait(self, left: list[Node], every_s: float) -> Iterator[Node]:
        _tell(self.on_still_waiting_for, left)
        next_sign = time.monotonic()
        while left:
            if time.monotonic() >= next_sign:
                _tell(self.on_still_waiting_progress, left)
                next_sign += every_s
            ended = [node for node in left if not node.alive()]
            for node in ended:
                left.remove(node)
                node.pid = None
                _tell(self.on_node_shutdown_ok, node)
                yield node
            if ended:
                _tell(self.on_still_waiting_for, left)
            elif left:
                time.sleep(LOOK_EVERY_S)
        _tell(self.on_still_waiting_end)

    def send_all(self, sig: int) -> None:
        """Send *sig* to all nodes whose process is known."""
        for node in self.getpids(on_down=self.on_node_down):
            _tell(self.on_node_signal, node, signal_name(sig))
            node.send(sig, self.on_node_signal_dead)

    def kill(self) -> None:
        """End all nodes at once.  The tasks they run are given to other workers, where they may be."""
        self.send_all(signal.SIGKILL)
