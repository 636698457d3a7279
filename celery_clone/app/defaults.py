"""Every setting, declared once.

The tables :class:`Conf` and :class:`Extras` are the only place where a setting
is named.  ``app.settings`` reads them to build ``app.conf``, to convert options
given on the command line and to print the reference page of the settings;
``celery upgrade`` asks for the old names.

Nothing here reads the environment, a file or an app: these are plain values.

The module is long because the documentation of each setting stands beside its
declaration and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from celery_clone.utils.serialization import strtobool

DEFAULT_POOL = "prefork"
DEFAULT_ACCEPT_CONTENT = ("json",)
DEFAULT_PROCESS_LOG_FMT = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"
DEFAULT_TASK_LOG_FMT = "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s"
DEFAULT_SECURITY_DIGEST = "sha256"

# Python types as they are written in annotations, and what Celery calls them.
_TYPE_NAMES = {"str": "string", "Any": "any", "Collection": "list", "Mapping": "dict", "timedelta": "float"}
_FROM_ANNOTATION = "from annotation"


class Option:
    """One setting: its default, its type, its old name and its documentation.

    Declared in a table with :func:`setting`.  Read from a configuration it
    gives the value that is in force, read from the table it gives itself.
    """

    alt: str | None = None
    deprecate_by: str | None = None
    remove_by: str | None = None
    old: Collection[str] = frozenset()
    typemap: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "any": lambda value: value,
        "bool": strtobool,
        "bytes": lambda value: value.encode() if isinstance(value, str) else bytes(value),
        "dict": dict,
        "float": float,
        "int": int,
        "list": list,
        "str": str,
        "string": str,
        "tuple": tuple,
    }

    name: str = ""
    namespace: str | None = None
    short_name: str = ""
    old_name: str = ""
    doc: str = ""
    env: str | None = None
    fallbacks: tuple[str, ...] = ()
    secret: bool = False

    def __init__(self, default: Any = None, *args: Any, **kwargs: Any) -> None:
        self.default = default
        self.type: Any = kwargs.pop("type", None) or "string"
        for attribute, value in kwargs.items():
            setattr(self, attribute, value)

    def to_python(self, value: Any) -> Any:
        """Convert *value*, usually text from a command line, to the type of this setting.

        Raises:
            KeyError: if the option was declared with a type that has no conversion.
            TypeError, ValueError: if the text does not spell a value of that type.
        """
        convert = self.typemap[self.type] if isinstance(self.type, str) else self.type
        return convert(value)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.old_name = next(iter(self.old), name).upper()
        if self.namespace is None:
            self.namespace, _, self.short_name = name.partition("_")
        else:
            self.short_name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else instance.value_of(self)

    def __repr__(self) -> str:
        return f"<Option: type->{self.type} default->{self.default!r}>"


def setting(
    default: Any,
    *,
    doc: str,
    old: str | None = None,
    type: str | None = None,
    env: str | None = None,
    fallbacks: tuple[str, ...] = (),
    secret: bool = False,
    top: bool = False,
    deprecate_by: str | None = None,
    remove_by: str | None = None,
    alt: str | None = None,
) -> Any:
    """Declare a setting in the body of a :class:`SettingsTable`.

    Arguments:
        default: the value when nobody set one.
        doc: one paragraph for the reference page.
        old: the name of Celery 3, where it is not just the name in upper case.
        type: Celery's name of the type, where it differs from the annotation.
        env: environment variable that wins over every other layer.
        fallbacks: what an attribute access gives when the value is ``None``:
            the first of these settings that has a value.
        secret: masked wherever the configuration is shown.
        top: the name has no namespace, its first word is part of the name.
        deprecate_by, remove_by, alt: versions and replacement of a deprecated setting.
    """
    facts: dict[str, Any] = {"doc": doc, "type": type or _FROM_ANNOTATION}
    if old is not None:
        facts["old"] = frozenset((old.lower(),))
    if top:
        facts["namespace"] = ""
    given = {
        "env": env,
        "fallbacks": fallbacks,
        "secret": secret,
        "deprecate_by": deprecate_by,
        "remove_by": remove_by,
        "alt": alt,
    }
    facts.update({name: value for name, value in given.items() if value})
    return Option(default, **facts)


def _type_name(annotation: str) -> str:
    head = annotation.partition("|")[0].partition("[")[0].strip()
    return _TYPE_NAMES.get(head, head)


class SettingsTable:
    """A class body of settings; subclasses get their options in the order written."""

    options: ClassVar[Mapping[str, Option]] = MappingProxyType({})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        annotations = cls.__dict__.get("__annotations__", {})
        declared = {name: value for name, value in vars(cls).items() if isinstance(value, Option)}
        if not declared:
            return
        for name, option in declared.items():
            if option.type == _FROM_ANNOTATION:
                option.type = _type_name(annotations[name])
        cls.options = MappingProxyType(declared)

    def value_of(self, option: Option) -> Any:
        """The value in force; a bare table knows only the default."""
        return option.default


class Conf(SettingsTable):
    """The settings of Celery, with their types; ``app.conf`` has each as an attribute."""

    # -- what is read before anything else

    accept_content: Collection[str] = setting(
        DEFAULT_ACCEPT_CONTENT,
        old="CELERY_ACCEPT_CONTENT",
        top=True,
        doc="Content types or serializer names a worker may decode. A message of any other type is "
        "refused and reported, because some serializers (pickle) can run code while they are "
        "read.",
    )
    result_accept_content: Collection[str] | None = setting(
        None,
        top=True,
        doc="Content types or serializer names allowed when results are read. Unset: the same as "
        "`accept_content`.",
    )
    enable_utc: bool = setting(
        True,
        top=True,
        doc="Write the times in messages in UTC. When it is off, times are local to `timezone`.",
    )
    imports: tuple[str, ...] = setting(
        (),
        old="CELERY_IMPORTS",
        top=True,
        doc="Modules a worker imports when it starts, so that the tasks in them are registered. "
        "Imported in order.",
    )
    include: tuple[str, ...] = setting(
        (),
        old="CELERY_INCLUDE",
        top=True,
        doc="Like `imports`, and imported after them. Kept apart so that one place can hold the "
        "modules of the project and another those of a deployment; the `include` argument of the "
        "app is stored here.",
    )
    timezone: str | None = setting(
        None,
        old="CELERY_TIMEZONE",
        top=True,
        fallbacks=("TIME_ZONE",),
        doc="Zone in which schedules are read and local times are shown, by its IANA name such as "
        "`Europe/London`. Unset: Django's `TIME_ZONE` if there is one, then UTC, or the zone of "
        "the machine if `enable_utc` is off.",
    )

    # -- beat: the scheduler of periodic tasks

    beat_enable_remote_control: bool = setting(
        False,
        old="CELERYBEAT_ENABLE_REMOTE_CONTROL",
        doc="Let a running beat answer `celery inspect ping` under the name `celerybeat@host`, for "
        "health checks.",
    )
    beat_remote_control_max_tick_age: float | None = setting(
        None,
        old="CELERYBEAT_REMOTE_CONTROL_MAX_TICK_AGE",
        doc="Seconds since the last turn of the scheduler after which beat stops answering pings, so "
        "that a stuck scheduler looks dead. Unset: derived from the longest sleep of the "
        "scheduler.",
    )
    beat_max_loop_interval: float = setting(
        0,
        old="CELERYBEAT_MAX_LOOP_INTERVAL",
        doc="Longest time in seconds that beat sleeps before it looks at the schedule again. 0 leaves "
        "the choice to the scheduler: 300 for the default one, 5 for schedulers that read a "
        "database.",
    )
    beat_schedule: dict[str, Any] = setting(
        {},
        old="CELERYBEAT_SCHEDULE",
        doc="The periodic tasks: a name for each entry, and a mapping with `task`, `schedule` and, "
        "optionally, `args`, `kwargs`, `options` and `relative`.",
    )
    beat_scheduler: str = setting(
        "celery_clone.beat:PersistentScheduler",
        old="CELERYBEAT_SCHEDULER",
        doc="Scheduler class of beat, as `module:name`. `celery beat -S` overrides it.",
    )
    beat_schedule_filename: str = setting(
        "celerybeat-schedule",
        old="CELERYBEAT_SCHEDULE_FILENAME",
        doc="File in which the persistent scheduler remembers when each entry last ran. Relative "
        "paths start at the working directory; a suffix may be added to the name. `celery beat "
        "-s` overrides it.",
    )
    beat_sync_every: int = setting(
        0,
        old="CELERYBEAT_SYNC_EVERY",
        doc="Number of tasks beat sends before it writes its file. 0: by time only, every three "
        "minutes; 1: after each task.",
    )
    beat_cron_starting_deadline: int | None = setting(
        None,
        old="CELERYBEAT_CRON_STARTING_DEADLINE",
        doc="How many seconds late a missed `crontab` run may still be started when beat comes back. "
        "Unset: a missed run is always started.",
    )

    # -- broker: the connection to the message broker

    broker_url: Any = setting(
        None,
        type="string",
        env="CELERY_BROKER_URL",
        fallbacks=("broker_host",),
        doc="Where messages go and come from: `transport://user:password@host:port/virtual_host`. "
        "Several addresses, as a list or separated by semicolons, are tried in turn when one "
        "fails. Unset: RabbitMQ on this machine.",
    )
    broker_read_url: Any = setting(
        None,
        type="string",
        env="CELERY_BROKER_READ_URL",
        fallbacks=("broker_url",),
        doc="Broker to consume from, when it is not the one tasks are sent to. Unset: `broker_url`.",
    )
    broker_write_url: Any = setting(
        None,
        type="string",
        env="CELERY_BROKER_WRITE_URL",
        fallbacks=("broker_url",),
        doc="Broker to send to, when it is not the one tasks are consumed from. Unset: `broker_url`.",
    )
    broker_transport: str | None = setting(
        None,
        doc="Name of the transport when the broker is described by separate settings instead of a URL.",
    )
    broker_transport_options: dict[str, Any] = setting(
        {},
        doc="Options of the transport, such as `visibility_timeout` and `global_keyprefix` on Redis "
        "or `confirm_publish` on RabbitMQ. The reference of each transport lists them.",
    )
    broker_connection_timeout: float = setting(
        4,
        doc="Seconds to wait for a connection to the broker before the attempt counts as failed.",
    )
    broker_connection_retry: bool = setting(
        True,
        doc="Connect again when a connection that had been made is lost.",
    )
    broker_connection_retry_on_startup: bool | None = setting(
        None,
        doc="Keep trying when the very first connection of a worker fails. Unset: as "
        "`broker_connection_retry`.",
    )
    broker_connection_max_retries: int | None = setting(
        100,
        doc="Attempts in a row before a worker gives up connecting. 0 or `None`: try for ever.",
    )
    broker_channel_error_retry: bool = setting(
        False,
        doc="Treat an error on a channel of the broker like a lost connection and start again, "
        "instead of stopping.",
    )
    broker_failover_strategy: Any = setting(
        None,
        type="string",
        doc="How the next of several broker URLs is chosen: `round-robin`, `shuffle`, or a callable "
        "that is given the list and returns an iterator. Unset: `round-robin`.",
    )
    broker_heartbeat: int | None = setting(
        120,
        doc="Seconds between heartbeats agreed with an AMQP broker, by which both sides notice a dead "
        "connection. 0 or `None`: no heartbeats. A worker that is not told asks for 20, unless its pool is solo: "
        "so a dead connection is known within a minute.",
    )
    broker_heartbeat_checkrate: float = setting(
        3.0,
        type="int",
        doc="How many times within one heartbeat interval the worker checks that the broker is alive.",
    )
    broker_login_method: str | None = setting(
        None,
        doc="SASL mechanism for AMQP logins, such as `AMQPLAIN`, `PLAIN` or `EXTERNAL`.",
    )
    broker_native_delayed_delivery_queue_type: str = setting(
        "quorum",
        doc="Type of the queues in which RabbitMQ holds delayed messages for quorum queues: `quorum` "
        "or `classic`.",
    )
    broker_pool_limit: int | None = setting(
        10,
        doc="Most connections to the broker one process keeps open for sending. It should be at least "
        "the number of threads or greenlets that send at once. 0 or `None`: a new connection for "
        "every use.",
    )
    broker_pool_acquire_timeout: float | None = setting(
        None,
        doc="Seconds to wait for a free connection of the pool before sending fails. Unset: wait "
        "until one is free.",
    )
    broker_use_ssl: Any = setting(
        False,
        type="bool",
        doc="Encrypt the connection to the broker. `True` takes the defaults of the transport; a "
        "mapping gives `keyfile`, `certfile`, `ca_certs`, `cert_reqs`, with the prefix `ssl_` on "
        "Redis.",
    )
    broker_host: str | None = setting(
        None,
        doc="Host name or whole URL of the broker, for configurations without `broker_url`.",
    )
    broker_port: int | None = setting(
        None,
        doc="Port of the broker, for configurations without `broker_url`.",
    )
    broker_user: str | None = setting(
        None,
        doc="User name at the broker, for configurations without `broker_url`.",
    )
    broker_password: str | None = setting(
        None,
        secret=True,
        doc="Password at the broker, for configurations without `broker_url`.",
    )
    broker_vhost: str | None = setting(
        None,
        doc="Virtual host at the broker, for configurations without `broker_url`.",
    )

    # -- cache: results in memcached or in memory

    cache_backend: str | None = setting(
        None,
        old="CELERY_CACHE_BACKEND",
        doc="Cache to store results in, as in `memcached://host:port/`, when the result backend is "
        "given as plain `cache`.",
    )
    cache_backend_options: dict[str, Any] = setting(
        {},
        old="CELERY_CACHE_BACKEND_OPTIONS",
        doc="Arguments for the client of the cache, for instance the behaviours of pylibmc.",
    )

    # -- cassandra: results in Cassandra or Astra DB

    cassandra_entry_ttl: float | None = setting(
        None,
        doc="Seconds after which a stored result is removed. Unset: never.",
    )
    cassandra_keyspace: str | None = setting(
        None,
        doc="Keyspace that holds the table of results.",
    )
    cassandra_port: int | None = setting(
        None,
        type="string",
        doc="Port of the servers. Unset: 9042.",
    )
    cassandra_read_consistency: str | None = setting(
        None,
        doc="Consistency level for reading: `ONE`, `TWO`, `QUORUM`, `ALL`, `LOCAL_QUORUM` and so on.",
    )
    cassandra_servers: list[str] | None = setting(
        None,
        doc="Host names of the servers. Give these or the secure bundle, not both.",
    )
    cassandra_bundle_path: str | None = setting(
        None,
        doc="Path of the secure connect bundle of an Astra DB, instead of `cassandra_servers`.",
    )
    cassandra_table: str | None = setting(
        None,
        doc="Table (column family) that holds the results.",
    )
    cassandra_write_consistency: str | None = setting(
        None,
        doc="Consistency level for writing; the values are those of `cassandra_read_consistency`.",
    )
    cassandra_auth_provider: str | None = setting(
        None,
        doc="Name of the class in `cassandra.auth` to log in with, such as `PlainTextAuthProvider`.",
    )
    cassandra_auth_kwargs: dict[str, Any] | None = setting(
        None,
        type="string",
        doc="Arguments for `cassandra_auth_provider`, usually `username` and `password`.",
    )
    cassandra_options: dict[str, Any] = setting(
        {},
        doc="Further arguments for the `Cluster` object of the driver.",
    )

    # -- s3: results in Amazon S3

    s3_access_key_id: str | None = setting(
        None,
        secret=True,
        doc="Access key. Unset: found by the AWS library in its usual places.",
    )
    s3_secret_access_key: str | None = setting(
        None,
        secret=True,
        doc="Secret that belongs to `s3_access_key_id`.",
    )
    s3_bucket: str | None = setting(
        None,
        doc="Bucket that holds the results; it must exist.",
    )
    s3_base_path: str | None = setting(
        None,
        doc="Text put in front of each object name, for instance `/prefix/`.",
    )
    s3_endpoint_url: str | None = setting(
        None,
        doc="Address of a service that speaks the S3 protocol. Unset: Amazon.",
    )
    s3_region: str | None = setting(
        None,
        doc="AWS region of the bucket, such as `eu-west-1`.",
    )

    # -- azureblockblob: results in Azure Block Blob Storage

    azureblockblob_container_name: str = setting(
        "celery",
        doc="Container that holds the results; made if it is missing.",
    )
    azureblockblob_retry_initial_backoff_sec: int = setting(
        2,
        doc="Seconds to wait before the first retry of a failed request.",
    )
    azureblockblob_retry_increment_base: int = setting(
        2,
        doc="Base of the growing delay between retries.",
    )
    azureblockblob_retry_max_attempts: int = setting(
        3,
        doc="Attempts for one request before it fails.",
    )
    azureblockblob_base_path: str = setting(
        "",
        doc="Text put in front of each blob name.",
    )
    azureblockblob_connection_timeout: int = setting(
        20,
        doc="Seconds to wait for a connection.",
    )
    azureblockblob_read_timeout: int = setting(
        120,
        doc="Seconds to wait for an answer.",
    )

    # -- gcs: results in Google Cloud Storage

    gcs_bucket: str | None = setting(
        None,
        doc="Bucket that holds the results; it must exist.",
    )
    gcs_project: str | None = setting(
        None,
        doc="Google Cloud project of the bucket.",
    )
    gcs_base_path: str = setting(
        "",
        doc="Text put in front of each object name.",
    )
    gcs_ttl: float = setting(
        0,
        doc="Seconds after which a result is removed. 0: never. The bucket needs a deletion rule by "
        "custom time.",
    )

    # -- control: remote control of workers

    control_queue_ttl: float = setting(
        300.0,
        doc="Seconds a remote control command may wait in the queue of a worker before it is dropped.",
    )
    control_queue_expires: float = setting(
        10.0,
        doc="Seconds after which an unused remote control queue is deleted by the broker.",
    )
    control_queue_exclusive: bool = setting(
        True,
        doc="Only the connection that declared a remote control queue may use it. Not together with a "
        "durable queue.",
    )
    control_queue_durable: bool = setting(
        False,
        doc="Remote control queues survive a restart of the broker. Not together with an exclusive queue.",
    )
    control_exchange: str = setting(
        "celery",
        doc="Name of the remote control exchange, without its suffix `.pidbox`. Two projects on one "
        "broker hear each other's commands unless they differ here or in the virtual host.",
    )

    # -- couchbase, arangodb, mongodb: results in these stores

    couchbase_backend_settings: dict[str, Any] | None = setting(
        None,
        old="CELERY_COUCHBASE_BACKEND_SETTINGS",
        doc="Connection to Couchbase: `host`, `port`, `bucket`, `username`, `password`.",
    )
    arangodb_backend_settings: dict[str, Any] | None = setting(
        None,
        old="CELERY_ARANGODB_BACKEND_SETTINGS",
        doc="Connection to ArangoDB: `http_protocol`, `host`, `port`, `database`, `collection`, "
        "`username`, `password`.",
    )
    mongodb_backend_settings: dict[str, Any] | None = setting(
        None,
        old="CELERY_MONGODB_BACKEND_SETTINGS",
        doc="Connection to MongoDB: `database`, `taskmeta_collection`, `groupmeta_collection`, "
        "`max_pool_size` and `options` for the client. A database named in the result URL is the "
        "default.",
    )

    # -- cosmosdbsql: results in Azure Cosmos DB

    cosmosdbsql_database_name: str = setting(
        "celerydb",
        doc="Database that holds the results; made if it is missing.",
    )
    cosmosdbsql_collection_name: str = setting(
        "celerycol",
        doc="Collection that holds the results; made if it is missing.",
    )
    cosmosdbsql_consistency_level: str = setting(
        "Session",
        doc="Consistency level: `Strong`, `BoundedStaleness`, `Session`, `ConsistentPrefix` or `Eventual`.",
    )
    cosmosdbsql_max_retry_attempts: int = setting(
        9,
        doc="Attempts for one request before it fails.",
    )
    cosmosdbsql_max_retry_wait_time: int = setting(
        30,
        doc="Most seconds spent waiting between the attempts of one request.",
    )

    # -- event: monitoring events

    event_queue_expires: float = setting(
        60.0,
        old="CELERY_EVENT_QUEUE_EXPIRES",
        doc="Seconds after which the queue of a monitor that went away is deleted by the broker.",
    )
    event_queue_ttl: float = setting(
        5.0,
        old="CELERY_EVENT_QUEUE_TTL",
        doc="Seconds an event may wait for a monitor before it is dropped.",
    )
    event_queue_prefix: str = setting(
        "celeryev",
        old="CELERY_EVENT_QUEUE_PREFIX",
        doc="First part of the names of the queues monitors receive events from.",
    )
    event_queue_exclusive: bool = setting(
        True,
        old="CELERY_EVENT_QUEUE_EXCLUSIVE",
        doc="Only the connection that declared an event queue may use it. Not together with a durable queue.",
    )
    event_queue_durable: bool = setting(
        False,
        old="CELERY_EVENT_QUEUE_DURABLE",
        doc="Event queues survive a restart of the broker. Not together with an exclusive queue.",
    )
    event_serializer: str = setting(
        "json",
        old="CELERY_EVENT_SERIALIZER",
        doc="Serializer of event messages.",
    )
    event_exchange: str = setting(
        "celeryev",
        old="CELERY_EVENT_EXCHANGE",
        doc="Exchange to which events are sent. Monitors must use the same name.",
    )

    # -- redis: results in Redis

    redis_backend_use_ssl: Any = setting(
        None,
        type="dict",
        old="CELERY_REDIS_BACKEND_USE_SSL",
        doc="Encrypt the connection to the result store; a mapping with `ssl_cert_reqs`, "
        "`ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`. With a `rediss://` address the same may "
        "stand in the query of the URL.",
    )
    redis_db: int | None = setting(
        None,
        old="CELERY_REDIS_DB",
        doc="Number of the database, for configurations without a result URL.",
    )
    redis_host: str | None = setting(
        None,
        old="CELERY_REDIS_HOST",
        doc="Host name, for configurations without a result URL.",
    )
    redis_max_connections: int | None = setting(
        None,
        old="CELERY_REDIS_MAX_CONNECTIONS",
        doc="Most connections one process opens to the result store. Unset: `broker_pool_limit`.",
    )
    redis_username: str | None = setting(
        None,
        old="CELERY_REDIS_USERNAME",
        doc="User name, for configurations without a result URL.",
    )
    redis_password: str | None = setting(
        None,
        old="CELERY_REDIS_PASSWORD",
        secret=True,
        doc="Password, for configurations without a result URL.",
    )
    redis_port: int | None = setting(
        None,
        old="CELERY_REDIS_PORT",
        doc="Port, for configurations without a result URL.",
    )
    redis_socket_timeout: float | None = setting(
        120.0,
        old="CELERY_REDIS_SOCKET_TIMEOUT",
        doc="Seconds to wait for an answer of the result store before the connection counts as lost.",
    )
    redis_socket_connect_timeout: float | None = setting(
        None,
        old="CELERY_REDIS_SOCKET_CONNECT_TIMEOUT",
        doc="Seconds to wait for a connection to the result store. Unset: `redis_socket_timeout`.",
    )
    redis_retry_on_timeout: bool = setting(
        False,
        old="CELERY_REDIS_RETRY_ON_TIMEOUT",
        doc="Repeat a command once when the result store did not answer in time.",
    )
    redis_socket_keepalive: bool = setting(
        False,
        old="CELERY_REDIS_SOCKET_KEEPALIVE",
        doc="Use TCP keepalive on connections to the result store, so that firewalls do not drop idle ones.",
    )

    # -- result: results and the store that keeps them

    result_backend: str | None = setting(
        None,
        old="CELERY_RESULT_BACKEND",
        env="CELERY_RESULT_BACKEND",
        doc="Where the states and results of tasks are kept, as a URL or the path of a class. Unset: "
        "nowhere.",
    )
    result_cache_max: int = setting(
        -1,
        old="CELERY_MAX_CACHED_RESULTS",
        doc="Ready results each process remembers so as not to ask again. -1: none; 0 or `None`: "
        "without limit.",
    )
    result_compression: str | None = setting(
        None,
        type="str",
        old="CELERY_RESULT_COMPRESSION",
        doc="Compression of stored results: `gzip`, `bzip2`, `zstd`, `brotli` or another name known "
        "to kombu.",
    )
    result_exchange: str = setting(
        "celeryresults",
        old="CELERY_RESULT_EXCHANGE",
        doc="Exchange for results of stores that send them as messages through an exchange.",
    )
    result_exchange_type: str = setting(
        "direct",
        old="CELERY_RESULT_EXCHANGE_TYPE",
        doc="Type of `result_exchange`.",
    )
    result_expires: float | timedelta | None = setting(
        timedelta(days=1),
        old="CELERY_TASK_RESULT_EXPIRES",
        doc="How long a result is kept: seconds or a `timedelta`. 0 or `None`: for ever. Stores that "
        "cannot expire by themselves are swept daily by `celery.backend_cleanup`, which needs a "
        "running beat.",
    )
    result_chord_expires: float | timedelta | None = setting(
        None,
        type="float",
        old="CELERY_RESULT_CHORD_EXPIRES",
        doc="How long the bookkeeping of an unfinished chord is kept. Set it when a chord may take "
        "longer than results are worth keeping. Unset: `result_expires`.",
    )
    result_failure_expires: float | timedelta | None = setting(
        None,
        type="float",
        old="CELERY_RESULT_FAILURE_EXPIRES",
        doc="How long the result of a failed task is kept, in stores that support it. Unset: "
        "`result_expires`.",
    )
    result_persistent: bool | None = setting(
        None,
        old="CELERY_RESULT_PERSISTENT",
        doc="Results sent as messages survive a restart of the broker.",
    )
    result_extended: bool = setting(
        False,
        old="CELERY_RESULT_EXTENDED",
        doc="Store the name, arguments, worker, queue and number of retries of a task beside its result.",
    )
    result_serializer: str = setting(
        "json",
        old="CELERY_RESULT_SERIALIZER",
        doc="Serializer of stored results.",
    )
    result_backend_transport_options: dict[str, Any] = setting(
        {},
        old="CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS",
        doc="Options of the result store, such as `global_keyprefix`, `retry_policy`, or "
        "`master_name` and `sentinel_kwargs` for Redis Sentinel.",
    )
    result_chord_retry_interval: float = setting(
        1.0,
        old="CELERY_RESULT_CHORD_RETRY_INTERVAL",
        doc="Seconds between two looks at an unfinished chord, in stores that cannot count completions.",
    )
    result_chord_join_timeout: float = setting(
        3.0,
        old="CELERY_RESULT_CHORD_JOIN_TIMEOUT",
        doc="Seconds allowed for collecting the results of a finished chord header.",
    )
    result_backend_max_sleep_between_retries_ms: int = setting(
        10000,
        old="CELERY_RESULT_BACKEND_MAX_SLEEP_BETWEEN_RETRIES_MS",
        doc="Upper bound, in milliseconds, of the growing pause between attempts to reach the result store.",
    )
    result_backend_max_retries: float = setting(
        float("inf"),
        old="CELERY_RESULT_BACKEND_MAX_RETRIES",
        doc="Attempts to reach the result store while `result_backend_always_retry` is on.",
    )
    result_backend_base_sleep_between_retries_ms: int = setting(
        10,
        old="CELERY_RESULT_BACKEND_BASE_SLEEP_BETWEEN_RETRIES_MS",
        doc="First pause, in milliseconds, between attempts to reach the result store; it doubles each time.",
    )
    result_backend_always_retry: bool = setting(
        False,
        old="CELERY_RESULT_BACKEND_ALWAYS_RETRY",
        doc="Repeat reads and writes of results on errors the store calls temporary, instead of "
        "raising at once.",
    )

    # -- elasticsearch: results in Elasticsearch

    elasticsearch_retry_on_timeout: bool | None = setting(
        None,
        old="CELERY_ELASTICSEARCH_RETRY_ON_TIMEOUT",
        doc="Send a request to another node after a timeout.",
    )
    elasticsearch_max_retries: int | None = setting(
        None,
        old="CELERY_ELASTICSEARCH_MAX_RETRIES",
        doc="Attempts for one request before it fails.",
    )
    elasticsearch_timeout: float | None = setting(
        None,
        old="CELERY_ELASTICSEARCH_TIMEOUT",
        doc="Seconds to wait for an answer.",
    )
    elasticsearch_save_meta_as_text: bool = setting(
        True,
        old="CELERY_ELASTICSEARCH_SAVE_META_AS_TEXT",
        doc="Store the result as one JSON text. Off: as a document whose fields can be searched.",
    )

    # -- security: signed messages

    security_certificate: str | None = setting(
        None,
        old="CELERY_SECURITY_CERTIFICATE",
        doc="Path of the certificate that messages are signed with.",
    )
    security_cert_store: str | None = setting(
        None,
        old="CELERY_SECURITY_CERT_STORE",
        doc="Pattern of the files that hold the certificates to trust, such as `/etc/certs/*.pem`.",
    )
    security_key: str | None = setting(
        None,
        old="CELERY_SECURITY_KEY",
        secret=True,
        doc="Path of the private key that messages are signed with.",
    )
    security_key_password: bytes | None = setting(
        None,
        old="CELERY_SECURITY_KEY_PASSWORD",
        secret=True,
        doc="Password of the private key.",
    )
    security_digest: str = setting(
        DEFAULT_SECURITY_DIGEST,
        old="CELERY_SECURITY_DIGEST",
        doc="Digest used in signatures, by its name in the cryptography library.",
    )

    # -- database: results in an SQL database

    database_url: str | None = setting(
        None,
        old="CELERY_RESULT_DBURI",
        secret=True,
        doc="SQLAlchemy address of the database, when the result backend is given as plain `database`.",
    )
    database_engine_options: dict[str, Any] | None = setting(
        {"pool_pre_ping": True, "pool_recycle": 3600},
        old="CELERY_RESULT_ENGINE_OPTIONS",
        doc="Arguments for `sqlalchemy.create_engine`. By default connections are tested before use "
        "and renewed hourly, so that a server that closed them does no harm.",
    )
    database_engine_callback: Any = setting(
        None,
        doc="Callable, or its path, that is given each engine after it was made, for instance to add "
        "listeners.",
    )
    database_short_lived_sessions: bool = setting(
        False,
        old="CELERY_RESULT_DB_SHORT_LIVED_SESSIONS",
        doc="Use a new session for each operation instead of keeping one. Slower, but nothing can go stale.",
    )
    database_table_schemas: dict[str, str] | None = setting(
        None,
        doc="Schema for each table of results: a mapping with the keys `task` and `group`.",
    )
    database_table_names: dict[str, str] | None = setting(
        None,
        old="CELERY_RESULT_DB_TABLENAMES",
        doc="Name for each table of results: a mapping with the keys `task` and `group`.",
    )
    database_create_tables_at_setup: bool = setting(
        True,
        doc="Make missing tables when the backend is set up. Off: when the first result is stored.",
    )

    # -- task: how tasks are sent and run

    task_acks_late: bool = setting(
        False,
        old="CELERY_ACKS_LATE",
        doc="Acknowledge a message after its task ran instead of just before. A task whose worker "
        "dies is then delivered again, so it must be safe to run twice.",
    )
    task_acks_on_failure_or_timeout: bool = setting(
        True,
        old="CELERY_ACKS_ON_FAILURE_OR_TIMEOUT",
        deprecate_by="6.0",
        remove_by="7.0",
        alt="task_acks_on_failure and task_acks_on_timeout",
        doc="With late acknowledgement, also acknowledge tasks that failed or ran out of time. The "
        "default for `task_acks_on_failure` and `task_acks_on_timeout`, which replace it.",
    )
    task_acks_on_failure: bool | None = setting(
        None,
        old="CELERY_ACKS_ON_FAILURE",
        doc="With late acknowledgement, also acknowledge tasks that raised. Off: they are rejected, "
        "and the broker drops or dead-letters the message. Unset: "
        "`task_acks_on_failure_or_timeout`.",
    )
    task_acks_on_timeout: bool | None = setting(
        None,
        old="CELERY_ACKS_ON_TIMEOUT",
        doc="With late acknowledgement, also acknowledge tasks that ran out of time. Off: they go back to "
        "their queue. Unset: "
        "`task_acks_on_failure_or_timeout`.",
    )
    task_always_eager: bool = setting(
        False,
        old="CELERY_ALWAYS_EAGER",
        doc="Run tasks in the calling process instead of sending them: `delay` waits for the task and "
        "returns an `EagerResult`. Meant for tests and debugging.",
    )
    task_annotations: Any = setting(
        None,
        old="CELERY_ANNOTATIONS",
        doc="Changes to attributes of tasks from outside: a mapping of task name (`*` for all) to "
        "attributes, an object with an `annotate` method, or a list of these.",
    )
    task_compression: str | None = setting(
        None,
        old="CELERY_MESSAGE_COMPRESSION",
        doc="Compression of task messages: `gzip`, `bzip2`, `zstd`, `brotli` or another name known to kombu.",
    )
    task_create_missing_queues: bool = setting(
        True,
        old="CELERY_CREATE_MISSING_QUEUES",
        doc="Declare a queue that is used but not listed in `task_queues`. Off: using such a queue is "
        "an error.",
    )
    task_create_missing_queue_type: str = setting(
        "classic",
        old="CELERY_CREATE_MISSING_QUEUE_TYPE",
        doc="Type of the queues that are declared because they were missing: `classic` or `quorum`.",
    )
    task_create_missing_queue_exchange_type: str | None = setting(
        None,
        old="CELERY_CREATE_MISSING_QUEUE_EXCHANGE_TYPE",
        doc="Type of the exchange of queues that are declared because they were missing. Unset: that "
        "of the default exchange.",
    )
    task_inherit_parent_priority: bool = setting(
        False,
        old="CELERY_INHERIT_PARENT_PRIORITY",
        doc="A task sent from within a task takes over its priority unless it has one of its own.",
    )
    task_default_delivery_mode: int | str = setting(
        2,
        type="string",
        old="CELERY_DEFAULT_DELIVERY_MODE",
        doc="2 or `persistent`: messages survive a restart of the broker; 1 or `transient`: they do not.",
    )
    task_default_queue: str = setting(
        "celery",
        old="CELERY_DEFAULT_QUEUE",
        doc="Queue of tasks that no route and no option sends elsewhere.",
    )
    task_default_queue_type: str = setting(
        "classic",
        old="CELERY_DEFAULT_QUEUE_TYPE",
        doc="Type of the default queue: `classic` or `quorum`.",
    )
    task_default_exchange: str = setting(
        None,
        old="CELERY_DEFAULT_EXCHANGE",
        fallbacks=("task_default_queue",),
        doc="Exchange of queues that name none. Unset: the name of the default queue.",
    )
    task_default_exchange_type: str = setting(
        "direct",
        old="CELERY_DEFAULT_EXCHANGE_TYPE",
        doc="Type of exchanges that name none.",
    )
    task_default_routing_key: str = setting(
        None,
        old="CELERY_DEFAULT_ROUTING_KEY",
        fallbacks=("task_default_queue",),
        doc="Routing key of queues that name none. Unset: the name of the default queue.",
    )
    task_default_rate_limit: str | int | float | None = setting(
        None,
        old="CELERY_DEFAULT_RATE_LIMIT",
        doc="Rate limit of tasks that have none, per worker: a number a second, or `10/s`, `100/m`, "
        "`1000/h`.",
    )
    task_default_priority: int | None = setting(
        None,
        type="string",
        old="CELERY_DEFAULT_PRIORITY",
        doc="Priority of tasks that have none.",
    )
    task_eager_propagates: bool = setting(
        False,
        old="CELERY_EAGER_PROPAGATES_EXCEPTIONS",
        doc="A task that runs eagerly and fails raises its exception in the caller, as if `apply` had "
        "been told `throw=True`.",
    )
    task_ignore_result: bool = setting(
        False,
        old="CELERY_IGNORE_RESULT",
        doc="Store no result, unless the task or the call says `ignore_result=False`.",
    )
    task_store_eager_result: bool = setting(
        False,
        old="CELERY_STORE_EAGER_RESULT",
        doc="Store the results of tasks that run eagerly, too.",
    )
    task_protocol: int = setting(
        2,
        old="CELERY_TASK_PROTOCOL",
        doc="Version of the message format to send. Workers read versions 1 and 2.",
    )
    task_publish_retry: bool = setting(
        True,
        old="CELERY_TASK_PUBLISH_RETRY",
        doc="Try again when sending a task fails because the connection was lost.",
    )
    task_publish_retry_policy: dict[str, Any] = setting(
        {"max_retries": 3, "interval_start": 0, "interval_max": 1, "interval_step": 0.2},
        old="CELERY_TASK_PUBLISH_RETRY_POLICY",
        doc="How sending is repeated: `max_retries`, and the pauses in seconds by `interval_start`, "
        "`interval_step` and `interval_max`.",
    )
    task_queues: Any = setting(
        None,
        type="dict",
        old="CELERY_QUEUES",
        doc="The queues a worker consumes from unless told otherwise: kombu `Queue` objects, or a "
        "mapping of names to options. Unset: the default queue alone.",
    )
    task_queue_max_priority: int | None = setting(
        None,
        old="CELERY_QUEUE_MAX_PRIORITY",
        doc="Value of `x-max-priority` for queues on RabbitMQ that give none; without it they know no "
        "priorities.",
    )
    task_reject_on_worker_lost: bool | None = setting(
        None,
        old="CELERY_REJECT_ON_WORKER_LOST",
        doc="With late acknowledgement, put a message back into its queue when the process running it "
        "was lost. A task that kills its process comes back `task_max_losses` times.",
    )
    task_retry_on_worker_lost: bool = setting(
        False,
        old="CELERY_RETRY_ON_WORKER_LOST",
        doc="When the process running a task was lost, retry the task under its own retry limits "
        "instead of marking it failed.",
    )
    task_remote_tracebacks: bool = setting(
        False,
        old="CELERY_REMOTE_TRACEBACKS",
        doc="Errors raised by `get` show the stack of the worker as well. Needs the package tblib.",
    )
    task_repr_maxlevels: int = setting(
        3,
        old="CELERY_REPR_MAXLEVELS",
        doc="How deep nested arguments are shown in logs and events.",
    )
    task_routes: Any = setting(
        None,
        old="CELERY_ROUTES",
        doc="Which task goes to which queue: a mapping of task name, pattern or compiled expression "
        "to a queue name or options, a router function or its path, or a list of these. The first "
        "that answers wins.",
    )
    task_send_sent_event: bool = setting(
        False,
        old="CELERY_SEND_TASK_SENT_EVENT",
        doc="Send a `task-sent` event for each task, so that monitors see tasks before a worker has them.",
    )
    task_serializer: str = setting(
        "json",
        old="CELERY_TASK_SERIALIZER",
        doc="Serializer of task messages: `json`, `pickle`, `yaml`, `msgpack`, or one registered with kombu.",
    )
    task_soft_time_limit: float | None = setting(
        None,
        old="CELERYD_TASK_SOFT_TIME_LIMIT",
        doc="Seconds after which `SoftTimeLimitExceeded` is raised in a running task, which may catch "
        "it to clean up.",
    )
    task_time_limit: float | None = setting(
        None,
        old="CELERYD_TASK_TIME_LIMIT",
        doc="Seconds after which the process running a task is killed and replaced.",
    )
    task_store_errors_even_if_ignored: bool = setting(
        False,
        old="CELERY_STORE_ERRORS_EVEN_IF_IGNORED",
        doc="Store the errors of tasks whose results are ignored.",
    )
    task_track_started: bool = setting(
        False,
        old="CELERY_TRACK_STARTED",
        doc="Store the state `STARTED`, with the worker and its process, when a task begins.",
    )
    task_allow_error_cb_on_chord_header: bool = setting(
        False,
        old="CELERY_ALLOW_ERROR_CB_ON_CHORD_HEADER",
        doc="An error callback linked to a chord is called for failing members of the header as well "
        "as for the body.",
    )

    # -- worker: the program that runs tasks

    worker_agent: str | None = setting(
        None,
        old="CELERYD_AGENT",
        doc="Class of an agent to run beside the consumer, as `module:name`.",
    )
    worker_autoscaler: str = setting(
        "celery_clone.worker.autoscale:Autoscaler",
        old="CELERYD_AUTOSCALER",
        doc="Class that decides how many processes run when `--autoscale` is given.",
    )
    worker_cancel_long_running_tasks_on_connection_loss: bool = setting(
        False,
        old="CELERYD_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS",
        doc="When the connection to the broker is lost, stop running tasks that acknowledge late: the "
        "broker delivers them again, and they would otherwise run twice.",
    )
    worker_soft_shutdown_timeout: float = setting(
        0.0,
        old="CELERYD_SOFT_SHUTDOWN_TIMEOUT",
        doc="Seconds running tasks are given between the request for a cold shutdown and the shutdown "
        "itself. 0: none.",
    )
    worker_enable_soft_shutdown_on_idle: bool = setting(
        False,
        old="CELERYD_ENABLE_SOFT_SHUTDOWN_ON_IDLE",
        doc="Take the time of `worker_soft_shutdown_timeout` even when nothing runs, so that tasks "
        "waiting for their time are given back to the broker in an orderly way.",
    )
    worker_concurrency: int | str | None = setting(
        None,
        type="any",
        old="CELERYD_CONCURRENCY",
        doc="Number of processes, threads or greenlets that run tasks. Unset: the number of "
        "processors; `auto`: as many of them as the container or the affinity of the process allows.",
    )
    worker_consumer: str = setting(
        "celery_clone.worker.consumer:Consumer",
        old="CELERYD_CONSUMER",
        doc="Class of the worker's consumer, as `module:name`.",
    )
    worker_direct: bool = setting(
        False,
        old="CELERY_WORKER_DIRECT",
        doc="Give each worker a queue of its own, named after the node with the suffix `.dq2` on the "
        "exchange `C.dq2`, so that a task can be sent to one worker.",
    )
    worker_disable_rate_limits: bool = setting(
        False,
        old="CELERY_DISABLE_RATE_LIMITS",
        doc="Ignore the rate limits of tasks.",
    )
    worker_deduplicate_successful_tasks: bool = setting(
        False,
        old="CELERYD_DEDUPLICATE_SUCCESSFUL_TASKS",
        doc="Before running a redelivered message of a late-acknowledged task, ask the result store "
        "whether the task already succeeded, and skip it if so.",
    )
    worker_enable_remote_control: bool = setting(
        True,
        old="CELERY_ENABLE_REMOTE_CONTROL",
        doc="Listen to remote control commands: `inspect`, `control`, revokes.",
    )
    worker_hijack_root_logger: bool = setting(
        True,
        old="CELERYD_HIJACK_ROOT_LOGGER",
        doc="Replace the handlers of the root logger when logging is set up. Off: if it has handlers, "
        "they and its level stay as the application made them.",
    )
    worker_log_color: bool | None = setting(
        None,
        old="CELERYD_LOG_COLOR",
        doc="Colour log lines by level. Unset: when the log goes to a terminal.",
    )
    worker_log_datefmt: str | None = setting(
        None,
        old="CELERYD_LOG_DATEFMT",
        doc="Form of the time in worker log lines, as for `time.strftime`. Unset: that of the logging "
        "module.",
    )
    worker_log_format: str = setting(
        DEFAULT_PROCESS_LOG_FMT,
        old="CELERYD_LOG_FORMAT",
        doc="Form of worker log lines, as for the logging module.",
    )
    worker_lost_wait: float = setting(
        10.0,
        old="CELERYD_WORKER_LOST_WAIT",
        doc="Seconds to wait for the report of a process that ended before its task counts as lost.",
    )
    worker_max_memory_per_child: int | None = setting(
        None,
        old="CELERYD_MAX_MEMORY_PER_CHILD",
        doc="Kilobytes of resident memory after which a process is replaced once its task has ended. "
        "A single task that needs more is run to its end.",
    )
    worker_max_tasks_per_child: int | None = setting(
        None,
        old="CELERYD_MAX_TASKS_PER_CHILD",
        doc="Number of tasks after which a process is replaced by a new one. Unset: never.",
    )
    worker_pool: str = setting(
        DEFAULT_POOL,
        old="CELERYD_POOL",
        doc="What runs the tasks: `prefork`, `threads`, `solo`, `asyncio`, `gevent`, `eventlet`, or "
        "the path of a pool class. gevent and eventlet must be chosen with `-P`, so that patching "
        "comes first.",
    )
    worker_pool_putlocks: bool = setting(
        True,
        old="CELERYD_POOL_PUTLOCKS",
        doc="Hand over a task only when a slot of the pool is free, in pools that know slots.",
    )
    worker_pool_restarts: bool = setting(
        False,
        old="CELERYD_POOL_RESTARTS",
        doc="Allow the remote control command `pool_restart`.",
    )
    worker_pool_start_method: str = setting(
        "fork",
        old="CELERYD_POOL_START_METHOD",
        doc="How pool processes are started: `fork` or `spawn`. A spawned process inherits nothing "
        "and must import the project itself.",
    )
    worker_proc_alive_timeout: float = setting(
        4.0,
        old="CELERYD_PROC_ALIVE_TIMEOUT",
        doc="Seconds a new pool process is given to report that it is up before it is replaced.",
    )
    worker_prefetch_multiplier: int = setting(
        4,
        old="CELERYD_PREFETCH_MULTIPLIER",
        doc="Messages a worker takes ahead for each process. 1 for long tasks; 0: no bound. Tasks "
        "waiting for their time are counted on top.",
    )
    worker_eta_task_limit: int | None = setting(
        None,
        old="CELERYD_ETA_TASK_LIMIT",
        doc="Most messages a worker holds in all, tasks waiting for their time included. Unset: no bound.",
    )
    worker_enable_prefetch_count_reduction: bool = setting(
        True,
        old="CELERYD_ENABLE_PREFETCH_COUNT_REDUCTION",
        doc="After a lost connection, take fewer messages ahead while tasks from before are still running.",
    )
    worker_disable_prefetch: bool = setting(
        False,
        old="CELERYD_DISABLE_PREFETCH",
        doc="Take a message only when a process is free to run it. Exact on Redis and SQLite; a broker that "
        "pushes (RabbitMQ) may send as many more as there are processes.",
    )
    worker_redirect_stdouts: bool = setting(
        True,
        old="CELERY_REDIRECT_STDOUTS",
        doc="Write what tasks print to standard output and error into the log.",
    )
    worker_redirect_stdouts_level: str = setting(
        "WARNING",
        old="CELERY_REDIRECT_STDOUTS_LEVEL",
        doc="Log level of redirected output: `DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`.",
    )
    worker_send_task_events: bool = setting(
        False,
        old="CELERY_SEND_EVENTS",
        doc="Send events about each task for monitors. `celery worker -E` turns it on.",
    )
    worker_state_db: str | None = setting(
        None,
        old="CELERYD_STATE_DB",
        doc="File in which a worker keeps the ids of revoked tasks over a restart. `--statedb` overrides it.",
    )
    worker_task_log_datefmt: str | None = setting(
        None,
        old="CELERYD_TASK_LOG_DATEFMT",
        doc="Form of the time in log lines of tasks, as for `time.strftime`.",
    )
    worker_task_log_format: str = setting(
        DEFAULT_TASK_LOG_FMT,
        old="CELERYD_TASK_LOG_FORMAT",
        doc="Form of log lines written by tasks; besides the fields of the logging module it may use "
        "`%(task_name)s` and `%(task_id)s`.",
    )
    worker_timer: str | None = setting(
        None,
        old="CELERYD_TIMER",
        doc="Class of the timer used by pools without an event loop, as `module:name`. Unset: that of "
        "the pool.",
    )
    worker_timer_precision: float = setting(
        1.0,
        old="CELERYD_TIMER_PRECISION",
        doc="Longest sleep, in seconds, of that timer between two looks at its entries.",
    )
    worker_detect_quorum_queues: bool = setting(
        True,
        old="CELERYD_DETECT_QUORUM_QUEUES",
        doc="Use per-consumer prefetch and native delayed delivery when one of the queues is a quorum "
        "queue, which needs both.",
    )


class Extras(SettingsTable):
    """Settings that are understood but have no value until somebody gives one.

    Celery does not declare them, so reading them from an empty configuration is
    a ``KeyError``; they are listed to be documented and recognised.
    """

    beat_lease: bool = setting(
        True,
        doc="Let only one of several beats send for a schedule: the one that holds its lease in the broker. The "
        "others wait, and one of them goes on when it is gone. Needs Redis or SQLite, as broker or as "
        "`beat_lease_url`; elsewhere every beat sends.",
    )
    beat_lease_expires: float = setting(
        10.0,
        doc="Seconds after which the next beat takes over from one that died, hangs or was cut off. One that ended "
        "in order is followed at once.",
    )
    beat_lease_name: str | None = setting(
        None,
        doc="What tells a schedule from others in the same broker. Unset: the app's name, `task_default_queue`, the "
        "scheduler's class, and names and contents (not the times) of the entries in `beat_schedule`. Beats with "
        "the same name wait for each other.",
    )
    beat_lease_url: str | None = setting(
        None,
        secret=True,
        doc="Redis or SQLite in which the lease is kept where the broker is neither: `redis://host:port/db`. A beat "
        "that dies at the very moment of sending may then lose that run. Unset: the broker.",
    )
    cassandra_secure_bundle_path: str | None = setting(
        None,
        doc="The same as `cassandra_bundle_path`.",
    )
    dynamodb_endpoint_url: str | None = setting(
        None,
        doc="Address of a DynamoDB that is not Amazon's.",
    )
    gcs_threadpool_maxsize: int = setting(
        10,
        doc="Threads used for requests to Google Cloud Storage.",
    )
    override_backends: dict[str, str] = setting(
        {},
        top=True,
        doc="Further schemes for `result_backend`: a mapping of scheme to the path of a class. Read "
        "from the configuration module only.",
    )
    redis_backend_credential_provider: Any = setting(
        None,
        doc="Credential provider for the connection to the result store, or the path of its class.",
    )
    redis_backend_health_check_interval: float | None = setting(
        None,
        doc="Seconds a connection to the result store may be idle before it is tested on next use.",
    )
    redis_client_name: str | None = setting(
        None,
        doc="Name under which connections to the result store appear in `CLIENT LIST`.",
    )
    result_backend_thread_safe: bool = setting(
        False,
        doc="Share one result backend between all threads instead of making one for each.",
    )
    task_max_losses: int | None = setting(
        20,
        doc="How often the process of a task with `task_reject_on_worker_lost` may die under it. Then the task "
        "fails, and its message is put aside: into `<queue>.dead` on Redis and SQLite, to the dead-letter "
        "exchange of its queue on RabbitMQ. `None`: it comes back for ever, as with Celery. Losses of a whole "
        "worker count on Redis and SQLite from the second on; on RabbitMQ quorum queues have a limit of their "
        "own for these (`x-delivery-limit`).",
    )
    worker_health_address: str | None = setting(
        None,
        doc="Where the worker answers HTTP probes: `/live` and `/ready`, with 200 or 503 and the reason as JSON. "
        "`host:port`, `:port` for all addresses of the machine, or `port` for the machine alone. `--health-address` "
        "overrides it.",
    )
    worker_health_file: str | None = setting(
        None,
        doc="File that the worker touches every second while it is alive, and removes when it is not. Another one, "
        "with `.ready` behind the name, is there while it takes messages. `%h`, `%n` and `%d` are filled in. "
        "`--health-file` overrides it.",
    )
    worker_health_longest_task: float | None = setting(
        None,
        doc="Seconds after which a task that still runs makes the worker count as dead for its probes. Unset: a busy "
        "worker is alive however long its tasks run.",
    )
    worker_health_stall: float = setting(
        60.0,
        doc="Seconds that tasks may wait while processes are free and none begins or ends, before the worker counts "
        "as dead for its probes.",
    )
    result_chord_embed_limit: int | None = setting(
        8192,
        doc="Largest body of a chord, in bytes, that travels with each member of the header. A larger one is "
        "kept once in the result store, if that is one of keys and values, and a small stand-in travels in "
        "its place. `None`: bodies always travel; set that where bodies are run by real Celery's workers.",
    )
    beat_executable: str | None = setting(
        None,
        doc="Python program to run a detached `celery beat` with.",
    )
    beat_gid: str | None = setting(
        None,
        doc="Group that `celery beat` changes to.",
    )
    beat_logfile: str | None = setting(
        None,
        doc="Log file of `celery beat`.",
    )
    beat_pidfile: str | None = setting(
        None,
        doc="File for the process id of `celery beat`.",
    )
    beat_uid: str | None = setting(
        None,
        doc="User that `celery beat` changes to.",
    )
    beat_umask: str | None = setting(
        None,
        doc="File mode creation mask of `celery beat`, in octal.",
    )
    events_executable: str | None = setting(
        None,
        doc="Python program to run a detached `celery events` with.",
    )
    events_gid: str | None = setting(
        None,
        doc="Group that `celery events` changes to.",
    )
    events_logfile: str | None = setting(
        None,
        doc="Log file of `celery events`.",
    )
    events_pidfile: str | None = setting(
        None,
        doc="File for the process id of `celery events`.",
    )
    events_uid: str | None = setting(
        None,
        doc="User that `celery events` changes to.",
    )
    events_umask: str | None = setting(
        None,
        doc="File mode creation mask of `celery events`, in octal.",
    )
    worker_executable: str | None = setting(
        None,
        doc="Python program to run a detached `celery worker` with.",
    )
    worker_gid: str | None = setting(
        None,
        doc="Group that `celery worker` changes to.",
    )
    worker_logfile: str | None = setting(
        None,
        doc="Log file of `celery worker`; `%n`, `%h`, `%i`, `%I` are expanded.",
    )
    worker_pidfile: str | None = setting(
        None,
        doc="File for the process id of `celery worker`.",
    )
    worker_uid: str | None = setting(
        None,
        doc="User that `celery worker` changes to.",
    )
    worker_umask: str | None = setting(
        None,
        doc="File mode creation mask of `celery worker`, in octal.",
    )


class SearchResult(NamedTuple):
    """What :func:`find` found: the namespace, the name inside it, and the option."""

    namespace: str | None
    key: str
    type: Any


def _by_namespace(options: Mapping[str, Option]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for option in options.values():
        branch = tree.setdefault(option.namespace, {}) if option.namespace else tree
        branch[option.short_name] = option
    return tree


def _joined(namespace: str, key: str, option: Option) -> Iterable[tuple[str, Option]]:
    return ((namespace + key, option),)


def flatten(
    d: Mapping[str, Any],
    root: str = "",
    keyfilter: Callable[[str, str, Option], Iterable[Any]] = _joined,
) -> Iterator[Any]:
    """Walk a tree of options, giving ``(full name, option)`` unless *keyfilter* makes something else.

    *keyfilter* is called with the namespace followed by an underscore, the name
    inside it, and the option, and returns the items to give.
    """
    for key, value in d.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{root}{key}_", keyfilter)
        else:
            yield from keyfilter(root, key, value)


def find(name: str, namespace: str = "celery") -> SearchResult:
    """Find a setting by a name that may lack its namespace, as in ``acks_late``.

    The given namespace is searched first, then the others in the order of the
    table; a full name such as ``task_acks_late`` is found last.

    Raises:
        KeyError: if there is no such setting.
    """
    key = name.lower()
    preferred = NAMESPACES.get(namespace.lower())
    if isinstance(preferred, Mapping) and key in preferred:
        return SearchResult(namespace, key, preferred[key])
    for branch, options in NAMESPACES.items():
        if branch == key:
            return SearchResult(None, branch, options)
        if isinstance(options, Mapping) and key in options:
            return SearchResult(branch, key, options[key])
    return SearchResult(None, key, Conf.options[key])


NAMESPACES: dict[str, Any] = _by_namespace(Conf.options)
DEFAULTS: dict[str, Any] = {name: option.default for name, option in Conf.options.items()}
SETTING_KEYS: set[str] = set(DEFAULTS)

TO_OLD_KEY: dict[str, str] = {name: option.old_name for name, option in Conf.options.items()}
TO_NEW_KEY: dict[str, str] = {old: new for new, old in TO_OLD_KEY.items()}
OLD_SETTING_KEYS: set[str] = set(TO_NEW_KEY)
