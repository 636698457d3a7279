"""Which queue a call goes to."""

from __future__ import annotations

import re
import sys
import types

import pytest
from kombu import Exchange, Queue

from celery_clone.app.routes import MapRoute, Router, expand_router_string, prepare
from celery_clone.app.settings import detect_settings
from celery_clone.exceptions import QueueNotFound


class ByTask:
    """A router as projects write them."""

    def route_for_task(self, task, args=None, kwargs=None):
        return (
            {"queue": "video", "headers": {"seen": (task, args, kwargs)}} if task == "tasks.encode" else None
        )


def by_function(name, args, kwargs, options, task=None, **more):
    return {"queue": "video", "priority": options.get("priority", 1), "shadow": task}


@pytest.fixture
def queues():
    return {
        "celery": Queue("celery", Exchange("celery"), "celery"),
        "video": Queue("video", Exchange("media", "topic"), "media.video"),
        "audio": Queue("audio", Exchange("media", "topic"), "media.audio"),
    }


@pytest.fixture
def routed(queues):
    class App:
        conf = detect_settings({})

    def route(routes, options=None, name="tasks.encode", **call):
        return Router(prepare(routes), queues, app=App).route(options or {}, name, **call)

    return route


@pytest.fixture
def routers_module(monkeypatch):
    module = types.ModuleType("project_routers")
    module.ByTask, module.by_function, module.instance = ByTask, by_function, ByTask()
    monkeypatch.setitem(sys.modules, "project_routers", module)


# -- maps


@pytest.mark.parametrize(
    "routes",
    [
        {"tasks.encode": "video"},
        {"tasks.encode": {"queue": "video"}},
        {"tasks.*": "video"},
        {"*": "audio", "tasks.encode": "video"},
        {re.compile(r"tasks\.(encode|decode)"): "video"},
        [("tasks.*", {"queue": "video"}), ("*", {"queue": "audio"})],
        ([("tasks.*", {"queue": "video"}), ("*", {"queue": "audio"})],),
        [{"other": "audio"}, {"tasks.encode": "video"}],
        ["project_routers:by_function"],
        "project_routers.by_function",
        "project_routers:ByTask",
        "project_routers:instance",
        ByTask(),
        ByTask,
        by_function,
        [lambda *args, **kwargs: None, {"tasks.encode": "video"}],
        [None, {"tasks.encode": "video"}],
    ],
    # Without addresses: a test has the same name in every process.
    ids=lambda routes: re.sub(r" at 0x\w+", "", repr(routes))[:60],
)
def test_every_form_of_the_setting_leads_to_the_queue(routes, routed, queues, routers_module):
    assert routed(routes)["queue"] is queues["video"]


@pytest.mark.parametrize("routes", [None, {}, [], {"other": "video"}, {"tasks.encode": None}])
def test_a_call_that_no_route_knows_goes_to_the_default_queue(routes, routed, queues):
    assert routed(routes) == {"queue": queues["celery"]}


def test_expressions_match_from_the_beginning_of_the_name():
    route = MapRoute({re.compile("encode"): "video"})
    assert route("tasks.encode") is None
    assert route("encode.all") == {"queue": "video"}


def test_the_answer_of_a_map_is_the_callers_to_change():
    route = MapRoute({"a": {"queue": "q"}})
    route("a")["queue"] = "changed"
    assert route("a") == {"queue": "q"}


def test_a_map_remembers_no_more_names_than_it_should(monkeypatch):
    monkeypatch.setattr("celery_clone.app.routes._REMEMBERED_NAMES", 2)
    route = MapRoute({"a*": "q"})
    for name in ("a1", "a2", "a3", "b"):
        route(name)
    assert len(route._found) <= 2


# -- merging


def test_what_the_call_says_wins_over_its_route(routed, queues):
    routes = {"tasks.encode": {"queue": "video", "priority": 3, "serializer": "pickle"}}

    assert routed(routes, {"queue": "audio", "priority": None, "countdown": 5}) == {
        "queue": queues["audio"],
        "priority": 3,
        "serializer": "pickle",
        "countdown": 5,
    }


def test_a_route_may_name_exchange_and_key_without_a_queue(routed):
    assert routed({"tasks.encode": {"exchange": "e", "routing_key": "k"}}) == {
        "exchange": "e",
        "routing_key": "k",
    }


def test_a_queue_given_as_an_object_need_not_be_declared(routed):
    queue = Queue("elsewhere")
    assert routed({"tasks.encode": {"queue": queue}})["queue"] is queue
    assert routed({"tasks.encode": queue})["queue"] is queue
    assert routed(None, {"queue": queue})["queue"] is queue


def test_routers_see_the_whole_call(routed):
    seen = []

    def router(*args, **kwargs):
        seen.append((args, kwargs))

    routed(router, {"countdown": 3}, args=(1,), kwargs={"x": 2}, task_type="the task")
    assert seen == [(("tasks.encode", (1,), {"x": 2}, {"countdown": 3}), {"task": "the task"})]


def test_options_of_the_caller_are_not_changed(routed):
    options = {"queue": "video"}
    routed({}, options)
    assert options == {"queue": "video"}


# -- queues


def test_an_unknown_queue_is_refused_with_the_nearest_name(routed):
    with pytest.raises(QueueNotFound, match="'vidoe' missing from task_queues. Did you mean 'video'"):
        routed({"tasks.encode": "vidoe"})


def test_destinations_are_expanded_from_names_and_options(queues):
    router = Router(queues=queues)

    assert router.expand_destination("video") == {"queue": queues["video"]}
    assert router.expand_destination({"queue": "audio", "priority": 3}) == {
        "queue": queues["audio"],
        "priority": 3,
    }
    assert router.expand_destination({"queue": None}) == {}


def test_a_router_class_named_by_its_path_is_instantiated(routers_module):
    assert isinstance(expand_router_string("project_routers:ByTask"), ByTask)
    assert expand_router_string("project_routers.by_function") is by_function


def test_a_router_that_cannot_be_imported_fails_when_it_is_needed_and_not_before(routed):
    prepared = prepare("no_such_module.router")
    assert len(prepared) == 1
    with pytest.raises(ModuleNotFoundError):
        routed("no_such_module.router")
