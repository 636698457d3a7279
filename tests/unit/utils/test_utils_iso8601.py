"""The old home of the ISO 8601 parser."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from celery_clone.exceptions import CPendingDeprecationWarning
from celery_clone.utils.iso8601 import parse_iso8601


def test_it_still_reads_dates_and_says_where_to_go():
    with pytest.warns(CPendingDeprecationWarning, match="isoparse"):
        assert parse_iso8601("2024-05-17T08:30:00Z") == datetime(2024, 5, 17, 8, 30, tzinfo=timezone.utc)
