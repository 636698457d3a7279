"""Command lines of nodes: names, per-node options, files; and which processes are signalled."""

from __future__ import annotations

import os
import signal

import pytest

from celery_clone.apps import multi
from celery_clone.apps.multi import Cluster, MissingValue, MultiParser, NamespacedOptionParser, Node, UnknownNode
from celery_clone.utils.nodenames import gethostname

FILES = ("--pidfile=%n.pid", "--logfile=%n%I.log", "--executable=python")


def nodes_of(*words):
    parser = NamespacedOptionParser([*words, *FILES])
    parser.parse()
    return list(MultiParser(cmd=None).parse(parser))


def options_of(*words):
    """``{"name": {"-c": "3"}}``: what each node is given, without what all nodes have."""
    common = {"--pidfile", "--logfile", "--executable", "-n"}
    return {
        node.name.partition("@")[0]: {name: value for name, value in node.options.items() if name not in common}
        for node in nodes_of(*words)
    }


# -- words


def test_short_options_take_the_next_word_and_long_ones_do_not():
    parser = NamespacedOptionParser(["a", "-E", "-c", "3", "--autoscale=10,3", "--beat", "b", "", "--", "x.y=1", "a b"])
    parser.parse()
    assert parser.values == ["a", "b"]
    assert parser.options == {"-E": None, "-c": "3", "--autoscale": "10,3", "--beat": None}
    assert parser.passthrough == "-- x.y=1 'a b'"


def test_the_guides_ten_nodes_get_their_queues_and_log_levels():
    given = options_of(
        *("10", "-A", "proj", "-l", "info", "-Q:1-3", "images,video", "-Q:4,5", "data", "-Q", "default"),
        *("-L:4,5", "debug"),
    )
    queues = ["images,video"] * 3 + ["data"] * 2 + ["default"] * 5
    levels = ["info"] * 3 + ["debug"] * 2 + ["info"] * 5
    assert [given[f"celery{number}"] for number in range(1, 11)] == [
        {"-A": "proj", "-l": level, "-Q": queue} for queue, level in zip(queues, levels, strict=True)
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["a", "b", "-c", "3", "-c:b", "10"], ["3", "10"], id="a name"),
        pytest.param(["a", "b", "-c:2", "10", "-c", "3"], ["3", "10"], id="a number counts from one"),
        pytest.param(["a", "b", "-c", "3", "-c:a,2", "10"], ["10", "10"], id="names and numbers together"),
        pytest.param(["a@x", "b@y", "-c", "3", "-c:b@y", "10"], ["3", "10"], id="a full name"),
        pytest.param(["a", "b", "-c:a", "1", "-c:1", "2", "-c", "3"], ["2", "3"], id="a number wins over a name"),
        pytest.param(["3", "-c", "3", "-c:2-9", "10"], ["3", "10", "10"], id="a range may go beyond the nodes"),
        pytest.param(["2", "-c:1-2", "10", "-c:2", "5"], ["10", "10"], id="a range wins over one of counted nodes"),
        pytest.param(["2", "-c", "3", "-c:celery2", "5"], ["3", "5"], id="counted nodes have names, too"),
        pytest.param(["a-b", "c", "-c", "3", "-c:a-b", "5"], ["5", "3"], id="names may have dashes"),
    ],
)
def test_options_behind_a_colon_are_for_some_nodes(words, expected):
    assert [options["-c"] for options in options_of(*words).values()] == expected


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["image", "video", "-c:vidoe", "3"], "'vidoe' for the options -c. Did you mean 'video'?"),
        (["a", "b", "-c:3", "3"], "no node '3'"),
        (["a", "-c:0", "3"], "counted from 1"),
        (["3", "-Q:4,5", "data"], "celery1@"),
    ],
)
def test_options_for_no_node_are_an_error_that_names_the_nodes(words, told):
    with pytest.raises(UnknownNode) as error:
        options_of(*words)
    assert told in str(error.value)


def test_a_long_option_without_its_file_is_an_error():
    with pytest.raises(MissingValue, match="--pidfile=FILE"):
        Node("a@h", options={"--pidfile": None})


# -- names


def test_a_node_without_a_host_is_on_this_one():
    assert [node.name for node in nodes_of("a", "b@%h")] == [f"{name}@{gethostname()}" for name in "ab"]
    assert Node("a").name == f"a@{gethostname()}"


def test_everything_in_a_value_that_is_no_format_of_multi_is_left_to_the_worker():
    node = Node("a@h.x", options={"--broker": "redis://:p%40ss@%n/", "--statedb": "%d-%i%%", "--pidfile": "%p.pid"})
    line = " ".join(node.argv)
    assert "celery_clone --broker=redis://:p%40ss@a/ worker --detach" in line
    assert "--statedb=h.x-%i%" in line
    assert node.pidfile == "a@h.x.pid"


def test_values_with_blanks_stay_one_word():
    node = Node("a@h", options={"-Q": "a b,c", "--executable": "/opt/my python"})
    words = node.prepare_argv(node.argv, node.executable)
    assert words[0] == "/opt/my python"
    assert words[words.index("-Q") + 1] == "a b,c"


def test_a_command_of_ones_own_gets_the_global_options_behind_its_name():
    node = Node("a@h", cmd="manage.py celery worker --detach", append="x.y=1", options={"-A": "proj", "-c": "2"})
    assert node.argv[0] == "manage.py celery -A proj worker --detach"
    assert node.argv[-1] == "x.y=1"


def test_keywords_become_options():
    node = Node.from_kwargs("a@h", Q="x,y", time_limit=3)
    assert node.getopt("-q", "-Q") == "x,y"
    assert node.getopt("--time-limit") == "3"
    with pytest.raises(KeyError, match="--soft"):
        node.getopt("--soft")


# -- files


def test_files_are_in_the_system_folders_where_these_can_be_written_else_here(monkeypatch, tmp_path):
    monkeypatch.setattr(multi, "PID_FOLDER", str(tmp_path / "run" / "celery"))
    monkeypatch.setattr(multi, "LOG_FOLDER", "/proc/nobody/writes/here")
    monkeypatch.setattr(multi.os, "access", lambda path, mode: path == str(tmp_path))
    node = Node("a@h")
    assert node.pidfile == f"{tmp_path}/run/celery/a.pid"
    assert node.logfile == "a%I.log"
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_worker_that_changes_its_folder_are_looked_for_there():
    node = Node("a@h", options={"--workdir": "/srv/%n", "--pidfile": "run/%n.pid", "--logfile": "/log/%n%I"})
    assert node.pidfile == "/srv/a/run/a.pid"
    assert node.logfile == "/log/a%I"


# -- processes


@pytest.fixture
def node(tmp_path):
    """A node, and a function that writes its pid file."""
    node = Node("a@h", options={"--pidfile": f"{tmp_path}/a.pid"})
    node.write = lambda text: (tmp_path / "a.pid").write_text(text)
    return node


@pytest.fixture
def kills(monkeypatch):
    """What was sent to whom.  Process 11 runs, 12 is somebody else's, and there are no others."""
    sent = []

    def kill(pid, sig):
        if pid == 12:
            raise PermissionError(1, "Operation not permitted")
        if pid != 11:
            raise ProcessLookupError(3, "No such process")
        if sig:
            sent.append((pid, sig))

    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(multi, "is_running", lambda pid: pid == 11)
    monkeypatch.setattr(multi, "is_perhaps_celery", lambda pid: True)
    return sent


@pytest.mark.parametrize(("file", "pid"), [("11\n", 11), ("hello\n", None), ("11", None), (None, None)])
def test_the_process_of_a_node_is_in_its_pid_file(node, file, pid):
    if file is not None:
        node.write(file)
    assert node.pid == pid


def test_a_signal_reaches_the_process_in_the_pid_file(node, kills):
    node.write("11\n")
    assert node.send(signal.SIGTERM)
    assert node.alive()
    assert kills == [(11, signal.SIGTERM)]


@pytest.mark.parametrize(
    ("pid", "what", "refused"),
    [
        pytest.param(12, "[celeryd: a@h:MainProcess]", True, id="a worker of another user"),
        pytest.param(12, "bash", False, id="an id that was used again"),
        pytest.param(13, "", False, id="no process"),
    ],
)
def test_a_signal_that_cannot_be_sent_is_told(node, kills, monkeypatch, pid, what, refused):
    dead = []
    monkeypatch.setattr(multi, "is_perhaps_celery", lambda pid: "celery" in what)
    node.write(f"{pid}\n")
    assert node.send(signal.SIGTERM, dead.append) is False
    assert not node.alive()
    assert dead == [node]
    assert node.refused is refused
    assert kills == []


def test_what_took_the_id_of_a_worker_that_is_gone_is_not_signalled(node, kills, monkeypatch):
    monkeypatch.setattr(multi, "is_perhaps_celery", lambda pid: False)
    node.write("11\n")
    assert node.send(signal.SIGTERM) is False
    assert not node.alive()
    assert kills == []
    assert "another program's" in node.problem


def test_a_node_that_runs_is_not_started_again(node, kills):
    node.write("11\n")
    assert node.start() != 0
    assert "already running? (pid: 11)" in node.problem


class Told(list):
    """Notes the callbacks of a cluster."""

    def __getattr__(self, name):
        def note(*args):
            told = [arg.name if isinstance(arg, Node) else arg for arg in args]
            self.append((name, *told))

        return note

    def callbacks(self, *names):
        return {name: getattr(self, name) for name in names}


def test_stopping_tells_of_each_node_and_of_those_that_do_not_run(node, kills, tmp_path):
    told = Told()
    gone = Node("b@h", options={"--pidfile": f"{tmp_path}/b.pid"})
    node.write("11\n")
    cluster = Cluster([node, gone], **told.callbacks("on_send_signal", "on_node_down", "on_still_waiting_end"))
    cluster.stop(sig=signal.SIGINT)
    assert told == [("on_node_down", "b@h"), ("on_send_signal", "a@h", "INT")]
    assert kills == [(11, signal.SIGINT)]


def test_a_node_of_another_user_is_neither_down_nor_started_again(node, kills, monkeypatch):
    monkeypatch.setattr(multi, "is_perhaps_celery", lambda pid: True)
    told = Told()
    node.write("12\n")
    cluster = Cluster([node], **told.callbacks("on_node_down", "on_node_restart", "on_node_signal_dead"))
    cluster.stop()
    assert cluster.restart() == []
    assert told == [("on_node_signal_dead", "a@h")] * 2


def test_waiting_ends_when_the_process_has_ended_not_when_its_pid_file_is_gone(node, kills, monkeypatch, tmp_path):
    looks = iter([True, True, True, False])

    def look(pid):
        (tmp_path / "a.pid").unlink(missing_ok=True)
        return next(looks)

    node.write("11\n")
    monkeypatch.setattr(multi, "is_running", look)
    monkeypatch.setattr(multi, "LOOK_EVERY_S", 0)
    told = Told()
    names = ("on_still_waiting_progress", "on_node_shutdown_ok", "on_node_down", "on_still_waiting_end")
    cluster = Cluster([node], **told.callbacks(*names))
    cluster.stopwait()
    assert [name for name, *_ in told] == list(names)
    assert list(looks) == []


def test_killing_needs_a_pid_file(node, kills):
    told = Told()
    cluster = Cluster([node], **told.callbacks("on_node_down", "on_node_signal"))
    cluster.kill()
    node.write("11\n")
    cluster.kill()
    assert told == [("on_node_down", "a@h"), ("on_node_signal", "a@h", "KILL")]
    assert kills == [(11, signal.SIGKILL)]


def test_a_cluster_is_a_list_of_nodes(node):
    cluster = Cluster([node])
    assert cluster.find("a@h") is node
    assert list(cluster) == cluster.data == [node]
    assert repr(cluster) == "<Cluster(1): ['a@h']>"
    with pytest.raises(KeyError):
        cluster.find("b@h")
