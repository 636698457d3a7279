"""Run import-linter on the plan of the house, leaving out the places nobody has moved into yet.

Called by ``make layers``. ``.importlinter`` names every module the package is to have; import-linter refuses
a plan with a module that does not exist. Here such modules are taken out of a copy of the plan, named on the
output, and the rest is checked in full. Once every planned module exists nothing is left out.
"""

from __future__ import annotations

import configparser
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINTER = Path(sys.executable).parent / "lint-imports"
COPY = ROOT / ".cache" / "layers.ini"
LISTS_OF_MODULES = ("modules", "source_modules", "protected_modules", "allowed_importers", "containers")


def exists(module: str) -> bool:
    """Whether the package has *module* now."""
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def reduced(plan: str) -> tuple[str, list[str]]:
    """*plan* without what does not exist, and the names of that."""
    parser = configparser.ConfigParser()
    parser.read_string(plan)
    missing: set[str] = set()

    def present(modules: list[str]) -> list[str]:
        missing.update(module for module in modules if not exists(module))
        return [module for module in modules if exists(module)]

    for name in parser.sections():
        contract = parser[name]
        for key in LISTS_OF_MODULES:
            if key in contract:
                contract[key] = "\n" + "\n".join(present(contract[key].split()))
        # A contract about nothing, and an independence of one, say nothing.
        if any(not contract[key].strip() for key in LISTS_OF_MODULES[:3] if key in contract) or (
            contract.get("type") == "layers" and not contract["containers"].strip()
        ):
            parser.remove_section(name)
        elif contract.get("type") == "layers":
            container = contract["containers"].strip()
            lines = []
            for line in contract["layers"].strip().splitlines():
                places = [place.strip() for place in line.split("|")]
                here = present([f"{container}.{place.strip('()')}" for place in places])
                if here:
                    lines.append(" | ".join(module.rpartition(".")[2] for module in here))
            contract["layers"] = "\n" + "\n".join(lines)
    with tempfile.TemporaryFile("w+") as text:
        parser.write(text)
        text.seek(0)
        return text.read(), sorted(missing)


def main() -> int:
    """Check the house; the exit status is import-linter's."""
    plan, missing = reduced((ROOT / ".importlinter").read_text())
    if missing:
        print("Planned, not there yet: " + ", ".join(name.partition(".")[2] for name in missing))
    # import-linter tells the format from the file's name.
    COPY.parent.mkdir(exist_ok=True)
    COPY.write_text(plan)
    # Its cache looks at the importing file alone, and goes on believing what was imported before it existed.
    command = [str(LINTER), "--config", str(COPY), "--no-cache"]
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
