#!/bin/sh
# Install the servers the tests start for themselves, where they are missing and this user may.
# Nothing else is changed: the packages' own services are not started.
set -eu

missing=""
command -v redis-server >/dev/null 2>&1 || missing="$missing redis-server"
[ -e /usr/lib/rabbitmq/bin/rabbitmq-server ] || command -v rabbitmq-server >/dev/null 2>&1 ||
    missing="$missing rabbitmq-server"
command -v memcached >/dev/null 2>&1 || missing="$missing memcached"
[ -e /usr/sbin/mariadbd ] || command -v mariadbd >/dev/null 2>&1 || missing="$missing mariadb-server-core"
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null 2>&1 ||
    missing="$missing postgresql"
[ -n "$missing" ] || exit 0

give_up() {
    echo "$1: tests that need$missing are skipped (or fail, with CI=true); get them with: apt-get install$missing"
    exit 0
}

command -v apt-get >/dev/null 2>&1 || give_up "No apt-get here"
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    give_up "Neither root nor sudo"
fi

# Debian asks this file whether a package may start its service. One that is there already is not touched.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
    trap '$as_root rm -f "$policy"' EXIT
fi

echo "Installing$missing"
log=$(mktemp)
if $as_root apt-get update >"$log" 2>&1 </dev/null &&
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing \
        >>"$log" 2>&1 </dev/null; then
    rm -f "$log"
else
    tail -n 5 "$log" >&2
    rm -f "$log"
    give_up "apt-get failed"
fi
