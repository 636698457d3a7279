"""Ids are random UUIDs of version 4, as text."""

from __future__ import annotations

import uuid as standard

from celery_clone.utils import ids


def test_an_id_is_a_random_uuid_in_its_usual_form():
    for _ in range(2000):
        text = ids.uuid()
        parsed = standard.UUID(text)
        assert str(parsed) == text
        assert parsed.version == 4
        assert parsed.variant == standard.RFC_4122


def test_ids_differ():
    assert len({ids.uuid() for _ in range(10_000)}) == 10_000


def test_all_the_random_bits_are_used():
    union = 0
    for _ in range(200):
        union |= standard.UUID(ids.uuid()).int
    fixed = ~union & (1 << 128) - 1
    # Version 4 (0100) and variant 10 leave four bits that are always zero.
    assert fixed.bit_count() == 4


def test_the_old_name_makes_ids_too():
    assert ids.gen_unique_id is ids.uuid
