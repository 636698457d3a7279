#!/bin/sh
# Print the Python to build the environment with: python3 if it is 3.10 or newer, else the newest that is.
set -eu

new_enough() {
    "$1" -c 'import sys; sys.exit(not ((3, 10) <= sys.version_info[:2] <= (3, 13)))' >/dev/null 2>&1
}

for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.10; do
    if command -v "$name" >/dev/null 2>&1 && new_enough "$name"; then
        command -v "$name"
        exit 0
    fi
    if [ "$name" = "${PYTHON:-}" ]; then
        echo "PYTHON=$name is not a Python 3.10 to 3.13; name one that is, or unset PYTHON." >&2
        exit 1
    fi
done
found=$(python3 --version 2>&1 || true)
echo "celery_clone needs Python 3.10 to 3.13 on the PATH; found: ${found:-none}. Install one (apt-get install python3 python3-venv)." >&2
exit 1
