"""Pydantic models as arguments and results of tasks (``@app.task(pydantic=True)``).

Used by ``app.base`` when such a task is declared.  pydantic is an optional dependency, imported
here by name when the first task asks for it.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.utils.annotations import annotation_is_class, annotation_issubclass, get_optional_arg

__all__ = ("pydantic_wrapper",)


class ModelArguments:
    """Knows which parameters of a function are models, and converts their values both ways."""

    def __init__(
        self,
        base_model: Any,
        function: Callable[..., Any],
        strict: bool,
        context: dict[str, Any],
        dump: dict[str, Any],
    ) -> None:
        self.base_model = base_model
        self.strict, self.context, self.dump = strict, context, dump
        self.signature = inspect.signature(function)
        try:
            self.hints: dict[str, Any] = typing.get_type_hints(function)
        except (NameError, AttributeError, TypeError):
            self.hints = {}  # names that cannot be resolved from here: use the annotations as written
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = self.signature.parameters.items()
        self.positional = [name for name, each in parameters if each.kind in positional]
        self.by_name = {name for name, each in parameters if each.kind in by_name}

    def annotation(self, name: str) -> Any:
        """The type that the function declares for a parameter, or for ``"return"``."""
        if name in self.hints:
            return self.hints[name]
        return (
            self.signature.return_annotation
            if name == "return"
            else self.signature.parameters[name].annotation
        )

    def model(self, name: str, value: Any) -> Any:
        """The model class of a parameter, or ``None``."""
        annotation = self.annotation(name)
        optional = get_optional_arg(annotation)
        if optional is not None and value is not None:
            annotation = optional
        return annotation if annotation_issubclass(annotation, self.base_model) else None

    def load(self, model: Any, value: Any) -> Any:
        """The model made of plain data; raises pydantic's ``ValidationError``."""
        return model.model_validate(value, strict=self.strict, context=self.context)

    def load_all(self, args: Any, kwargs: Any) -> inspect.BoundArguments:
        """The arguments of a call with their models in place."""
        bound = self.signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            model = self.model(name, value)
            if model is not None:
                bound.arguments[name] = self.load(model, value)
        return bound

    def dump_result(self, value: Any) -> Any:
        """A returned model of the declared type as plain data; anything else as it is."""
        annotation = self.annotation("return")
        annotation = get_optional_arg(annotation) or annotation
        fits = (
            annotation_is_class(annotation)
            and isinstance(value, self.base_model)
            and isinstance(value, annotation)
        )
        return value.model_dump(**self.dump) if fits else value

    def dump_value(self, name: str | None, value: Any) -> Any:
        """A model as plain data, if the worker will make an equal model of it; else as it is.

        A model that does not survive the way is left to the serializer, as for ordinary tasks.
        """
        if name is None or not isinstance(value, self.base_model) or hasattr(type(value), "__json__"):
            return value
        model = self.model(name, value)
        if model is None:
            return value
        try:
            plain = value.model_dump(**self.dump)
            same = self.load(model, plain) == value
        except Exception:  # noqa: BLE001 user validators may need what only a worker has
            return value
        return plain if same else value

    def dump_call(self, args: Any, kwargs: Any, bound: bool = False) -> tuple[Any, Any]:
        """The arguments of a call with models turned into plain data, before it is sent."""
        given_args, given_kwargs = () if args is None else args, {} if kwargs is None else kwargs
        if not isinstance(given_args, (list, tuple)) or not isinstance(given_kwargs, Mapping):
            return args, kwargs
        if not any(isinstance(value, self.base_model) for value in (*given_args, *given_kwargs.values())):
            return args, kwargs
        try:
            self.signature.bind(*([None] if bound else []), *given_args, **given_kwargs)
        except TypeError:
            return args, kwargs
        names = self.positional[1:] if bound else self.positional
        plain_args = [
            self.dump_value(names[index] if index < len(names) else None, value)
            for index, value in enumerate(given_args)
        ]
        plain_kwargs = {
            key: self.dump_value(key if key in self.by_name else None, value)
            for key, value in given_kwargs.items()
        }
        return (plain_args if isinstance(given_args, list) else tuple(plain_args)), plain_kwargs


def pydantic_wrapper(
    app: Any,
    task_fun: Callable[..., Any],
    task_name: str,
    strict: bool = True,
    context: dict[str, Any] | None = None,
    dump_kwargs: dict[str, Any] | None = None,
) -> Any:
    """Wrap a function so that model parameters are validated and a model result is dumped.

    The wrapper's ``argument_dumper(bound=...)`` gives the function that prepares a call.

    Raises:
        ImproperlyConfigured: pydantic is not installed.
    """
    try:
        base_model = import_module("pydantic").BaseModel
    except ModuleNotFoundError as exc:
        raise ImproperlyConfigured(
            f"Task {task_name!r} uses pydantic=True, but pydantic is not installed. "
            "Install it: pip install 'celery_clone[pydantic]'."
        ) from exc
    arguments = ModelArguments(
        base_model,
        task_fun,
        strict,
        {**(context or {}), "celery_app": app, "celery_task_name": task_name},
        {"mode": "json", **(dump_kwargs or {})},
    )

    @functools.wraps(task_fun)
    def wrapper(*task_args: Any, **task_kwargs: Any) -> Any:
        bound = arguments.load_all(task_args, task_kwargs)
        return arguments.dump_result(task_fun(*bound.args, **bound.kwargs))

    def argument_dumper(bound: bool) -> Callable[[Any, Any], tuple[Any, Any]]:
        return functools.partial(arguments.dump_call, bound=bound)

    wrapper.argument_dumper = argument_dumper  # type: ignore[attr-defined]  # functions take attributes
    return wrapper
