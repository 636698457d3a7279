"""Deliveries from Redis: a batch is claimed and a batch acknowledged in one round trip.

Opened by ``transport.open_source``, used by the worker's loop.  Owns two connections (commands, and
the bell that rings when a queue changes), the record of what is held, and a kombu channel that
declares queues and carries broadcasts.  Keys are kombu's own, so real Celery workers may share the
broker (``docs/internals/redis-layout.md``).  It may not look into messages beyond their tag.

A claim is safe for the time of a lease, which a living worker renews.  What a dead one held is
taken over by any other after the lease has run out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, cycle
from typing import TYPE_CHECKING, Any

from kombu.utils.uuid import uuid
from redis.exceptions import NoScriptError, RedisError, ResponseError

from celery_clone.message.delivery import Delivery
from celery_clone.message.envelope import with_losses
from celery_clone.transport.distress import DistressedBroker, is_distress
from celery_clone.transport.redis_layout import (
    CLAIM,
    PARK,
    PROMOTE,
    RENEW,
    REWRITE,
    SCRIPTS,
    SETTLE,
    SWEEP,
    Layout,
    pack,
    pack_script,
    redelivered,
    restorable,
)
from celery_clone.transport.redis_leases import LEASE_S, Held, Keeper
from celery_clone.transport.redis_wakeup import POLL_S, Bell
from celery_clone.transport.waits import CLOSING_TIMEOUT_S, OTHERS_ARE_BACK_S, REDIS_REPLY_TIMEOUT_S, bound_waits
from celery_clone.utils.log import get_logger

if TYPE_CHECKING:
    from kombu import Queue

__all__ = ("RedisSource",)

logger = get_logger(__name__)

LARGEST_BATCH = 512
"""Most messages of one claim; the script holds all of them in the server's memory."""

LARGEST_FLOOD = 2**22
"""Bytes that may be claimed beyond the credit, if they are as large as the last ones."""

LATER_S = 60.0
"""What is due later than this does not count as taken, once a flood of it was met; no worker holds that by itself."""

MOST_PAGES = 10
"""Where most of what is parked is for other queues, so many times as much is looked at as is wanted."""

SWEEP_BATCH = 100
"""Most messages that one sweep takes over, of each kind."""

SWEEP_AGAIN_S = 0.02
"""The pause between two sweeps of which the first was not enough; others want to use the server, too."""

PROMOTE_BATCH = 1000
"""Most parked messages that are put into their queues in one step, which keeps the server from all else."""

PROMOTE_EVERY_S = 0.05
"""A worker looks no more often than this for what has become due meanwhile."""

BINDINGS_EVERY_S = 900.0
"""How often the bindings of queues that expire are refreshed; kombu keeps them an hour at least."""


class RedisSource:
    """A :class:`~celery_clone.transport.protocols.MessageSource` over Redis."""

    survives_reconnect = True
    keeps_dead = True

    def __init__(
        self,
        connection: Any,
        *,
        accept: Collection[str] | None = None,
        epoch: int = 0,
        previous: RedisSource | None = None,
        lease_s: float | None = None,
        renew_in_background: bool = False,
    ) -> None:
        """*connection* is a connected :class:`kombu.Connection`; see :func:`transport.open_source`.

        Raises the connection errors of redis-py.
        """
        options = connection.transport_options or {}
        self.connection = connection
        self.channel = connection.channel()
        # A channel whose connection is gone has none, and there may be something to say still.
        self._pool = self.channel.pool
        self.layout = Layout.of_channel(self.channel)
        # Within the visibility timeout, or workers that know kombu's rule alone would take what is renewed too late.
        self.lease_s = float(lease_s or options.get("lease") or min(LEASE_S, self.layout.visibility_s or LEASE_S))
        self.may_park = bool(options.get("park", True))
        self.accept = accept
        self.epoch = epoch
        self.held: Held = previous.held if previous is not None else Held()
        self._clock = time.monotonic
        self._reconnects = self._unheard = previous is not None
        self._sweeps_from = 0.0
        self._timeouts = {
            "socket_timeout": self.channel.socket_timeout or REDIS_REPLY_TIMEOUT_S,
            "socket_connect_timeout": self.channel.socket_connect_timeout
            or connection.connect_timeout
            or REDIS_REPLY_TIMEOUT_S,
        }
        self._bell = Bell(lambda: self._connect(protocol=3))
        self._redis: Any = None
        self._queues: list[str] = []
        self._lists: list[str] = []
        self._turn = 0
        self._parked = self._beyond = 0
        self._size = 1
        self._broadcasts: dict[str, str] = {}
        self._arrived: list[Delivery] = []
        self._quiet = self._closed = False
        self._hub: Any = None
        self._timers: list[Any] = []
        self._ready: Callable[[], None] | None = None
        self._extended_at = self._bindings_at = self._clock()
        self._due_at: float | None = None
        self._due_timer: Any = None
        self._sweep_timer: Any = None
        self._keeper = Keeper(self.lease_s / 3, self._renew_with) if renew_in_background else None
        self._pack_claim()

    # -- the loop -------------------------------------------------------------------------------------

    def watch(self, hub: Any, ready: Callable[[], None]) -> None:
        """Ring *ready* from *hub* when messages may be there, and renew leases from its timer."""
        self._hub, self._ready = hub, ready
        self._bell.watch(hub, ready)
        self._timers = [hub.call_repeatedly(self.lease_s / 3, self._extend_and_look)]

    def _extend_and_look(self) -> None:
        self.extend()
        # A connection that died without a word rings no bell.
        self._bell.armed = False
        if self._ready is not None and not self._quiet:
            self._ready()

    def set_queues(self, queues: Sequence[Queue]) -> None:
        """Consume from exactly *queues*; broadcasts come over the channel, all others from lists."""
        names: list[str] = []
        broadcasts: dict[str, str] = {}
        for queue in queues:
            queue(self.channel).declare()
            if queue.name in self.channel._fanout_queues:
                broadcasts[queue.name] = self._broadcasts.get(queue.name) or self._consume(queue.name)
            elif queue.name not in names:
                names.append(queue.name)
        for name, consumer_tag in self._broadcasts.items():
            if name not in broadcasts:
                self.channel.basic_cancel(consumer_tag)
        self._broadcasts = broadcasts
        self._queues = sorted(names) if self.channel.queue_order_strategy == "sorted" else names
        self._lists = self.layout.lists_of(self._queues)
        self._bell.set_keys(self._lists)
        self._pack_claim()
        # Leases may be about to run out, if the connection was away for long.
        self._forget(self._call([self.renewal()])[0])
        if self._unheard:
            self._recover()

    def _recover(self) -> None:
        """Put back what was claimed over the last connection just before it broke: no answer told of it."""
        layout, tags = self.layout, self.held.tags
        # First what is known of: nothing of that may look as if it had not been heard of.
        self.flush()
        receipt: bytes = self._call([pack("GET", layout.last_claim_of(self.held.worker))])[0] or b""
        names = [name for name in receipt.split(b"\n") if name and name.decode("utf-8", "surrogateescape") not in tags]
        entries = self._call([pack("HMGET", layout.unacked, *names)])[0] if names else []
        found = [each for pair in zip(names, entries, strict=True) if pair[1] for each in pair]
        self._put_back(b"", found, "Put back %d messages that were on their way when the connection was lost.")
        self._unheard = False

    def _consume(self, queue: str) -> str:
        consumer_tag = uuid()

        def arrived(message: Any) -> None:
            self._arrived.append(Delivery.of_kombu(message, queue, self, epoch=self.epoch, accept=self.accept))
            if self._ready is not None:
                self._ready()

        # Nobody else will get this copy, so there is nothing to give back: no acknowledgement.
        self.channel.basic_consume(queue, True, arrived, consumer_tag)
        return consumer_tag

    def take(self, credit: int, timeout: float = 0.0) -> Sequence[Delivery]:
        """Acknowledge what was settled and claim at most *credit* messages, in one round trip."""
        deadline = self._clock() + timeout
        while True:
            if self._hub is None and self._clock() - self._extended_at >= self.lease_s / 3:
                self.extend()
            elif self._hub is None and self._due_at is not None and self._clock() >= self._due_at:
                self._promote()
            found = self._claim(credit)
            left = deadline - self._clock()
            if found or left <= 0 or self._closed:
                return found
            if self._due_at is not None:
                left = min(left, max(0.0, self._due_at - self._clock()))
            self._wait(min(left, self.lease_s / 3))

    def _wait(self, timeout: float) -> None:
        if not self._broadcasts:
            self._bell.wait(timeout)
            return
        try:
            self.connection.drain_events(timeout=min(timeout, POLL_S))
        except TimeoutError:
            pass  # nothing came; the caller looks at the time

    def _claim(self, credit: int) -> list[Delivery]:
        if self._closed:
            return []
        room = credit - len(self._arrived)
        found: list[Delivery] = []
        if self._quiet or not self._lists or room <= 0 or self._bell.silent():
            self.flush()
        else:
            found = self._claim_from_lists(room)
        # Only now: nobody would get again what is taken out before an error.
        broadcast, self._arrived = self._arrived[:credit], self._arrived[credit:]
        return [*broadcast, *found]

    def _claim_from_lists(self, room: int) -> list[Delivery]:
        found: list[Delivery] = []
        try:
            while len(found) < room:
                wanted = min(room - len(found), LARGEST_BATCH)
                claimed = self._exchange(wanted)
                found += claimed
                if len(claimed) < wanted:
                    self._bell.arm()
                    break
        except (RedisError, OSError) as exc:
            if not found:
                raise
            # They are held and their leases renewed: nobody else would ever run them.
            logger.debug("The connection was lost behind a claim: %r", exc)
            if self._hub is not None and self._ready is not None:
                self._hub.call_soon(self._ready)  # the next look meets the error as well
        return found

    def _exchange(self, credit: int) -> list[Delivery]:
        """Send what is buffered together with a claim of *credit* messages."""
        outbox, acks, parking = self.held.outbox, self.held.acks, self.held.parking
        posted, acked, parked = len(outbox), len(acks), len(parking)
        if credit:
            # Where much of what comes is parked, more is taken at once, and no more of the rest.
            self._beyond = min(LARGEST_BATCH, 4 * self._parked, LARGEST_FLOOD // self._size)
            self._parked = 0
        reply = self._call([*outbox, *self._park_command(parking), self._claim_command(credit, acks)])[-1]
        # Only now is it known to have arrived.
        del outbox[:posted], acks[:acked], parking[:parked]
        if len(reply) == 1:
            return []
        self._turn += 1
        self._size = max(len(text) for texts in reply[2::2] for text in texts) or 1
        return self._deliveries(iter(reply[0].decode("utf-8", "surrogateescape").split("\n")), reply[1:])

    def _deliveries(self, names: Iterator[str], parts: Sequence[Any]) -> list[Delivery]:
        """Deliveries of a claim's answer; *names* are the tags of the messages in *parts*."""
        held, count, channel = self.held.tags, len(self._queues), self.channel
        epoch, accept = self.epoch, self.accept
        deliveries: list[Delivery] = []
        for at, texts in zip(parts[::2], parts[1::2], strict=True):
            queue, key = self._queues[at % count], self._lists[at]
            for text, tag in zip(reversed(texts), names, strict=False):
                delivery = Delivery.of_raw(text, tag, queue, self, epoch=epoch, accept=accept, channel=channel)
                held[tag] = key, delivery
                deliveries.append(delivery)
        return deliveries

    def _pack_claim(self) -> None:
        layout = self.layout
        receipt = layout.last_claim_of(self.held.worker)
        keys = [layout.unacked, layout.unacked_index, layout.leases, receipt, *self._lists]
        ends = [layout.entry_end(queue) for queue in self._queues]
        fixed = [self.lease_s, len(self._queues), "1" if self.layout.fair else "0"]
        self._claim_size = 3 + len(keys) + 4 + len(fixed) + len(ends)
        self._claim_head = pack_script(CLAIM, keys).partition(b"\r\n")[2]
        self._claim_tail = pack(*fixed).partition(b"\r\n")[2]
        self._claim_ends = pack(*ends).partition(b"\r\n")[2]

    def _claim_command(self, credit: int, acks: Sequence[str]) -> bytes:
        count = len(self._queues)
        first = self._turn % count if count and self.layout.fair else 0
        pieces = [
            b"*%d\r\n" % (self._claim_size + len(acks)),
            self._claim_head,
            pack(credit if count else 0, first).partition(b"\r\n")[2],
            self._claim_tail,
            pack(self._beyond, time.time() + LATER_S if self._beyond else 0).partition(b"\r\n")[2],
            self._claim_ends,
        ]
        for tag in acks:
            data = tag.encode("utf-8", "surrogateescape")
            pieces.append(b"$%d\r\n%b\r\n" % (len(data), data))
        return b"".join(pieces)

    # -- settling -------------------------------------------------------------------------------------

    def ack(self, tags: Iterable[str]) -> None:
        """Settle as done; sent with the next :meth:`take` or :meth:`flush`."""
        held = self.held
        for tag in tags:
            held.tags.pop(tag, None)
            held.acks.append(tag)

    def reject(self, tag: str, *, requeue: bool) -> None:
        """Drop, or put back: behind the others, and to the front once this worker is leaving.

        Behind, because a task that rejects itself would otherwise come back at once, for ever.
        """
        if not requeue:
            self.ack((tag,))
            return
        known = self.held.tags.pop(tag, None)
        if known is None:
            return
        key, delivery = known
        self._settle(tag, "RPUSH" if self._quiet else "LPUSH", (key,), marked(delivery))

    def put_back(self, delivery: Delivery, losses: int) -> bool:
        """Put back as :meth:`reject` does, with the number of *losses* in its headers."""
        known = self.held.tags.get(delivery.tag)
        if known is None or delivery.envelope is None:
            return False
        text = with_losses(delivery.envelope.raw, losses, redelivered=True)
        del self.held.tags[delivery.tag]
        self._settle(delivery.tag, "RPUSH" if self._quiet else "LPUSH", (known[0],), text)
        return True

    def note_losses(self, delivery: Delivery, losses: int) -> None:
        """Write the number into the claimed message, where a sweep finds it."""
        if delivery.tag not in self.held.tags or delivery.envelope is None:
            return
        text = with_losses(delivery.envelope.raw, losses)
        entry = b"[" + text + self.layout.entry_end(delivery.queue).encode()
        self.held.outbox.append(pack_script(REWRITE, (self.layout.unacked,), delivery.tag, entry))

    def bury(self, delivery: Delivery, reason: str) -> None:
        """Move to the list ``<queue>.dead``, as JSON with the reason, the text and the time."""
        if self.held.tags.pop(delivery.tag, None) is None or delivery.envelope is None:
            return
        text = delivery.envelope.raw.decode("utf-8", "backslashreplace")
        record = json.dumps({"reason": reason, "message": text, "at": time.time()})
        self._settle(delivery.tag, "LPUSH", (self.layout.dead_list_of(delivery.queue),), record.encode())

    def park(self, delivery: Delivery, due: float) -> bool:
        """Keep it in Redis until *due*; ``False`` when the transport option ``park`` is off, or not ours."""
        known = self.held.tags.get(delivery.tag)
        if known is None or not self.may_park:
            return False
        self.held.parking.append((delivery.tag, due, known[0]))
        self._parked += 1
        del self.held.tags[delivery.tag]
        self._expect_due(due - time.time())
        return True

    def _park_command(self, parking: Sequence[tuple[str, float, str]]) -> list[bytes]:
        """One command for all that is to be parked; none for nothing."""
        if not parking:
            return []
        layout = self.layout
        keys = layout.unacked, layout.unacked_index, layout.leases, layout.schedule
        return [pack_script(PARK, keys, layout.visibility_s, self.lease_s, *chain.from_iterable(parking))]

    def parked(self, most: int) -> Sequence[Delivery]:
        """What is parked for the lists of this source, the soonest first; over a connection of its own."""
        layout = self.layout
        homes = {
            key: (queue, layout.entry_end(queue).encode())
            for key, queue in zip(self._lists, cycle(self._queues), strict=False)
        }
        found: list[Delivery] = []
        client = self._connect()
        try:
            for start in range(0, most * MOST_PAGES, most):
                rows = answered(self.talk(client, [pack("ZRANGE", layout.schedule, start, start + most - 1)]))
                names = [row.decode("utf-8", "surrogateescape").rpartition("\n")[::2] for row in rows]
                wanted = [(field, *homes[key]) for field, key in names if key in homes]
                if wanted:
                    fields = [field.encode("utf-8", "surrogateescape") for field, _, _ in wanted]
                    entries = answered(self.talk(client, [pack("HMGET", layout.unacked, *fields)]))
                    for (field, queue, end), entry in zip(wanted, entries, strict=True):
                        if entry and entry.endswith(end):
                            text = entry[1 : -len(end)]
                            found.append(Delivery.of_raw(text, field, queue, epoch=self.epoch, accept=self.accept))
                if len(rows) < most or len(found) >= most:
                    break
        finally:
            client.disconnect()
        return found[:most]

    def _settle(self, tag: str, how: str, lists: Iterable[str], text: bytes, since: Any = "") -> None:
        layout = self.layout
        keys = layout.unacked, layout.unacked_index, layout.leases, *lists
        self.held.outbox.append(pack_script(SETTLE, keys, tag, since, how, text))

    def flush(self) -> None:
        """Send what is buffered."""
        if (self.held.acks or self.held.outbox or self.held.parking) and not self._closed:
            self._exchange(0)

    # -- leases ---------------------------------------------------------------------------------------

    def extend(self) -> None:
        """Renew what is held, put back what dead workers held, promote what is due."""
        if self._closed:
            return
        layout = self.layout
        self._extended_at = self._clock()
        self.flush()
        keys = layout.unacked, layout.unacked_index, layout.leases, layout.sweeps
        most = SWEEP_BATCH if self._extended_at >= self._sweeps_from else 0
        sweep = pack_script(SWEEP, keys, self.lease_s, layout.visibility_s, most, SWEEP_BATCH)
        gone, found, due = self._call([self.renewal(), sweep, self._promotion()])
        self._forget(gone)
        self._put_back(found[0], found[1:], "Put back %d messages whose worker is gone.")
        self._promoted(due)
        self._refresh_bindings()
        if len(found) > 2 * SWEEP_BATCH and not self._quiet:
            self._sweep_on()

    def _sweep_on(self) -> None:
        """Dead workers have left more than one sweep takes over: the next does not wait for its time."""
        if self._hub is None:
            self._extended_at -= self.lease_s
        else:
            if self._sweep_timer is not None:
                self._sweep_timer.cancel()
            self._sweep_timer = self._hub.call_later(SWEEP_AGAIN_S, self.extend)

    def _promotion(self) -> bytes:
        layout = self.layout
        keys = layout.unacked, layout.unacked_index, layout.leases, layout.schedule
        return pack_script(PROMOTE, keys, PROMOTE_BATCH)

    def _promote(self) -> None:
        """Put what is due into the queues, and find out when the next is."""
        self._due_timer = None
        if not self._closed:
            self._promoted(self._call([self._promotion()])[0])

    def _promoted(self, due: bytes) -> None:
        self._due_at = None
        if due:
            seconds = float(due)
            self._expect_due(max(PROMOTE_EVERY_S, seconds) if seconds else 0.0)

    def _expect_due(self, seconds: float) -> None:
        """Something is due in *seconds*: have it promoted then."""
        at = self._clock() + max(0.0, seconds)
        if self._due_at is not None and self._due_at <= at:
            return
        self._due_at = at
        if self._hub is None:
            return
        if self._due_timer is not None:
            self._due_timer.cancel()
        self._due_timer = self._hub.call_later(max(0.0, seconds), self._promote)

    def renewal(self) -> bytes:
        """The command that renews all leases."""
        keys = self.layout.unacked_index, self.layout.leases, self.layout.sweeps
        return pack_script(RENEW, keys, self.lease_s, *list(self.held.tags))

    def _forget(self, gone: Iterable[bytes]) -> None:
        lost = [name.decode("utf-8", "surrogateescape") for name in gone]
        # Settled while the answer was on its way: that is how it should be.
        lost = [tag for tag in lost if self.held.tags.pop(tag, None) is not None]
        if lost:
            logger.warning(
                "The claims of %d messages ran out before they were renewed, and other workers may run them "
                "again: %s. The loop of this worker stood still for longer than the lease of %s s; raise "
                "broker_transport_options['lease'] if that is usual here.",
                len(lost),
                ", ".join(lost[:10]),
                self.lease_s,
            )

    def _put_back(self, since: bytes, found: Sequence[bytes], said: str) -> None:
        """Put back claims, given as tag and entry, that were made or taken over at the time *since*; any if empty."""
        count = 0
        for name, entry in zip(found[::2], found[1::2], strict=True):
            tag = name.decode("utf-8", "surrogateescape")
            try:
                lists, text = restorable(entry, self.layout, self.channel._lookup)
            except (ValueError, TypeError):
                lists, text = [self.layout.dead_list_of(self.channel.unacked_key)], entry
                logger.exception(
                    "Entry %r of %s is no message; it is moved to the list %r.",
                    tag,
                    self.layout.unacked,
                    lists[0],
                )
            self._settle(tag, "RPUSH", lists, text, since)
            count += 1
        if count:
            logger.info(said, count)
            self.flush()

    def _refresh_bindings(self) -> None:
        now = self._clock()
        if now - self._bindings_at < BINDINGS_EVERY_S:
            return
        self._bindings_at = now
        expiring = [queue for queue in self._queues if queue in self.channel._expires]
        if expiring:
            self.channel._refresh_bindings(expiring)

    # -- the end --------------------------------------------------------------------------------------

    def quiet(self) -> None:
        """Claim nothing more.  The worker ends: from now on it waits for no answer for long."""
        self._quiet = True
        self._bell.close()
        self._timeouts = {name: min(seconds, CLOSING_TIMEOUT_S) for name, seconds in self._timeouts.items()}
        client, self._redis = self._redis, None
        if client is not None:
            client.disconnect()
        bound_waits(self.connection, CLOSING_TIMEOUT_S)
        for consumer_tag in self._broadcasts.values():
            self.channel.basic_cancel(consumer_tag)
        self._broadcasts = {}

    def close(self) -> None:
        """Send what is buffered and let go.  What is still held stays claimed until its lease runs out."""
        if self._closed:
            return
        for timer in (*self._timers, *filter(None, (self._due_timer, self._sweep_timer))):
            timer.cancel()
        if self._keeper is not None:
            self._keeper.stop()
        try:
            self.flush()
        except (RedisError, OSError) as exc:
            # A later source sends it, or the leases run out: nothing is lost, some work may be repeated.
            logger.warning("Could not send the last acknowledgements to Redis: %r", exc)
        finally:
            self._closed = self._quiet = True
            self._bell.close()
            client, self._redis = self._redis, None
            if client is not None:
                client.disconnect()
        try:
            self.channel.close()
        except self.connection.connection_errors:
            logger.debug("The channel was broken before it was closed.", exc_info=True)

    # -- the wire -------------------------------------------------------------------------------------

    def _connect(self, **changes: Any) -> Any:
        """A connection with the credentials, TLS and sentinels that kombu set up."""
        pool = self._pool
        client = pool.connection_class(**{**pool.connection_kwargs, **self._timeouts, **changes})
        client.connect()
        return client

    def _defer_sweeping(self) -> None:
        """Others could not renew either while the server was away: they are given the time to come back first."""
        grace_s = max(self.lease_s, OTHERS_ARE_BACK_S) if self._reconnects else self.lease_s
        self._reconnects = True
        self._sweeps_from = self._clock() + grace_s

    def _call(self, commands: Sequence[bytes]) -> list[Any]:
        """Send commands in one write and return their replies.

        Raises the first error among the replies after all of them were read, and connection errors at once.
        """
        try:
            if self._redis is None:
                self._redis = self._connect()
                self._defer_sweeping()
            replies = self.talk(self._redis, commands)
            unknown = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if unknown:
                self.talk(self._redis, [pack("SCRIPT", "LOAD", script.text) for script in SCRIPTS])
                again = self.talk(self._redis, [commands[at] for at in unknown])
                for at, reply in zip(unknown, again, strict=True):
                    replies[at] = reply
        except (RedisError, OSError):
            # Another source follows.  What this one still tries, to be rid of its acknowledgements, must not take long.
            client, self._redis = self._redis, None
            if client is not None:
                client.disconnect()
            self._timeouts = dict.fromkeys(self._timeouts, CLOSING_TIMEOUT_S)
            raise
        for reply in replies:
            if isinstance(reply, ResponseError):
                if is_distress(reply):
                    raise DistressedBroker(f"Redis refuses: {reply}") from reply
                raise reply
        return replies

    @staticmethod
    def talk(client: Any, commands: Sequence[bytes]) -> list[Any]:
        """Replies of *client*; errors of the server are among them."""
        client.send_packed_command([b"".join(commands)], check_health=False)
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(client.read_response())
            except ResponseError as exc:
                replies.append(exc)
        return replies

    def _renew_with(self, client: Any) -> Any:
        """Renew the leases over *client*, a new connection if there is none yet; for :class:`Keeper`."""
        client = client or self._connect()
        # Where nothing is held, too: it tells for how long leases could be renewed, while the loop stands still.
        self.talk(client, [pack("SCRIPT", "LOAD", RENEW.text), self.renewal()])
        return client


def answered(replies: Sequence[Any]) -> list[Any]:
    """The one reply.

    Raises:
        redis.exceptions.ResponseError: it is an error.
    """
    (reply,) = replies
    if isinstance(reply, ResponseError):
        raise reply
    return list(reply)


def marked(delivery: Delivery) -> bytes:
    """The text of *delivery* for its next delivery; as it came if it cannot be read."""
    envelope = delivery.envelope
    if envelope is None:
        return b""
    try:
        return redelivered(json.loads(envelope.raw))
    except (ValueError, RecursionError):
        return envelope.raw
