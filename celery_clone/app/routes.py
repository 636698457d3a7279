"""The setting ``task_routes``: which queue a call goes to.

``app.amqp`` prepares the setting and makes a :class:`Router`; ``app.base`` asks it for
every call.  It reads the table of queues and may not talk to the broker.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

from celery_clone.exceptions import QueueNotFound
from celery_clone.utils.functional import maybe_evaluate, mlazy
from celery_clone.utils.imports import symbol_by_name
from celery_clone.utils.suggest import hint

__all__ = ("MapRoute", "Router", "expand_router_string", "prepare")

# More names than any project has tasks; only a bound against names made up at run time.
_REMEMBERED_NAMES = 8192


class MapRoute:
    """A router made of a mapping of task names, or patterns of names, to routes.

    A name with ``*`` in it is a pattern as for files; compiled expressions match from the
    beginning.  Exact names come first, then patterns in the order written.
    """

    def __init__(self, map: Any) -> None:
        self.map: dict[str, dict[str, Any]] = {}
        self.patterns: dict[re.Pattern[str], dict[str, Any]] = {}
        self._found: dict[str, dict[str, Any] | None] = {}
        for name, route in map.items() if isinstance(map, Mapping) else map:
            if route is None:
                continue  # as if it were not listed
            route = _as_route(route)
            if isinstance(name, re.Pattern):
                self.patterns[name] = route
            elif "*" in name:
                self.patterns[re.compile(fnmatch.translate(name))] = route
            else:
                self.map[name] = route

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        """The route of the task *name*, or ``None``; the rest of the call makes no difference."""
        try:
            route = self._found[name]
        except KeyError:
            route = self.map[name] if name in self.map else self._first_match(name)
            if len(self._found) >= _REMEMBERED_NAMES:
                self._found.clear()
            self._found[name] = route
        return None if route is None else route.copy()

    def _first_match(self, name: str) -> dict[str, Any] | None:
        for pattern, route in self.patterns.items():
            if pattern.match(name):
                return route
        return None


class Router:
    """Finds the options of a call that say where it goes.

    Arguments:
        routes: the prepared setting.
        queues: the table of queues, by name.
        create_missing: whether that table makes queues it does not know.
        app: whose default queue takes what is routed nowhere.
    """

    def __init__(
        self, routes: Any = None, queues: Any = None, create_missing: bool = False, app: Any = None
    ) -> None:
        self.app = app
        self.queues = {} if queues is None else queues
        self.routes = [] if routes is None else routes
        self.create_missing = create_missing

    def route(
        self,
        options: dict[str, Any],
        name: str,
        args: Sequence[Any] | None = (),
        kwargs: Mapping[str, Any] | None = None,
        task_type: Any = None,
    ) -> dict[str, Any]:
        """The *options* of a call of task *name*, completed by its route.

        What the call says itself wins.  A queue is given as the ``Queue`` it names.

        Raises:
            QueueNotFound: if the queue is not declared and may not be made.
        """
        options = self.expand_destination(options)
        route: Any = None
        if self.routes:
            route = self.lookup_route(name, args, kwargs, options, task_type)
        if route is None:
            if "queue" in options:
                return options
            route = self.app.conf.task_default_queue
        merged = self.expand_destination(route)
        for key, value in options.items():
            if value is not None:
                merged[key] = value
        return merged

    def expand_destination(self, route: Any) -> dict[str, Any]:
        """*route* as new options, in which ``queue`` is a ``Queue``; the name of a queue is a route, too.

        Raises:
            QueueNotFound: if the queue is not declared and may not be made.
        """
        destination = _as_route(route)
        queue = destination.pop("queue", None)
        if queue:
            destination["queue"] = self._queue(queue) if isinstance(queue, str) else queue
        return destination

    def _queue(self, name: str) -> Any:
        try:
            return self.queues[name]
        except KeyError:
            raise QueueNotFound(
                f"Queue {name!r} missing from task_queues.{hint(name, self.queues)} Declare it there, or "
                "allow automatic queues with task_create_missing_queues = True."
            ) from None

    def lookup_route(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        task_type: Any = None,
    ) -> Any:
        """What the first router that knows the call answers, or ``None``."""
        for router in self.routes:
            route = self.query_router(router, name, args, kwargs, options, task_type)
            if route is not None:
                return route
        return None

    def query_router(
        self, router: Any, task: str, args: Any, kwargs: Any, options: Any, task_type: Any
    ) -> Any:
        """Ask one router: an object with ``route_for_task``, or anything that can be called."""
        router = maybe_evaluate(router)
        if hasattr(router, "route_for_task"):
            return router.route_for_task(task, args, kwargs)
        return router(task, args, kwargs, options, task=task_type)


def _as_route(route: Any) -> dict[str, Any]:
    """*route* as a dict; a queue, by name or as an object, is short for the route to it."""
    # The two usual kinds first: asking for an abstract class costs more than all the rest.
    if isinstance(route, dict):
        return route.copy()
    if isinstance(route, str):
        return {"queue": route}
    return dict(route) if isinstance(route, (Mapping, list, tuple)) else {"queue": route}


def expand_router_string(router: str) -> Any:
    """The router of that path; a class with ``route_for_task`` is instantiated."""
    return _instance_of_router(symbol_by_name(router))


def _instance_of_router(router: Any) -> Any:
    return router() if isinstance(router, type) and hasattr(router, "route_for_task") else router


def prepare(routes: Any) -> Any:
    """Turn the setting into a sequence of routers.

    It may be a mapping or its pairs, a router, the path of a router, or a list of these.
    Paths are imported when the first call is routed.
    """
    if routes is None:
        return ()
    if not isinstance(routes, (list, tuple)) or _are_pairs(routes):
        routes = (routes,)
    return [_prepared(route) for route in routes if route is not None]


def _are_pairs(routes: Sequence[Any]) -> bool:
    return bool(routes) and all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and isinstance(pair[0], (str, re.Pattern))
        and not callable(pair[1])
        for pair in routes
    )


def _prepared(route: Any) -> Any:
    if isinstance(route, (Mapping, list, tuple)):
        return MapRoute(route)
    if isinstance(route, str):
        return mlazy(expand_router_string, route)
    return _instance_of_router(route)
