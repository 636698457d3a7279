"""Colours and pictures of a terminal."""

from __future__ import annotations

import base64
import io
import sys

import pytest

from celery_clone.utils.static import get_file, logo
from celery_clone.utils.term import colored, imgcat, supports_images


def test_colours_are_nested_and_end():
    c = colored()
    assert str(c.red("a")) == "\033[1;31ma\033[0m"
    assert str(c.blue("a", c.bold("b"))) == "\033[1;34ma\033[1mb\033[0m\033[0m"


def test_without_colours_the_text_stays():
    c = colored(enabled=False)
    assert str(c.red("a", c.bold("b"))) == "ab"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *((name, f"1;{30 + number}") for number, name in enumerate(colored().names)),
        *((f"i{name}", f"1;{40 + number}") for number, name in enumerate(colored().names) if number),
        ("bold", "1"),
        ("underline", "4"),
        ("blink", "5"),
        ("reverse", "7"),
        ("bright", "8"),
    ],
)
def test_every_colour_has_its_code(name, code):
    assert str(getattr(colored(), name)("x")) == f"\033[{code}mx\033[0m"


def test_colours_can_be_reset_added_and_looked_at():
    c = colored()
    assert str(c.reset("x")) == "\033[0mx\033[0m"
    assert c.red("a") + "b" == "\033[1;31ma\033[0mb"
    assert repr(c.red("a", c.green("b"), 3)) == "'ab3'"
    assert c.embed() == ""
    assert c.no_color() == ""


def test_pictures_need_a_terminal_that_shows_them(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.delenv("ITERM_PROFILE", raising=False)
    assert not supports_images()
    monkeypatch.setenv("ITERM_PROFILE", "Default")
    assert supports_images()
    monkeypatch.setattr(sys, "stdin", None)
    assert not supports_images()


def test_a_picture_is_sent_as_text(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    with open(logo(), "rb") as file:
        content = file.read()
    text = imgcat(logo(), width=5)
    assert text.startswith("\n\033]1337;File=inline=1;preserveAspectRatio=0;width=5:")
    assert base64.b64decode(text.partition(":")[2][:-1]) == content
    monkeypatch.setenv("TERM", "screen-256color")
    assert imgcat(logo()).startswith("\n\033Ptmux;")


def test_the_logo_is_a_picture():
    with open(logo(), "rb") as file:
        assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    assert get_file("a", "b").endswith("a/b")
