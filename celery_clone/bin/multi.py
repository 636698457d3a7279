"""``celery multi``: start, stop and look at several workers with one command line.

Called by ``bin.celery``, and by projects that use :class:`MultiTool` themselves.  It prints; what is done is
in ``apps.multi``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, wraps
from typing import Any

import click
from click.core import ParameterSource

from celery_clone._version import VERSION_BANNER
from celery_clone.apps.multi import Cluster as Nodes
from celery_clone.apps.multi import MissingValue, MultiParser, NamespacedOptionParser, Node, UnknownNode
from celery_clone.platforms import EX_FAILURE, EX_OK, isatty, signals
from celery_clone.utils import term
from celery_clone.utils.suggest import hint
from celery_clone.utils.text import pluralize

from .base import CeleryCommand, handle_preload_options

__all__ = ("MultiTool", "main", "multi")

USAGE = """\
usage: {prog_name} start <node1 node2 nodeN|range> [worker options]
       {prog_name} stop <n1 n2 nN|range> [-SIG (default: -TERM)]
       {prog_name} stopwait <n1 n2 nN|range> [-SIG (default: -TERM)]
       {prog_name} restart <n1 n2 nN|range> [-SIG] [worker options]
       {prog_name} kill <n1 n2 nN|range>

       {prog_name} show <n1 n2 nN|range> [worker options]
       {prog_name} get hostname <n1 n2 nN|range> [-qv] [worker options]
       {prog_name} names <n1 n2 nN|range>
       {prog_name} expand template <n1 n2 nN|range>
       {prog_name} help

additional options (must appear after command name):

    * --nosplash:   Don't display program info.
    * --quiet:      Don't show as much output.
    * --verbose:    Show more output.
    * --no-color:   Don't display colors.
"""

HELP = """\
Which nodes
===========

    celery multi start w1 w2 -A proj         by name, on this host
    celery multi start w1@%d.example -A proj by full name
    celery multi start 3 -A proj             three of them: celery1, celery2 and celery3

  --hostname=HOST, -n HOST  the host in their names
  --suffix=HOST             the same; "" for none
  --prefix=P                put before each name
  --range-prefix=P          put before each number, instead of "celery"

Options for workers
===================

Everything else is given to the workers.  A short option takes the next word, a long one does not:
write --logfile=FILE.  What follows -- is given to each worker as it is.

    -c 3                      for all nodes
    -c:w1 10  -c:w1,w2 10     for these, by name
    -c:1 10   -c:1,2 10       for these, by number, from 1 on
    -c:1-3 10                 for a range, where only the number of nodes is given

    celery multi start 10 -A proj -l INFO -Q:1-3 images,video -Q:4,5 data -Q default -l:4,5 DEBUG

In values, %n is the name of a node, %h its full name, %d its host, and %i and %I are the index of a process.

Files
=====

    --pidfile=FILE   /var/run/celery/%n.pid
    --logfile=FILE   /var/log/celery/%n%I.log

Where these folders cannot be written, the files are in the current folder.  Nothing else is remembered:
use the same names and files to stop nodes, and the same options to restart them.

  --executable=FILE  the Python to run
  --cmd=WORDS        what it is to run, instead of "-m celery_clone worker --detach"
  --append=WORDS     put behind everything

Stopping
========

    celery multi stop w1 w2            TERM: they end when the tasks that run have ended
    celery multi stop w1 -QUIT         another signal, by name or number
    celery multi stopwait w1           come back when they have ended
    celery multi restart w1 -A proj    stop them, wait, and start them again
    celery multi kill w1               end them at once

Looking
=======

    celery multi show 3 -A proj        the command lines of the workers
    celery multi get w1@host w1 w2     the words of one of them
    celery multi names 3               their names
    celery multi expand %n.pid 3       a text with their names filled in

Exit codes: 0, or 1 if a node was not started or not signalled, or the command line makes no sense.
"""

NO_NODES = "Which nodes? Give their names, or how many there are."
NO_COMMAND = "Invalid command: {0}{1}"
NO_SUCH_NODE = "There is no node {0!r} here.{1}"
NO_PID_IN_FILE = "  {0} holds no process id."
FILE_PROBLEM = "{0}: {1}"

#: Options of ``celery`` given before ``multi`` that the workers get too: parameter, spelling, has it a value?
FORWARDED = (
    ("app", "-A", True),
    ("broker", "-b", True),
    ("result_backend", "--result-backend", True),
    ("loader", "--loader", True),
    ("config", "--config", True),
    ("workdir", "--workdir", True),
    ("no_color", "-C", False),
)


def main() -> None:
    """Run the program with the words of this process, and end it with its code."""
    sys.exit(MultiTool().execute_from_commandline(sys.argv))


def _of_nodes(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let *method*, which takes a cluster, be called with the words that describe it."""

    @wraps(method)
    def with_cluster(self: MultiTool, *argv: Any, **kwargs: Any) -> Any:
        cluster = argv[0] if argv and isinstance(argv[0], Nodes) else self.cluster_from_argv(argv)
        return method(self, cluster, **kwargs)

    return with_cluster


def _of_nodes_and_signal(method: Callable[..., Any]) -> Callable[..., Any]:
    """As :func:`_of_nodes`; one of the words may be a signal."""

    @wraps(method)
    def with_cluster(self: MultiTool, *argv: Any, **kwargs: Any) -> Any:
        if argv and isinstance(argv[0], Nodes):
            return method(self, *argv, **kwargs)
        sig, words = take_signal(argv)
        return method(self, self.cluster_from_argv(words), sig, **kwargs)

    return with_cluster


def take_signal(argv: Sequence[str], default: int = signal.SIGTERM) -> tuple[int, list[str]]:
    """The signal that the last of the words like ``-KILL`` or ``-9`` names, and the other words."""
    end = list(argv).index("--") if "--" in argv else len(argv)
    found, words = default, []
    for word in argv[:end]:
        number = _signal_number(word[1:]) if word.startswith("-") else None
        if number is None:
            words.append(word)
        else:
            found = number
    return found, [*words, *argv[end:]]


def _signal_number(name: str) -> int | None:
    if name.isdigit():
        return int(name) if int(name) in set(signal.Signals) else None
    try:
        return signals.signum(name)
    except (AttributeError, TypeError):
        return None


class MultiTool:
    """The program.

    Arguments:
        env: environment of the workers; that of this process without it.
        cmd: what the workers' Python is to run; see :class:`celery_clone.apps.multi.Node`.
        fh, stdout, stderr: where it prints; *fh* is the older name of *stdout*.
        kwargs: see :meth:`setup_terminal`.
    """

    MultiParser = MultiParser
    OptionParser = NamespacedOptionParser

    splash_text = "celery multi v{version}"
    splash_context: Mapping[str, str] = {"version": VERSION_BANNER}

    #: Code of exit.
    retcode = 0

    #: Words that are for this program, and the attribute each sets.
    reserved_options = (
        ("--nosplash", "nosplash"),
        ("--quiet", "quiet"),
        ("-q", "quiet"),
        ("--verbose", "verbose"),
        ("--no-color", "no_color"),
    )

    def __init__(
        self,
        env: Mapping[str, str] | None = None,
        cmd: str | None = None,
        fh: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        **kwargs: Any,
    ) -> None:
        self.env = env
        self.cmd = cmd
        self.setup_terminal(stdout or fh, stderr, **kwargs)
        self.fh = self.stdout
        self.prog_name = "celery multi"
        self._line_is_open = False
        self.commands: dict[str, Callable[..., Any]] = {
            "start": self.start,
            "show": self.show,
            "stop": self.stop,
            "stopwait": self.stopwait,
            "stop_verify": self.stopwait,
            "restart": self.restart,
            "kill": self.kill,
            "names": self.names,
            "expand": self.expand,
            "get": self.get,
            "help": self.help,
        }

    def setup_terminal(
        self,
        stdout: Any,
        stderr: Any,
        nosplash: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        no_color: bool = False,
        **kwargs: Any,
    ) -> None:
        """Say where to print, and how much."""
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self.nosplash = nosplash
        self.quiet = quiet
        self.verbose = verbose
        self.no_color = no_color

    # --- from words to commands

    def execute_from_commandline(self, argv: Iterable[str], cmd: str | None = None) -> int:
        """Run the program; the first word is its own name.  Returns the code of exit."""
        words = self._handle_reserved_options(argv)
        self.cmd = self.cmd if cmd is None else cmd
        self.prog_name = os.path.basename(words.pop(0))
        if not self.validate_arguments(words):
            return self.error()
        return self.call_command(words[0], words[1:])

    def validate_arguments(self, argv: Sequence[str]) -> bool:
        """Is there a command?"""
        return bool(argv) and not argv[0].startswith("-")

    def call_command(self, command: str, argv: Sequence[str]) -> int:
        """Run a command, and return its code."""
        if command not in self.commands:
            return self.error(NO_COMMAND.format(command, hint(command, self.commands)))
        try:
            return self.commands[command](*argv) or self.retcode
        except (UnknownNode, MissingValue) as error:
            self.carp(str(error))
        except OSError as error:
            if error.filename is None:
                raise
            self.carp(FILE_PROBLEM.format(error.filename, error.strerror))
        return EX_FAILURE

    def _handle_reserved_options(self, argv: Iterable[str]) -> list[str]:
        words = list(argv)
        end = words.index("--") if "--" in words else len(words)
        own, others = words[:end], words[end:]
        for word, attribute in self.reserved_options:
            if word in own:
                own.remove(word)
                setattr(self, attribute, True)
        return own + others

    def cluster_from_argv(self, argv: Sequence[str], cmd: str | None = None) -> Nodes:
        """The nodes that these words describe.

        Raises:
            UnknownNode: none is named, or options are for one that is not.
        """
        cmd = self.cmd if cmd is None else cmd
        parser = self.OptionParser(argv)
        parser.parse()
        if not parser.values:
            raise UnknownNode(NO_NODES)
        return self.Cluster(list(self.MultiParser(cmd=cmd).parse(parser)), cmd=cmd)

    def Cluster(self, nodes: Iterable[Node], cmd: str | None = None) -> Nodes:  # noqa: N802 Celery's name
        """Nodes that tell us what happens to them."""
        return Nodes(
            nodes,
            cmd=cmd,
            env=self.env,
            on_stopping_preamble=self.on_stopping_preamble,
            on_send_signal=self.on_send_signal,
            on_still_waiting_for=self.on_still_waiting_for,
            on_still_waiting_progress=self.on_still_waiting_progress,
            on_still_waiting_end=self.on_still_waiting_end,
            on_node_start=self.on_node_start,
            on_node_restart=self.on_node_restart,
            on_node_shutdown_ok=self.on_node_shutdown_ok,
            on_node_status=self.on_node_status,
            on_node_signal=self.on_node_signal,
            on_node_signal_dead=self.on_node_signal_dead,
            on_node_down=self.on_node_down,
            on_child_spawn=self.on_child_spawn,
            on_child_signalled=self.on_child_signalled,
            on_child_failure=self.on_child_failure,
        )

    # --- commands

    @_of_nodes
    def start(self, cluster: Nodes) -> int:
        """Start the nodes; 1 if one did not come up."""
        self.splash()
        self.note("> Starting nodes...")
        return int(any(cluster.start()))

    @_of_nodes_and_signal
    def stop(self, cluster: Nodes, sig: int, **kwargs: Any) -> int:
        """Tell the nodes to end, and do not wait for it."""
        self.splash()
        cluster.stop(sig=sig, **kwargs)
        return self._refusals(cluster)

    @_of_nodes_and_signal
    def stopwait(self, cluster: Nodes, sig: int, **kwargs: Any) -> int:
        """Tell the nodes to end, and wait until they have."""
        self.splash()
        cluster.stopwait(sig=sig, **kwargs)
        return self._refusals(cluster)

    stop_verify = stopwait

    @_of_nodes_and_signal
    def restart(self, cluster: Nodes, sig: int, **kwargs: Any) -> int:
        """Stop the nodes and start them again; 1 if one did not end or did not come up."""
        self.splash()
        return int(any(cluster.restart(sig=sig, **kwargs))) or self._refusals(cluster)

    @_of_nodes
    def kill(self, cluster: Nodes) -> int:
        """End the nodes at once."""
        self.splash()
        cluster.kill()
        return self._refusals(cluster)

    @_of_nodes
    def names(self, cluster: Nodes) -> int:
        """Print the names of the nodes."""
        return self.ok("\n".join(node.name for node in cluster))

    @_of_nodes
    def show(self, cluster: Nodes) -> int:
        """Print the command lines of the nodes."""
        return self.ok("\n".join(" ".join(node.argv_with_executable) for node in cluster))

    def get(self, wanted: str, *argv: str) -> int:
        """Print the words of the node called *wanted*; 1 if it is none of them."""
        cluster = self.cluster_from_argv(argv)
        try:
            node = cluster.find(wanted)
        except KeyError:
            self.carp(NO_SUCH_NODE.format(wanted, hint(wanted, [node.name for node in cluster])))
            return EX_FAILURE
        return self.ok(" ".join(node.argv))

    def expand(self, template: str, *argv: str) -> int:
        """Print *template* filled in for each node."""
        return self.ok("\n".join(node.expander(template) for node in self.cluster_from_argv(argv)))

    def help(self, *argv: str) -> None:
        """Print how this is used."""
        self.say(f"{USAGE.format(prog_name=self.prog_name)}\n{HELP}")

    def _refusals(self, cluster: Nodes) -> int:
        return EX_FAILURE if any(node.refused for node in cluster) else EX_OK

    # --- printing

    def say(self, m: str, newline: bool = True, file: Any = None) -> None:
        """Print a text at once, as what we start prints too."""
        print(m, file=file or self.stdout, end="\n" if newline else "", flush=True)
        self._line_is_open = not newline

    def ok(self, m: str, newline: bool = True, file: Any = None) -> int:
        """Print a text, and return the code of success."""
        self.say(m, newline=newline, file=file)
        return EX_OK

    def carp(self, m: str, newline: bool = True, file: Any = None) -> None:
        """Print a text as an error."""
        self.say(m, newline, file or self.stderr)

    def note(self, msg: str, newline: bool = True) -> None:
        """Print a text, unless little is to be printed."""
        if not self.quiet:
            self.say(str(msg), newline=newline)

    def info(self, msg: str, newline: bool = True) -> None:
        """Print a text, if much is to be printed."""
        if self.verbose:
            self.note(msg, newline=newline)

    def error(self, msg: str | None = None) -> int:
        """Print an error and how this is used; return the code of failure."""
        if msg:
            self.carp(msg)
        self.usage()
        return EX_FAILURE

    def usage(self) -> None:
        """Print how this is used, in short."""
        self.splash()
        self.say(USAGE.format(prog_name=self.prog_name))

    def splash(self) -> None:
        """Print what this is."""
        if not self.nosplash:
            self.note(str(self.colored.cyan(self.splash_text.format(**self.splash_context))))

    @cached_property
    def colored(self) -> term.colored:
        """The painter; its texts are plain where nobody sees colours."""
        return term.colored(enabled=not self.no_color and bool(isatty(self.stdout)))

    @cached_property
    def OK(self) -> str:  # noqa: N802 Celery's name
        """The word for success."""
        return str(self.colored.green("OK"))

    @cached_property
    def FAILED(self) -> str:  # noqa: N802 Celery's name
        """The word for failure."""
        return str(self.colored.red("FAILED"))

    @cached_property
    def DOWN(self) -> str:  # noqa: N802 Celery's name
        """The word for a node that does not run."""
        return str(self.colored.magenta("DOWN"))

    # --- what happens to nodes

    def on_stopping_preamble(self, nodes: Sequence[Node]) -> None:
        """Nodes are about to be stopped."""
        self.note(str(self.colored.blue("> Stopping nodes...")))

    def on_send_signal(self, node: Node, sig: str) -> None:
        """A node is about to be told to end."""
        self.note(f"\t> {node.name}: {sig} -> {node.pid}")

    def on_still_waiting_for(self, nodes: Sequence[Node]) -> None:
        """These nodes have not ended yet."""
        if nodes:
            count, pids = len(nodes), ", ".join(str(node.pid) for node in nodes)
            text = f"> Waiting for {count} {pluralize(count, 'node')} -> {pids}..."
            self.note(str(self.colored.blue(text)), newline=False)

    def on_still_waiting_progress(self, nodes: Sequence[Node]) -> None:
        """Some time has passed."""
        self.note(".", newline=False)

    def on_still_waiting_end(self) -> None:
        """All nodes have ended."""
        if self._line_is_open:
            self.note("")

    def on_node_signal_dead(self, node: Node) -> None:
        """A node could not be signalled."""
        self.note(f"Could not signal {node.name} ({node.pid}): {node.problem or 'No such process'}")

    def on_node_start(self, node: Node) -> None:
        """A node is about to be started."""
        self.note(f"\t> {node.name}: ", newline=False)

    def on_node_restart(self, node: Node) -> None:
        """A node is about to be started again."""
        self.note(str(self.colored.blue(f"> Restarting node {node.name}: ")), newline=False)

    def on_node_down(self, node: Node) -> None:
        """A node does not run."""
        self.note(f"> {node.name}: {self.DOWN}")
        if node.pid is None and os.path.exists(node.pidfile):
            self.note(NO_PID_IN_FILE.format(node.pidfile))

    def on_node_shutdown_ok(self, node: Node) -> None:
        """A node has ended."""
        opening = "\n" if self._line_is_open else ""
        self.note(f"{opening}\t> {node.name}: {self.OK}")

    def on_node_status(self, node: Node, retval: int) -> None:
        """A node was started, or not."""
        self.note(self.FAILED if retval else self.OK)
        if retval and node.problem:
            self.carp(f"* {node.problem}")

    def on_node_signal(self, node: Node, sig: str) -> None:
        """A node is about to be signalled."""
        self.note(f"Sending {sig} to node {node.name} ({node.pid})")

    def on_child_spawn(self, node: Node, argstr: str, env: Mapping[str, str] | None) -> None:
        """The program of a node is about to be run."""
        self.info(f"  {argstr}")

    def on_child_signalled(self, node: Node, signum: int) -> None:
        """The program of a node was ended by a signal."""
        self.note(f"* Child was terminated by signal {signum}")

    def on_child_failure(self, node: Node, retcode: int) -> None:
        """The program of a node has failed."""
        self.note(f"* Child terminated with exit code {retcode}")


class _Verbatim(CeleryCommand):
    """A command that keeps its words as they are, ``--`` included."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        if "--help" in args[:end]:
            return super().parse_args(ctx, ["--help"])
        ctx.args = args
        return args


@click.command(cls=_Verbatim, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@click.pass_context
@handle_preload_options
def multi(ctx: click.Context, **kwargs: Any) -> None:
    """Start multiple worker instances.

    `celery multi help` explains the words it takes.
    """
    tool = MultiTool(quiet=ctx.obj.quiet, no_color=ctx.obj.no_color)
    end = ctx.args.index("--") if "--" in ctx.args else len(ctx.args)
    words = ["celery multi", *ctx.args[:end], *_forwarded(ctx), *ctx.args[end:]]
    ctx.exit(tool.execute_from_commandline(words))


def _forwarded(ctx: click.Context) -> list[str]:
    """The options before ``multi``, for the workers."""
    parent = ctx.parent
    # Without a command of our own there is nothing to start workers for.
    if parent is None or not ctx.args:
        return []
    words: list[str] = []
    for name, spelling, has_value in FORWARDED:
        if parent.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            # We are in that folder already, and a worker that is told of it starts here.
            value = os.getcwd() if name == "workdir" else str(parent.params[name])
            words += [spelling] if not has_value else _with_value(spelling, value)
    return words


def _with_value(spelling: str, value: str) -> list[str]:
    return [f"{spelling}={value}"] if spelling.startswith("--") else [spelling, value]
