"""The guide shows the table of ``|`` that the code goes by."""

from __future__ import annotations

from pathlib import Path

from celery_clone.canvas.pipe import TABLE, Kind

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "canvas.md"
RIGHT = (Kind.TASK, Kind.GROUP, Kind.NOTHING, Kind.CHORD, Kind.CHAIN, Kind.EMPTY_CHAIN)


def table() -> str:
    """What is made of each two kinds, by the names of the rewrites."""
    rows = [
        f"| left \\ right | {' | '.join(kind.value for kind in RIGHT)} |",
        f"|---|{'---|' * len(RIGHT)}",
        *(
            f"| **{left.value}** | {' | '.join(said(TABLE[left][right].__name__) for right in RIGHT)} |"
            for left in Kind
        ),
    ]
    return "\n".join(rows)


def words() -> str:
    """What each rewrite makes."""
    rewrites = {
        TABLE[left][right].__name__: (TABLE[left][right].__doc__ or "").partition("\n")[0]
        for left in Kind
        for right in RIGHT
    }
    return "\n".join(f"- *{said(name)}*: {sentence[0].lower()}{sentence[1:]}" for name, sentence in rewrites.items())


def said(name: str) -> str:
    return name.replace("_", " ")


def test_the_table_of_the_guide_is_the_one_of_the_code() -> None:
    assert table() in GUIDE.read_text()


def test_the_guide_says_what_each_word_of_the_table_means() -> None:
    assert words() in GUIDE.read_text()


def test_the_table_answers_for_all_kinds() -> None:
    assert set(TABLE) == set(Kind) and all(set(row) == set(RIGHT) for row in TABLE.values())
