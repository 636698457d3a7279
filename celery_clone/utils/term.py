"""Colours and pictures of a terminal.

Called by the log formatter, the banners of the programs and the command line.
It may not decide whether colours are wanted: callers pass ``enabled``.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Callable
from typing import Any

__all__ = ("colored", "imgcat", "supports_images")

BLACK, RED, GREEN, YELLOW, BLUE, MAGENTA, CYAN, WHITE = range(8)
OP_SEQ = "\033[%dm"
RESET_SEQ = "\033[0m"
COLOR_SEQ = "\033[1;%dm"

IS_WINDOWS = os.name == "nt"

FOREGROUND = 30
BACKGROUND = 40


def fg(s: int) -> str:
    """Return the sequence that switches to bold and the colour code ``s``."""
    return COLOR_SEQ % s


def _painter(op: str) -> Callable[..., colored]:
    """Return a method that shows its arguments after the control sequence ``op``."""

    def paint(self: colored, *s: object) -> colored:
        return self.node(s, op)

    return paint


class colored:
    """Text with colours, which can be nested and added up.

    ``str(colored().red("down: ", colored().bold("3")))`` is ready to print;
    with ``enabled=False`` it is the same text without control sequences.
    """

    def __init__(self, *s: object, **kwargs: Any) -> None:
        self.s = s
        self.enabled: bool = not IS_WINDOWS and kwargs.get("enabled", True)
        self.op: str = kwargs.get("op", "")
        self.names: dict[str, Callable[..., colored]] = {name: getattr(self, name) for name in _COLOR_NAMES}

    black = _painter(fg(FOREGROUND + BLACK))
    red = _painter(fg(FOREGROUND + RED))
    green = _painter(fg(FOREGROUND + GREEN))
    yellow = _painter(fg(FOREGROUND + YELLOW))
    blue = _painter(fg(FOREGROUND + BLUE))
    magenta = _painter(fg(FOREGROUND + MAGENTA))
    cyan = _painter(fg(FOREGROUND + CYAN))
    white = _painter(fg(FOREGROUND + WHITE))

    ired = _painter(fg(BACKGROUND + RED))
    igreen = _painter(fg(BACKGROUND + GREEN))
    iyellow = _painter(fg(BACKGROUND + YELLOW))
    iblue = _painter(fg(BACKGROUND + BLUE))
    imagenta = _painter(fg(BACKGROUND + MAGENTA))
    icyan = _painter(fg(BACKGROUND + CYAN))
    iwhite = _painter(fg(BACKGROUND + WHITE))

    bold = _painter(OP_SEQ % 1)
    underline = _painter(OP_SEQ % 4)
    blink = _painter(OP_SEQ % 5)
    reverse = _painter(OP_SEQ % 7)
    bright = _painter(OP_SEQ % 8)

    def reset(self, *s: object) -> colored:
        """Show ``s`` plain."""
        return self.node(s or ("",), RESET_SEQ)

    def node(self, s: tuple[object, ...], op: str) -> colored:
        """Return the parts ``s`` as shown after the control sequence ``op``."""
        return type(self)(*s, enabled=self.enabled, op=op)

    def no_color(self) -> str:
        """Return the text alone."""
        return "".join(part.no_color() if isinstance(part, colored) else str(part) for part in self.s)

    def embed(self) -> str:
        """Return the text with its colour, but without the sequence that ends it."""
        text = "".join(map(str, self.s))
        return f"{self.op}{text}" if self.enabled else text

    def __str__(self) -> str:
        return f"{self.embed()}{RESET_SEQ if self.enabled else ''}"

    def __repr__(self) -> str:
        return repr(self.no_color())

    def __add__(self, other: object) -> str:
        return f"{self}{other}"


_COLOR_NAMES = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")


# -- pictures --------------------------------------------------------------


def supports_images() -> bool:
    """Tell whether the terminal is one that shows pictures (iTerm2)."""
    return bool(getattr(sys.stdin, "isatty", bool)() and os.environ.get("ITERM_PROFILE"))


def imgcat(path: str, inline: int = 1, preserve_aspect_ratio: int = 0, **kwargs: Any) -> str:
    """Return the text that makes iTerm2 show the picture in the file ``path``.

    Other keyword arguments are passed to the terminal (``width``, ``height``).
    """
    with open(path, "rb") as picture:
        content = base64.b64encode(picture.read()).decode("ascii")
    wishes = {"inline": inline, "preserveAspectRatio": preserve_aspect_ratio, **kwargs}
    settings = ";".join(f"{name}={value}" for name, value in wishes.items())
    # Inside tmux or screen the sequence must be wrapped, else it is swallowed.
    wrapped = os.environ.get("TERM", "").startswith("screen")
    before, after = ("\033Ptmux;\033\033]", "\a\033\\") if wrapped else ("\033]", "\a")
    return f"\n{before}1337;File={settings}:{content}{after}"
