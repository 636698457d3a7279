"""What commands are made of."""

from __future__ import annotations

import logging
from datetime import datetime, timezone

import click
import pytest
from click.testing import CliRunner
from kombu.exceptions import OperationalError

from celery_clone import Celery
from celery_clone.bin.base import (
    COMMA_SEPARATED_LIST,
    ISO8601,
    ISO8601_OR_FLOAT,
    JSON_ARRAY,
    JSON_OBJECT,
    LOG_LEVEL,
    CeleryCommand,
    CeleryDaemonCommand,
    CeleryOption,
    CLIContext,
    consume_preload_options,
    handle_preload_options,
    handle_remote_command_error,
)
from celery_clone.exceptions import CeleryCommandException
from celery_clone.signals import user_preload_options


@pytest.fixture
def app():
    return Celery("commands", broker="memory://", set_as_current=False)


@pytest.fixture
def plain(app):
    return CLIContext(app, no_color=True, workdir=None)


@pytest.fixture
def coloured(app):
    return CLIContext(app, no_color=False, workdir=None)


# -- the context object


def test_without_an_app_the_current_one_is_used(plain):
    assert CLIContext(None, no_color=True, workdir=None).app is not None


def test_words_are_coloured_unless_that_is_unwanted(plain, coloured):
    assert plain.OK == "OK"
    assert plain.ERROR == "ERROR"
    assert click.style("OK", fg="green", bold=True) == coloured.OK
    assert coloured.style("x", fg="red") == click.style("x", fg="red")


def test_styles_are_left_out_without_colours(plain, capsys):
    plain.secho("text", fg="red", bold=True)
    plain.echo("more", nl=False)
    plain.error("wrong", fg="red")
    said = capsys.readouterr()
    assert said.out == "text\nmore"
    assert said.err == "wrong\n"


def test_errors_go_to_standard_error(coloured, capsys):
    coloured.error("wrong", fg="red")
    coloured.secho("right")
    coloured.echo("plain")
    said = capsys.readouterr()
    assert "wrong" in said.err
    assert said.out == "right\nplain\n"


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ([], ("OK", "- empty -")),
        (["a", "b"], ("OK", "* a\n* b")),
        ("pong", ("OK", "pong")),
        (3, ("OK", "3")),
        ({"b": 1, "a": 2}, ("OK", '{\n    "a": 2,\n    "b": 1\n}')),
        ({"ok": "pong"}, ("OK", "    pong")),
        ({"error": "no such task"}, ("ERROR", "    no such task")),
    ],
)
def test_replies_are_shown_for_people(plain, reply, text):
    assert plain.pretty(reply) == text


def test_json_is_coloured_where_colours_are_wanted(coloured):
    pytest.importorskip("pygments")
    assert "\x1b[" in coloured.pretty({"a": 1})[1]


def test_messages_from_workers_are_left_out_when_quiet(app, capsys):
    talk = CLIContext(app, no_color=True, workdir=None)
    talk.say_chat("->", "worker: OK", "    pong", show_body=True)
    talk.say_chat("<-", "ping")
    quiet = CLIContext(app, no_color=True, workdir=None, quiet=True)
    quiet.say_chat("->", "worker: OK", "    pong")
    quiet.say_chat("<-", "ping")
    assert capsys.readouterr().out == "->  worker: OK\n    pong\n<-  ping\n worker: OK\n"


# -- errors of commands that talk to workers


def test_an_unreachable_broker_ends_with_69_and_says_so():
    with pytest.raises(CeleryCommandException) as raised:
        handle_remote_command_error("status", OperationalError("refused"))
    assert raised.value.exit_code == 69
    assert "Could not connect to the message broker" in raised.value.message
    assert "refused" in raised.value.message


def test_any_other_error_ends_with_69_and_names_the_command():
    with pytest.raises(CeleryCommandException) as raised:
        handle_remote_command_error("inspect ping", ValueError("why"))
    assert raised.value.exit_code == 69
    assert raised.value.message == "Unable to run the `inspect ping` command. Reason: why"


def test_errors_of_the_command_line_stay_what_they_are():
    with pytest.raises(click.UsageError):
        handle_remote_command_error("status", click.UsageError("wrong"))


# -- options that the app adds


@pytest.fixture
def told():
    told = []

    def note(sender, app, options, **_):
        told.append((sender.__name__, options))

    user_preload_options.connect(note)
    yield told
    user_preload_options.disconnect(note)


def run(command, app, *words):
    return CliRunner().invoke(command, words, obj=CLIContext(app, no_color=True, workdir=None))


@pytest.mark.parametrize("name", ["region", "zone"])
def test_options_of_the_app_are_told_by_a_signal_and_kept_from_commands_that_do_not_know_them(app, told, name):
    option = CeleryOption([f"--{name}"])
    app.user_options["preload"].add(option)

    @click.pass_context
    @handle_preload_options
    def decorated(ctx, region="none"):
        click.echo(f"region={region}")

    given = run(click.Command("go", callback=decorated, params=[option]), app, f"--{name}", "eu")

    assert given.output == ("region=eu\n" if name == "region" else "region=none\n")
    assert told == [("decorated", {name: "eu"})]


def test_commands_without_a_context_get_the_options_told_as_well(app, told):
    option = CeleryOption(["--zone"])
    app.user_options["preload"].add(option)

    def go(**options):
        click.echo(sorted(options))

    given = run(click.Command("go", callback=consume_preload_options(go), params=[option]), app, "--zone", "eu")

    assert given.output == "['zone']\n"
    assert told == [("go", {"zone": "eu"})]


def test_a_command_is_wrapped_only_once():
    @handle_preload_options
    def go(ctx):
        """Do it."""

    assert consume_preload_options(go) is go
    assert handle_preload_options(go) is go
    assert consume_preload_options(None) is None
    assert go.__doc__ == "Do it."


# -- options and commands


def test_the_help_shows_options_under_their_headings(app):
    command = CeleryCommand(
        "go",
        params=[
            CeleryOption(["--fast"], help_group="Speed", help="Hurry."),
            CeleryOption(["--red"], help_group="Colour"),
            CeleryOption(["--blue"], help_group="Colour"),
        ],
    )
    shown = run(command, app, "--help").output
    assert shown.index("Speed:") < shown.index("--fast") < shown.index("Colour:") < shown.index("--red")
    assert shown.index("--blue") < shown.index("\nOptions:") < shown.index("--help")


def test_a_default_can_come_from_the_context():
    option = CeleryOption(["--size"], default_value_from_context="size")
    command = CeleryCommand("go", params=[option], callback=lambda size: click.echo(size))
    assert CliRunner().invoke(command, [], obj={"size": "huge"}).output == "huge\n"
    assert CliRunner().invoke(command, ["--size", "tiny"], obj={"size": "huge"}).output == "tiny\n"


def test_options_of_daemons_fall_back_on_settings_named_after_the_command(app):
    app.conf.worker_pidfile = "/run/worker.pid"
    command = CeleryDaemonCommand("worker", callback=lambda **given: click.echo(given["pidfile"]))
    assert run(command, app).output == "/run/worker.pid\n"
    assert run(command, app, "--pidfile", "mine").output == "mine\n"


# -- types of values


def test_lists_are_separated_by_commas():
    assert COMMA_SEPARATED_LIST.convert("a,b", None, None) == ["a", "b"]


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [(JSON_ARRAY, ("[1, 2]", [1, 2]), '{"a": 1}'), (JSON_OBJECT, ('{"a": 1}', {"a": 1}), "[1]")],
    ids=["array", "object"],
)
def test_json_values_are_of_the_type_asked_for(type_, good, bad):
    text, value = good
    assert type_.convert(text, None, None) == value
    assert type_.convert(value, None, None) is value
    with pytest.raises(click.BadParameter, match="was not an"):
        type_.convert(bad, None, None)
    with pytest.raises(click.BadParameter, match="is not JSON"):
        type_.convert("{", None, None)


def test_times_are_read_from_iso_8601():
    noon = datetime(2025, 6, 1, 12, tzinfo=timezone.utc)
    assert ISO8601.convert("2025-06-01T12:00:00Z", None, None) == noon
    assert ISO8601_OR_FLOAT.convert("2025-06-01T12:00:00Z", None, None) == noon
    assert ISO8601_OR_FLOAT.convert("1.5", None, None) == 1.5
    for type_ in (ISO8601, ISO8601_OR_FLOAT):
        with pytest.raises(click.BadParameter, match="'soon' is not a time"):
            type_.convert("soon", None, None)


def test_levels_are_named_in_any_case():
    assert LOG_LEVEL.convert("info", None, None) == logging.INFO
    assert LOG_LEVEL.convert(7, None, None) == 7
    with pytest.raises(click.BadParameter):
        LOG_LEVEL.convert("loud", None, None)
