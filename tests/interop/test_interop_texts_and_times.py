"""The same values through real Celery and through us: texts of arguments, intervals, crontabs, signatures.

Clock changes are left out where we differ on purpose (see ``schedules``).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

TEXTS = """
import json, random, sys
from collections import OrderedDict, namedtuple
from datetime import datetime, timedelta
from decimal import Decimal
from {package}.utils.saferepr import saferepr

chance = random.Random(20)
Point = namedtuple("Point", "x y")


class Plain:
    def __repr__(self):
        return "<a plain object>"


class Tags(frozenset):
    pass


LEAVES = [
    lambda: None, lambda: chance.choice([True, False]), lambda: chance.randrange(-5, 10**12), chance.random,
    lambda: Decimal("1.50"), lambda: datetime(2020, 1, 2, 3, 4, 5), lambda: timedelta(3), lambda: range(3),
    Plain, lambda: int, lambda: 3 + 4j, set, frozenset, lambda: {{1}}, lambda: Tags([2]), lambda: Point(1, "x"),
    lambda: OrderedDict(a=1), lambda: bytes(chance.randrange(256) for _ in range(chance.randrange(6))),
]


def text():
    size = chance.choice([0, 1, 3, 5, 20, 60])
    return "".join(chance.choice("ab c'\\"\\\\\\n\\u00e9\\u4e2d xyz") for _ in range(size))


def value(depth=0):
    kind = chance.randrange(10 if depth < 5 else 4)
    size = chance.choice([0, 1, 2, 3, 8])
    if kind < 2:
        return text()
    if kind < 4:
        return chance.choice(LEAVES)()
    if kind < 6:
        return tuple(value(depth + 1) for _ in range(size))
    if kind < 8:
        return [value(depth + 1) for _ in range(size)]
    return {{chance.choice([text(), chance.randrange(9), b"k", (1, 2)]): value(depth + 1) for _ in range(size)}}


print(json.dumps([
    saferepr(
        value(),
        maxlen=chance.choice([None, 0, 1, 5, 10, 17, 30, 64, 128, 1024]),
        maxlevels=chance.choice([3, 3, 3, 0, 1, 2, 5]),
    )
    for _ in range(4000)
]))
"""

TIMES = """
import json, random
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from zoneinfo import ZoneInfo
from {package}.schedules import crontab, schedule
from {package}.utils.time import humanize_seconds, rate, remaining

chance = random.Random(30)
zones = {{
    "UTC": [],
    "Europe/Berlin": [datetime(2024, 3, 31, 1), datetime(2024, 10, 27, 1)],
    "Australia/Lord_Howe": [datetime(2024, 4, 6, 15), datetime(2024, 10, 5, 15, 30)],
}}


def field(size, first=0):
    last = first + size - 1
    one, other = chance.randint(first, last), chance.randint(first, last)
    several = sorted({{chance.randint(first, last) for _ in range(4)}})
    return chance.choice(
        ["*", "*", one, f"*/{{chance.randrange(1, size)}}", f"{{one}}-{{other}}", f"{{one}}-{{other}}/3", several]
    )


def app_in(zone, deadline=None):
    conf = SimpleNamespace(beat_cron_starting_deadline=deadline, enable_utc=True)
    return SimpleNamespace(conf=conf, timezone=ZoneInfo(zone))


def summer_or_winter(zone):
    month, number = chance.choice([1, 6, 7, 12]), chance.randint(1, 28)
    day = datetime(2015 + chance.randrange(20), month, number, tzinfo=timezone.utc)
    return (day + timedelta(seconds=chance.randrange(86400))).astimezone(ZoneInfo(zone))


def near_a_change(zone):
    change = chance.choice(zones[zone] or [datetime(2024, 1, 1)]).replace(tzinfo=timezone.utc)
    return (change + timedelta(seconds=chance.randrange(-36000, 36000))).astimezone(ZoneInfo(zone))


found = []
for _ in range(2500):
    zone = chance.choice(list(zones))
    fields = field(60), field(24), field(7), field(31, 1), "*" if chance.random() < 0.7 else field(12, 1)
    last = summer_or_winter(zone)
    now = last + timedelta(seconds=chance.randrange(0, 20000))
    app = app_in(zone, chance.choice([None, None, 60, 3600]))
    try:
        subject = crontab(*fields, nowfun=lambda: now, app=app)
        left = subject.remaining_estimate(last)
        if left > timedelta(days=10):
            continue  # may lie behind a clock change
        found.append([repr(subject), left.total_seconds(), *map(float, subject.is_due(last))])
    except ValueError:
        found.append("never")
for _ in range(2500):
    zone = chance.choice(list(zones))
    last = chance.choice([near_a_change, summer_or_winter])(zone)
    now = last + timedelta(seconds=chance.randrange(-1000, 100000))
    span = timedelta(seconds=chance.choice([0, 0.5, 5, 60, 61, 300, 1800, 3600, 5400, 7200, 86400, 604800]))
    relative = chance.random() < 0.6
    subject = schedule(span, relative=relative, nowfun=lambda: now, app=app_in(zone))
    found.append([remaining(last, span, now, relative).total_seconds(), *map(float, subject.is_due(last))])
for seconds in (0, 0.1, 1, 59, 60, 61, 3600, 5400, 86400, 1e6):
    found.append([humanize_seconds(seconds), humanize_seconds(seconds, "in", " ", microseconds=True)])
for text in ("1/s", "100/m", "2/h", "3", None, 5, 0.5):
    found.append(rate(text))
print(json.dumps(found))
"""

SIGN = """
import sys
from {package}.security.certificate import Certificate, FSCertStore
from {package}.security.key import PrivateKey
from {package}.security.serialization import SecureSerializer

key, cert = open(sys.argv[1]).read(), open(sys.argv[2]).read()
subject = SecureSerializer(PrivateKey(key), Certificate(cert), FSCertStore(sys.argv[2]))
if len(sys.argv) > 3:
    print(subject.deserialize(sys.argv[3])["x"])
else:
    print(subject.serialize({{"x": "signed"}}))
"""


def run(python: object, script: str, package: str, *arguments: str) -> str:
    done = subprocess.run(
        [str(python), "-c", script.format(package=package), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        env={"PYTHONHASHSEED": "0", "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("script", [TEXTS, TIMES], ids=["texts", "times"])
def test_both_say_the_same(celery_python, script):
    theirs = json.loads(run(celery_python, script, "celery"))
    ours = json.loads(run(sys.executable, script, "celery_clone"))
    different = [(one, other) for one, other in zip(theirs, ours, strict=True) if one != other]
    assert len(ours) > 2000
    assert different == []


def test_both_read_what_the_other_signed(celery_python, tmp_path):
    library = [str(celery_python), "-c", "import cryptography"]
    if subprocess.run(library, capture_output=True, check=False).returncode:
        pytest.skip("real Celery's environment has no cryptography: pip install cryptography there")
    pytest.importorskip("cryptography")
    key, cert = tmp_path / "key", tmp_path / "cert"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=shop"]
    subprocess.run([*make, "-keyout", str(key), "-out", str(cert)], capture_output=True, check=True)
    files = str(key), str(cert)
    ours = run(sys.executable, SIGN, "celery_clone", *files)
    assert run(celery_python, SIGN, "celery", *files, ours) == "signed"
    theirs = run(celery_python, SIGN, "celery", *files)
    assert run(sys.executable, SIGN, "celery_clone", *files, theirs) == "signed"
