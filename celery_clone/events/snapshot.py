"""Looks at the state of a cluster now and then: ``celery events --camera``.

A camera is a subclass of :class:`Polaroid` that a project writes, for instance to store what it sees.
"""

from __future__ import annotations

from typing import Any

from kombu.utils.limits import TokenBucket

from celery_clone import _state, platforms
from celery_clone.events.dumper import receive
from celery_clone.utils.dispatch import Signal
from celery_clone.utils.imports import instantiate
from celery_clone.utils.log import get_logger
from celery_clone.utils.time import rate
from celery_clone.utils.timer2 import Timer

__all__ = ("Polaroid", "evcam")

logger = get_logger("celery.evcam")


class Polaroid:
    """Takes a picture of *state* every *freq* seconds, while no event changes it.

    Arguments:
        maxrate: at most so many pictures, as in ``"10/m"``.
        cleanup_freq: seconds between two calls of :meth:`on_cleanup`.
        timer: has ``call_repeatedly``.
    """

    timer: Any = None
    shutter_signal = Signal(name="shutter_signal", providing_args={"state"})
    cleanup_signal = Signal(name="cleanup_signal")

    #: Forget everything after each picture?
    clear_after = False

    _tref: Any = None
    _ctref: Any = None

    def __init__(
        self,
        state: Any,
        freq: float = 1.0,
        maxrate: Any = None,
        cleanup_freq: float = 3600.0,
        timer: Any = None,
        app: Any = None,
    ) -> None:
        self.app = _state.app_or_default(app)
        self.state = state
        self.freq = freq
        self.cleanup_freq = cleanup_freq
        self.timer = timer or self.timer or Timer()
        self.logger = logger
        self.maxrate = TokenBucket(rate(maxrate)) if maxrate else None

    def __enter__(self) -> Polaroid:
        self.install()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cancel()

    def install(self) -> None:
        """Begin."""
        self._tref = self.timer.call_repeatedly(self.freq, self.capture)
        self._ctref = self.timer.call_repeatedly(self.cleanup_freq, self.cleanup)

    def cancel(self) -> None:
        """Take a last picture and end.  Legal early and twice."""
        picture, self._tref = self._tref, None
        cleanup, self._ctref = self._ctref, None
        if picture is not None:
            picture()
            picture.cancel()
        if cleanup is not None:
            cleanup.cancel()

    def on_shutter(self, state: Any) -> None:
        """Called for each picture; for subclasses."""

    def on_cleanup(self) -> None:
        """Called now and then, to remove old pictures; for subclasses."""

    def cleanup(self) -> None:
        """Remove old pictures."""
        logger.debug("Cleanup: Running...")
        self.cleanup_signal.send(sender=self.state)
        self.on_cleanup()

    def shutter(self) -> None:
        """Take a picture, unless there were too many."""
        if self.maxrate is None or self.maxrate.can_consume():
            logger.debug("Shutter: %s", self.state)
            self.shutter_signal.send(sender=self.state)
            self.on_shutter(self.state)

    def capture(self) -> None:
        """Take a picture while the state stands still."""
        self.state.freeze_while(self.shutter, clear_after=self.clear_after)


def evcam(
    camera: Any,
    freq: float = 1.0,
    maxrate: Any = None,
    loglevel: Any = 0,
    logfile: str | None = None,
    pidfile: str | None = None,
    timer: Any = None,
    app: Any = None,
    **kwargs: Any,
) -> None:
    """Take pictures with *camera* (a class or its name) until interrupted.

    Raises:
        SystemExit: interrupted.
    """
    app = _state.app_or_default(app)
    lock = platforms.create_pidlock(pidfile) if pidfile else None
    app.log.setup_logging_subsystem(loglevel, logfile)
    print(f"-> evcam: Taking snapshots with {camera} (every {freq} secs.)", flush=True)
    state = app.events.State()
    taking = instantiate(camera, state, app=app, freq=freq, maxrate=maxrate, timer=timer)
    taking.install()
    try:
        receive(
            app,
            state.event,
            lambda url, error, seconds: logger.error("Cannot connect to %s: %s", url, error),
            lambda error: logger.warning("The connection was lost and is opened again: %r", error),
        )
        raise SystemExit
    except KeyboardInterrupt:
        raise SystemExit from None
    finally:
        taking.cancel()
        if lock is not None:
            lock.release()
