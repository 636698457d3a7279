"""The names that users import from ``celery.utils``."""

from __future__ import annotations

import pytest

from celery_clone import utils
from celery_clone.utils import functional, ids, imports, nodenames


def test_every_public_name_is_there():
    for name in utils.__all__:
        assert getattr(utils, name) is not None
    assert set(utils.__all__) <= set(dir(utils))


def test_a_name_is_the_same_object_as_in_the_module_that_defines_it():
    assert utils.uuid is utils.gen_unique_id is ids.uuid
    assert utils.get_cls_by_name is imports.symbol_by_name
    assert utils.get_full_cls_name is imports.qualname
    assert utils.chunks is functional.chunks
    assert utils.worker_direct is nodenames.worker_direct


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        utils.nonsense  # noqa: B018
