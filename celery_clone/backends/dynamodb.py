"""Results in a table of Amazon DynamoDB.

Chosen by ``result_backend = "dynamodb://key:secret@region:port/table?read=5&write=5&ttl_seconds=3600"``;
without credentials in it boto3 looks for them.  Keys and fields are Celery's.  The table is made if it
is not there.  Chords are counted by the table.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any, NamedTuple

from kombu.utils.encoding import ensure_bytes
from kombu.utils.url import url_to_parts

from celery_clone.exceptions import ImproperlyConfigured
from celery_clone.utils.log import get_logger

from .base import KeyValueStoreBackend
from .clients import PerProcess, library_missing

try:
    import boto3
    from botocore.exceptions import ClientError
except ImportError:  # the extra "dynamodb"
    boto3 = None
    ClientError = Exception

__all__ = ("DynamoDBBackend",)

logger = get_logger(__name__)

TABLE_POLL_S = 1.0
TABLE_MADE_WITHIN_S = 120.0
"""How long a table that is being made is waited for."""

WANTS_TTL = frozenset({"DISABLED", "DISABLING"})
HAS_TTL = frozenset({"ENABLED", "ENABLING"})
KEYS_AT_ONCE = 100
"""What one request may ask for."""


class Field(NamedTuple):
    """A field of an item: its name, and DynamoDB's letter for its type."""

    name: str
    type: str

    def of(self, value: Any) -> dict[str, dict[str, Any]]:
        """The field with a value."""
        return {self.name: {self.type: value}}

    def from_item(self, item: Mapping[str, Any]) -> Any:
        """The field's value in an item."""
        return item.get(self.name, {}).get(self.type)


KEY = Field("id", "S")
VALUE = Field("result", "B")
COUNT = Field("chord_count", "N")
TIMESTAMP = Field("timestamp", "N")
TTL = Field("ttl", "N")


class DynamoDBBackend(KeyValueStoreBackend):
    """Keeps results in one table, *table_name* unless the URL names it."""

    table_name = "celery"
    read_capacity_units = 1
    write_capacity_units = 1
    aws_region: str | None = None
    endpoint_url: str | None = None
    #: Seconds that items are kept; below 0: for ever, and the table is told so; ``None``: the table decides.
    time_to_live_seconds: int | None = None

    supports_autoexpire = True
    supports_result_compression = True
    implements_incr = True
    thread_safe = True

    def __init__(self, url: str | None = None, table_name: str | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url = url
        self.table_name = table_name or self.table_name
        if boto3 is None:
            raise library_missing("DynamoDB", "boto3", "dynamodb")
        self._credentials: dict[str, str] = {}
        if url is not None:
            self._read_url(url)
        self._client = PerProcess(self._connect, lambda client: client.close())

    def _read_url(self, url: str) -> None:
        parts = url_to_parts(url)
        if (parts.username is None) != (parts.password is None):
            raise ImproperlyConfigured(
                "You need to specify both the Access Key ID and Secret: dynamodb://key:secret@region/table"
            )
        if parts.username is not None:
            self._credentials = {"aws_access_key_id": parts.username, "aws_secret_access_key": parts.password}
        region = parts.hostname
        if region == "localhost" or is_address(region):
            self.endpoint_url, self.aws_region = f"http://{region}:{parts.port}", "us-east-1"
            logger.warning("Using local-only DynamoDB endpoint URL: %s", self.endpoint_url)
        else:
            self.aws_region = region
        self.endpoint_url = self.app.conf.get("dynamodb_endpoint_url") or self.endpoint_url
        self.read_capacity_units = int(parts.query.get("read", self.read_capacity_units))
        self.write_capacity_units = int(parts.query.get("write", self.write_capacity_units))
        lifetime = parts.query.get("ttl_seconds", self.time_to_live_seconds)
        if lifetime:
            try:
                self.time_to_live_seconds = int(lifetime)
            except ValueError as exc:
                raise ValueError(f'TTL must be a number; got "{lifetime}" for ttl_seconds in the URL') from exc
        self.table_name = parts.path or self.table_name

    # --- the table ------------------------------------------------------------------

    @property
    def client(self) -> Any:
        """The client of this process; the table is there."""
        return self._client()

    def _connect(self) -> Any:
        client = boto3.client(
            "dynamodb",
            region_name=self.aws_region,
            **self._credentials,
            **({"endpoint_url": self.endpoint_url} if self.endpoint_url else {}),
        )
        self._make_table(client)
        if self.time_to_live_seconds is not None:
            self._set_expiry(client, self.time_to_live_seconds >= 0)
        return client

    def _make_table(self, client: Any) -> None:
        try:
            client.describe_table(TableName=self.table_name)
        except ClientError as exc:
            if exc.response["Error"].get("Code") != "ResourceNotFoundException":
                raise
        else:
            return
        try:
            client.create_table(
                TableName=self.table_name,
                AttributeDefinitions=[{"AttributeName": KEY.name, "AttributeType": KEY.type}],
                KeySchema=[{"AttributeName": KEY.name, "KeyType": "HASH"}],
                ProvisionedThroughput={
                    "ReadCapacityUnits": self.read_capacity_units,
                    "WriteCapacityUnits": self.write_capacity_units,
                },
            )
        except ClientError as exc:
            if exc.response["Error"].get("Code") != "ResourceInUseException":
                raise  # else another process makes it
        end = time.monotonic() + TABLE_MADE_WITHIN_S
        while client.describe_table(TableName=self.table_name)["Table"]["TableStatus"] != "ACTIVE":
            if time.monotonic() > end:
                raise TimeoutError(
                    f"DynamoDB has not made the table {self.table_name!r} within {TABLE_MADE_WITHIN_S:g} seconds; "
                    "look at its state in the console, or make it there."
                )
            time.sleep(TABLE_POLL_S)
        logger.info("DynamoDB table %s was made.", self.table_name)

    def _set_expiry(self, client: Any, wanted: bool) -> None:
        """Have the table drop expired items, or not."""
        found = client.describe_time_to_live(TableName=self.table_name)["TimeToLiveDescription"]
        status, attribute = found["TimeToLiveStatus"], found.get("AttributeName", TTL.name)
        if status in (HAS_TTL if wanted else WANTS_TTL) and (not wanted or attribute == TTL.name):
            return
        client.update_time_to_live(
            TableName=self.table_name,
            TimeToLiveSpecification={
                "Enabled": wanted,
                "AttributeName": attribute if status in HAS_TTL else TTL.name,
            },
        )

    # --- items ----------------------------------------------------------------------

    def _address(self, key: Any) -> dict[str, Any]:
        # Not decoded: Celery's keys in this store are the text that Python shows for bytes, b'...'.
        return {"TableName": self.table_name, "Key": KEY.of(str(key))}

    def _item(self, key: Any, field: Mapping[str, Any]) -> dict[str, Any]:
        now = time.time()
        item = {**KEY.of(str(key)), **field, **TIMESTAMP.of(str(now))}
        if self.time_to_live_seconds is not None and self.time_to_live_seconds >= 0:
            item.update(TTL.of(str(int(now + self.time_to_live_seconds))))
        return {"TableName": self.table_name, "Item": item}

    def get(self, key: Any) -> Any:
        """The value of a key, or ``None``."""
        answer = self.client.get_item(**self._address(key), ConsistentRead=True)
        return VALUE.from_item(answer.get("Item", {}))

    def mget(self, keys: Iterable[Any]) -> Any:
        """The values of several keys."""
        wanted = [str(key) for key in keys]
        found: dict[str, Any] = {}
        for start in range(0, len(wanted), KEYS_AT_ONCE):
            unique = dict.fromkeys(wanted[start : start + KEYS_AT_ONCE])
            asked: Any = {self.table_name: {"Keys": [KEY.of(key) for key in unique], "ConsistentRead": True}}
            while asked:
                answer = self.client.batch_get_item(RequestItems=asked)
                for item in answer["Responses"].get(self.table_name, ()):
                    found[KEY.from_item(item)] = VALUE.from_item(item)
                asked = answer.get("UnprocessedKeys")
        return [found.get(key) for key in wanted]

    def set(self, key: Any, value: Any) -> None:
        """Write a value."""
        self.client.put_item(**self._item(key, VALUE.of(ensure_bytes(value))))

    def delete(self, key: Any) -> None:
        """Remove a key; legal if it is not there."""
        self.client.delete_item(**self._address(key))

    def incr(self, key: Any) -> int:
        """Add one to a counter; its new value."""
        answer = self.client.update_item(
            **self._address(key),
            UpdateExpression=f"set {COUNT.name} = {COUNT.name} + :num",
            ExpressionAttributeValues={":num": {"N": "1"}},
            ReturnValues="UPDATED_NEW",
        )
        return int(COUNT.from_item(answer["Attributes"]))

    def _apply_chord_incr(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        # A counter must be there to be counted up.
        counter = self.get_key_for_chord(header_result_args[0])
        self.client.put_item(**self._item(counter, COUNT.of("0")))
        super()._apply_chord_incr(header_result_args, body, **kwargs)

    def _is_new_chord_part(self, request: Any) -> bool:
        key = self.get_key_for_chord(request.group, f".{request.id}:{request.group_index}")
        try:
            self.client.put_item(
                **self._item(key, VALUE.of(b"1")),
                ConditionExpression="attribute_not_exists(#key)",
                ExpressionAttributeNames={"#key": KEY.name},
            )
        except ClientError as exc:
            if exc.response["Error"].get("Code") == "ConditionalCheckFailedException":
                return False
            raise
        return True

    def close(self) -> None:
        """Let go of connections; the next use makes new ones.  Legal twice."""
        self._client.close()

    def __reduce__(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return super().__reduce__(args, {**(kwargs or {}), "url": self.url, "table_name": self.table_name})


def is_address(host: str | None) -> bool:
    """Is this the number of a host and not a region?"""
    try:
        ip_address(host or "")
    except ValueError:
        return False
    return True
