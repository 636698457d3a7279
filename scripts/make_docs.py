"""Write the pages that come from the code: ``make docs``.

``docs/internals/house.md`` from ``.importlinter`` and the first line of each module, ``docs/reference/settings.md``
from the table in ``celery_clone/app/defaults.py``, ``docs/reference/cli.md`` from the commands.  With ``--check``
nothing is written and the exit status says whether the pages are as they would be.
"""

from __future__ import annotations

import ast
import configparser
import sys
from pathlib import Path

from cli_page import cli_page

from celery_clone.app.settings import settings_page

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "celery_clone"

HEAD = """# The house on one page

Written by `make docs` from `.importlinter` and the first line of each module.

A module may import from any floor below its own, from no floor above, and not from a neighbour on its own
floor (`|` separates neighbours). `make layers` checks it.

```
{floors}
```
"""


def floors() -> str:
    """The floors of the package, the highest first."""
    config = configparser.ConfigParser()
    config.read(ROOT / ".importlinter")
    return str(config["importlinter:contract:house"]["layers"]).strip()


def first_line(path: Path) -> str:
    """What a module says it is."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.strip().partition("\n")[0].strip()


def module_rows(folder: Path) -> list[str]:
    """A row for each module of a folder and of the folders in it."""
    rows = []
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__")
        rows.append(f"| `{name}` | {first_line(path)} |")
    return rows


def house_page() -> str:
    """The page about the floors and the modules on them."""
    parts = [HEAD.format(floors=floors())]
    singles = [path for path in sorted(PACKAGE.glob("*.py")) if path.stem not in ("__init__",)]
    rows = [f"| `{path.stem}` | {first_line(path)} |" for path in singles]
    parts.append("## Single modules\n\n| module | what it is |\n|---|---|\n" + "\n".join(rows) + "\n")
    for folder in sorted(path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()):
        table = "\n".join(module_rows(folder))
        parts.append(f"## {folder.name}\n\n| module | what it is |\n|---|---|\n{table}\n")
    return "\n".join(parts)


PAGES = {
    ROOT / "docs" / "internals" / "house.md": house_page,
    ROOT / "docs" / "reference" / "settings.md": settings_page,
    ROOT / "docs" / "reference" / "cli.md": cli_page,
}


def main() -> int:
    """Write or check the pages; returns the exit status."""
    stale = []
    for path, make in PAGES.items():
        page = make().rstrip() + "\n"
        if "--check" in sys.argv:
            if not path.exists() or path.read_text() != page:
                stale.append(path)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page)
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not what the code says. Run: make docs")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
