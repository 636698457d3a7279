"""The group of all commands."""

from __future__ import annotations

import os
import sys

import click
import pytest
from click.testing import CliRunner

import celery_clone.bin.celery as group
from celery_clone import Celery
from celery_clone.bin.base import CeleryOption
from celery_clone.bin.celery import COMMANDS, CommandTable, celery, main
from celery_clone.exceptions import CeleryCommandException, ImproperlyConfigured

ENVIRONMENT = (
    "CELERY_LOADER",
    "CELERY_BROKER_URL",
    "CELERY_RESULT_BACKEND",
    "CELERY_CONFIG_MODULE",
    "CELERY_SKIP_CHECKS",
)


@pytest.fixture(autouse=True)
def an_environment_of_its_own(monkeypatch):
    """The command line tells other processes through the environment."""
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write a module into the current folder: ``project(name, text)``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    modules = {*sys.modules}

    def write(name, text):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    yield write
    for name in {*sys.modules} - modules:
        del sys.modules[name]


@pytest.fixture
def probe(monkeypatch):
    """A command that prints what it was given."""

    @click.command()
    @click.pass_context
    def probe(ctx, **options):
        click.echo(f"app={ctx.obj.app.main} options={options}")

    monkeypatch.setitem(celery.commands, "probe", probe)
    return probe


def run(*words, **kwargs):
    return CliRunner().invoke(celery, words, **kwargs)


# -- finding commands


def test_every_command_of_the_table_is_loaded_by_its_name():
    for name in COMMANDS:
        assert celery.commands[name].name == name
        assert getattr(group, name) is celery.commands[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_of_a_command_in_the_list_is_what_it_says_of_itself(name):
    assert COMMANDS[name].short_help == celery.commands[name].get_short_help_str(200)


def test_listing_the_commands_loads_none_of_them():
    table = CommandTable(COMMANDS, dict)
    assert table.short_help_of("worker") == "Start worker instance."
    assert not any(isinstance(each, click.Command) for each in table._commands.values())


def test_hidden_commands_of_other_packages_are_not_listed(monkeypatch):
    def more():
        return {
            "seen": Place("x:seen", click.Command("seen", help="Seen.")),
            "unseen": Place("x:unseen", click.Command("unseen", hidden=True)),
        }

    monkeypatch.setattr(celery, "commands", CommandTable(COMMANDS, more))
    shown = run("--help").output
    assert "  seen     Seen." in shown
    assert "unseen" not in shown


def test_there_are_no_other_attributes():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = group.nonsense


def test_a_misspelt_command_ends_with_2_and_names_the_nearest():
    given = run("wroker")
    assert given.exit_code == 2
    assert "No such command 'wroker'. Did you mean 'worker'?" in given.output


def test_a_wrong_option_of_the_group_ends_with_2():
    assert run("--nonsense", "worker").exit_code == 2


def test_without_a_command_the_help_is_shown():
    given = run()
    assert given.exit_code == 0
    assert given.output == run("--help").output
    for name in COMMANDS:
        assert f"\n  {name} " in given.output


def test_the_version_is_that_of_the_celery_we_stand_for():
    given = run("--version")
    assert (given.output, given.exit_code) == ("5.7.0 (collider)\n", 0)


class Place:
    """An entry point of another package."""

    def __init__(self, value, loaded=None):
        self.value = value
        self._loaded = loaded

    def load(self):
        if self._loaded is None:
            raise ImportError("no module named flowers")
        return self._loaded


def test_other_packages_are_looked_at_only_for_unknown_names():
    looked = []
    flower = click.Command("flower")

    def more():
        looked.append(1)
        return {"flower": Place("flower:cli", flower), "worker": Place("evil:worker")}

    table = CommandTable(COMMANDS, more)
    assert table["worker"].name == "worker"
    assert "call" in table
    assert not looked
    assert table["flower"] is flower
    assert {*table} == {*COMMANDS, "flower"}
    assert len(table) == len(COMMANDS) + 1
    assert table["worker"].name == "worker"
    assert table.get("nonsense") is None
    del table["flower"]
    assert "flower" not in table
    assert looked == [1]


def test_a_foreign_command_that_cannot_be_imported_says_why_and_harms_no_other(monkeypatch):
    broken = CommandTable(COMMANDS, lambda: {"flower": Place("flower:cli")})
    monkeypatch.setattr(celery, "commands", broken)
    assert "flower" in run("--help").output
    given = run("flower", "--port", "5555")
    assert given.exit_code == 1
    assert "'flower' (flower:cli) cannot be loaded" in given.output
    assert "no module named flowers" in given.output
    assert run("worker", "--help").exit_code == 0


# -- finding the app


def test_a_module_that_is_not_there_ends_with_2_and_says_what_was_tried(project, probe, tmp_path):
    given = run("-A", "nosuchproject", "probe")
    assert given.exit_code == 2
    assert "Unable to load celery application." in given.output
    assert "The module nosuchproject was not found." in given.output
    assert str(tmp_path) in given.output


def test_a_module_without_an_app_ends_with_2_and_says_what_was_tried(project, probe):
    project("emptyproject", "x = 1\n")
    given = run("-A", "emptyproject", "probe")
    assert given.exit_code == 2
    assert "emptyproject.app, emptyproject.celery" in given.output


def test_an_attribute_that_is_not_there_ends_with_2_and_names_the_nearest(project, probe):
    project("nearproject", "from celery_clone import Celery\napplication = Celery('near', set_as_current=False)\n")
    given = run("-A", "nearproject:aplication", "probe")
    assert given.exit_code == 2
    assert "Did you mean 'application'?" in given.output


@pytest.mark.parametrize("text", ["import nosuchlibrary", "None.nothing", "1 / 0", "raise RuntimeError('on purpose')"])
def test_an_error_in_the_users_module_is_shown_with_its_traceback(project, probe, text):
    project("brokenproject", f"{text}\n")
    given = run("-A", "brokenproject", "probe")
    assert given.exit_code == 2
    assert "While trying to load the module brokenproject the following error occurred:" in given.output
    assert "Traceback" in given.output
    assert text in given.output


def test_the_app_of_a_package_is_found(project, probe):
    project("goodproject/__init__", "")
    project("goodproject/celery", "from celery_clone import Celery\napp = Celery('good', set_as_current=False)\n")
    assert run("-A", "goodproject", "probe").output == "app=good options={}\n"


def test_the_environment_names_an_app_as_well(project, probe):
    project("envproject", "from celery_clone import Celery\napp = Celery('env', set_as_current=False)\n")
    given = run("probe", env={"CELERY_APP": "envproject"}, auto_envvar_prefix="CELERY")
    assert given.output == "app=env options={}\n"


def test_an_app_given_to_the_command_itself_is_explained(probe):
    given = run("probe", "-A", "proj")
    assert given.exit_code == 2
    assert "You are using `-A` as an option of the probe sub-command" in given.output
    assert "celery -A celeryapp probe" in given.output


# -- global options


def test_global_options_go_into_the_environment(probe):
    run(
        *("-b", "redis://one", "--result-backend", "redis://two", "--loader", "default"),
        *("--config", "conf", "--skip-checks", "probe"),
    )
    assert [os.environ[name] for name in ENVIRONMENT] == ["default", "redis://one", "redis://two", "conf", "true"]


def test_options_that_are_not_given_leave_the_environment_alone(probe):
    assert run("probe").exit_code == 0
    assert [os.environ.get(name) for name in ENVIRONMENT] == [None] * 5


def test_the_folder_is_changed_before_the_app_is_looked_for(project, probe, tmp_path):
    project("below/placed", "from celery_clone import Celery\napp = Celery('placed', set_as_current=False)\n")
    assert run("--workdir", "below", "-A", "placed", "probe").output == "app=placed options={}\n"
    assert os.getcwd() == str(tmp_path / "below")


def test_a_folder_that_is_not_there_ends_with_2():
    given = run("--workdir", "/nowhere/at/all", "worker")
    assert given.exit_code == 2
    assert "cannot change to '/nowhere/at/all'" in given.output


@pytest.mark.parametrize(
    ("words", "expected"),
    [((), (False, False)), (("-C",), (True, False)), (("-q", "--no-color"), (True, True))],
    ids=["neither", "no colours", "quiet, too"],
)
def test_colours_and_talk_can_be_turned_off(monkeypatch, words, expected):
    @click.command()
    @click.pass_obj
    def probe(obj):
        click.echo(f"{(obj.no_color, obj.quiet)}")

    monkeypatch.setitem(celery.commands, "probe", probe)
    assert run(*words, "probe").output == f"{expected}\n"


# -- options that the app adds


def test_the_app_adds_options_to_every_command_for_one_run(project, probe):
    project(
        "optionproject",
        "import click\nfrom celery_clone import Celery\napp = Celery('options', set_as_current=False)\n"
        "app.user_options['preload'].add(click.Option(['--region']))\n",
    )
    given = run("-A", "optionproject", "probe", "--region", "eu")
    assert given.output == "app=options options={'region': 'eu'}\n"
    assert "--region" in run("-A", "optionproject", "probe", "--help").output
    assert run("probe", "--region", "eu").exit_code == 2
    assert not probe.params


def test_the_app_adds_options_to_the_worker(project, monkeypatch):
    project(
        "workerproject",
        "import click\nfrom celery_clone import Celery\napp = Celery('options', set_as_current=False)\n"
        "app.user_options['worker'].add(click.Option(['--colour'], help='Paint it.'))\n",
    )
    assert "Paint it." in run("-A", "workerproject", "worker", "--help").output
    assert "Paint it." not in run("-A", "workerproject", "call", "--help").output


# -- from within programs


def test_an_app_can_run_the_command_line_with_itself(probe, capsys):
    app = Celery("embedded", set_as_current=False)
    assert app.start(argv=["probe"]) is None
    assert capsys.readouterr().out == "app=embedded options={}\n"


def test_the_first_word_of_the_process_is_its_name(probe, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program.py", "probe"])
    Celery("embedded", set_as_current=False).start()
    assert capsys.readouterr().out == "app=embedded options={}\n"


def test_an_app_named_on_the_command_line_wins_over_the_one_that_runs_it(project, probe, capsys):
    project("otherproject", "from celery_clone import Celery\napp = Celery('other', set_as_current=False)\n")
    Celery("embedded", set_as_current=False).start(argv=["-A", "otherproject", "probe"])
    assert capsys.readouterr().out == "app=other options={}\n"


def test_errors_and_exit_codes_reach_the_program_that_runs_the_command_line(monkeypatch):
    app = Celery("embedded", set_as_current=False)
    with pytest.raises(click.UsageError):
        app.start(argv=["wroker"])

    @click.command()
    @click.pass_context
    def leave(ctx):
        ctx.exit(3)

    monkeypatch.setitem(celery.commands, "leave", leave)
    assert main(app, ["leave"]) == 3


def test_the_process_ends_with_the_code_of_the_command(monkeypatch, probe):
    monkeypatch.setattr(sys, "argv", ["celery", "wroker"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2


def test_a_broker_that_is_away_ends_any_command_with_69(monkeypatch):
    from kombu.exceptions import OperationalError

    @click.command()
    def lonely():
        raise OperationalError("connection refused")

    monkeypatch.setitem(celery.commands, "lonely", lonely)
    given = run("lonely")
    assert given.exit_code == 69
    assert "Could not connect to the message broker" in given.output
    with pytest.raises(CeleryCommandException):
        Celery("embedded", set_as_current=False).start(argv=["lonely"])


def test_a_broker_url_of_an_unknown_kind_ends_with_1_and_names_the_known_ones(monkeypatch):
    @click.command()
    @click.pass_obj
    def connecting(obj):
        obj.app.connection_for_write().connect()

    monkeypatch.setitem(celery.commands, "connecting", connecting)
    app = Celery("unknown", broker="redi://:word@host", set_as_current=False)
    given = CliRunner().invoke(celery, ["connecting"], obj=app)
    assert given.exit_code == 1
    assert "begin with 'redi'. Did you mean 'redis'? Known are: amqp," in given.output
    assert "sqlite" in given.output
    assert "word" not in given.output


def test_a_configuration_that_cannot_be_used_ends_with_1(monkeypatch):
    @click.command()
    def refusing():
        raise ImproperlyConfigured("queue 'x' is not declared")

    monkeypatch.setitem(celery.commands, "refusing", refusing)
    given = run("refusing")
    assert (given.exit_code, given.output) == (1, "Error: queue 'x' is not declared\n")


def test_errors_of_our_own_making_are_not_hidden(monkeypatch):
    @click.command()
    def failing():
        raise KeyError("some key")

    monkeypatch.setitem(celery.commands, "failing", failing)
    assert isinstance(run("failing").exception, KeyError)


def test_options_of_the_group_have_help_groups():
    assert all(isinstance(param, CeleryOption) and param.help_group for param in celery.params)
