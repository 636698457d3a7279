"""How errors are described, restored, and told to error callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celery_clone import Celery
from celery_clone.backends import failures
from celery_clone.exceptions import ChordError, SecurityError
from celery_clone.message import codec


class Picky(Exception):
    """Wants other arguments than it keeps."""

    def __init__(self, name: str, *, reason: str) -> None:
        super().__init__(f"{name}: {reason}")


class Unspeakable(Exception):
    """Has a text that needs what only its constructor sets."""

    def __init__(self, first: Any, second: Any) -> None:
        self.second = second
        super().__init__(first)

    def __str__(self) -> str:
        return str(self.second)


class Outer:
    class Inner(Exception):
        """An error inside a class."""


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("tests", broker="memory://", backend="cache+memory://", set_as_current=False)
    yield app
    app.close()


def encode(value: Any) -> Any:
    return codec.dumps(value)[2]


def round_trip(error: BaseException) -> Any:
    return failures.restored(failures.described(error, encode))


def test_an_error_is_described_by_type_module_and_arguments() -> None:
    assert failures.described(ValueError("x", 1), encode) == {
        "exc_type": "ValueError",
        "exc_message": ("x", 1),
        "exc_module": "builtins",
    }


def test_arguments_that_cannot_be_encoded_become_their_text() -> None:
    assert failures.described(ValueError({1}), encode)["exc_message"] == ("{1}",)


@pytest.mark.parametrize("error", [KeyError("k"), Outer.Inner("deep"), ChordError("no body")], ids=repr)
def test_an_error_comes_back_as_it_was(error: Exception) -> None:
    restored = round_trip(error)

    assert type(restored) is type(error)
    assert restored.args == error.args


def test_errors_of_this_package_are_stored_under_celerys_name() -> None:
    assert failures.described(ChordError("x"), encode)["exc_module"] == "celery.exceptions"
    assert type(failures.restored({"exc_type": "ChordError", "exc_module": "celery.exceptions"})) is ChordError


def test_an_error_whose_constructor_wants_other_arguments_keeps_its_type() -> None:
    restored = round_trip(Picky("apples", reason="sold"))

    assert type(restored) is Picky
    assert str(restored) == "apples: sold"


def test_an_error_that_has_no_text_without_its_constructor_is_told_of_by_name() -> None:
    restored = round_trip(Unspeakable("a", "b"))

    assert type(restored) is Exception
    assert "Unspeakable" in str(restored)


def test_errors_of_the_libraries_are_found_although_nobody_imported_them() -> None:
    restored = failures.restored(
        {"exc_type": "WorkerLostError", "exc_message": ["gone"], "exc_module": "billiard.exceptions"}
    )

    assert type(restored).__module__ == "billiard.exceptions"


@pytest.mark.parametrize("module", [None, "a.module.nobody.has", "builtins"])
def test_an_unknown_type_is_made_up_under_its_name(module: str | None) -> None:
    restored = failures.restored({"exc_type": "Unheard", "exc_message": ["x"], "exc_module": module})

    assert type(restored).__name__ == "Unheard"
    assert restored is not None
    assert restored.args == ("x",)


@pytest.mark.parametrize(("module", "name"), [("os", "system"), ("builtins", "eval"), ("builtins", "int")])
def test_a_stored_text_cannot_have_anything_called_that_is_no_error(module: str, name: str) -> None:
    with pytest.raises(SecurityError, match=f"Expected an exception class, got {module}.{name}"):
        failures.restored({"exc_type": name, "exc_message": ["1"], "exc_module": module})


def test_a_stored_text_imports_nothing() -> None:
    restored = failures.restored({"exc_type": "Thing", "exc_message": [], "exc_module": "antigravity"})

    assert type(restored).__name__ == "Thing"


@pytest.mark.parametrize("nothing", [None, {}, ""])
def test_nothing_stored_is_no_error(nothing: Any) -> None:
    assert failures.restored(nothing) is None


def test_what_describes_no_error_is_refused() -> None:
    with pytest.raises(TypeError, match="must be a dictionary"):
        failures.restored("boom")
    with pytest.raises(ValueError, match="must include the exception type"):
        failures.restored({"exc_message": "x"})


# --- error callbacks -----------------------------------------------------------------


def sent(app: Celery) -> list[tuple[str, Any]]:
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue("celery", no_ack=True)
        found = []
        while True:
            try:
                message = queue.get(block=False)
            except queue.Empty:
                queue.close()
                return found
            found.append((message.headers["task"], message.payload[0]))


@pytest.fixture
def call(app: Celery) -> Callable[..., None]:
    def call(*errbacks: Any) -> None:
        failures.call_errbacks(app, failures.fake_request("t", list(errbacks)), KeyError("k"), "Traceback")

    return call


def test_a_callback_for_the_whole_failure_is_called_here(app: Celery, call: Callable[..., None]) -> None:
    got: list[Any] = []

    @app.task
    def tell(request: Any, exc: Any, traceback: Any) -> None:
        got.append((request.id, exc, traceback))

    call(tell.s())

    assert [(task_id, repr(exc), traceback) for task_id, exc, traceback in got] == [("t", "KeyError('k')", "Traceback")]
    assert sent(app) == []


def test_a_callback_for_the_id_is_sent_as_a_task(app: Celery, call: Callable[..., None]) -> None:
    @app.task(name="tell")
    def tell(task_id: str) -> None:
        """Takes the id."""

    call(tell.s())

    assert sent(app) == [("tell", ["t"])]


def test_a_bound_callback_is_sent_because_it_may_want_to_retry(app: Celery, call: Callable[..., None]) -> None:
    @app.task(name="tell", bind=True)
    def tell(self: Any, task_id: str) -> None:
        """Takes the id."""

    call(tell.s())

    assert sent(app) == [("tell", ["t"])]


def test_a_callback_that_is_not_known_here_is_sent_to_who_knows_it(app: Celery, call: Callable[..., None]) -> None:
    call(app.signature("elsewhere"))

    assert sent(app) == [("elsewhere", ["t"])]


def test_a_callback_that_fails_keeps_no_other_from_being_called(
    app: Celery, call: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    got: list[str] = []

    @app.task(name="bad")
    def bad(request: Any, exc: Any, traceback: Any) -> None:
        raise RuntimeError("broken")

    @app.task(name="good")
    def good(request: Any, exc: Any, traceback: Any) -> None:
        got.append(request.id)

    call(bad.s(), good.s(), app.signature("elsewhere"))

    assert got == ["t"]
    assert sent(app) == [("elsewhere", ["t"])]
    assert "Errback 'bad' raised an exception" in caplog.text


def test_callbacks_travel_as_dictionaries(app: Celery, call: Callable[..., None]) -> None:
    got: list[Any] = []

    @app.task(name="tell")
    def tell(request: Any, exc: Any, traceback: Any) -> None:
        got.append(request.id)

    call(dict(tell.s()))

    assert got == ["t"]
