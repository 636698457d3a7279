"""Shows the cluster in a terminal: ``celery events``.

A thread draws what :class:`~celery_clone.events.state.State` knows, the main thread takes events in.
Everything that is written is cut to the size of the screen.
"""

from __future__ import annotations

import curses
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from textwrap import wrap
from time import monotonic, time
from typing import Any

from celery_clone import _state, states
from celery_clone._version import VERSION_BANNER
from celery_clone.events.dumper import receive
from celery_clone.utils.text import abbr, abbrtask

__all__ = ("CursesMonitor", "evtop")

BORDER_SPACING = 4
LEFT_BORDER_OFFSET = 3
UUID_WIDTH = 36
STATE_WIDTH = 8
TIMESTAMP_WIDTH = 8
MIN_WORKER_WIDTH = 15
MIN_TASK_WIDTH = 16

FOOTER_LINES = 10
"""Lines of the screen that show no tasks."""

REDRAW_S = 1.0
"""The screen is drawn anew after so long even when nothing happened: workers fall silent."""

STATUS = "events: {state.event_count} tasks:{state.task_count} workers:{alive}/{all}"

Writer = Callable[[int, int, int], Any]

WHITE, RED, GREEN, MAGENTA, BLUE, YELLOW = range(1, 7)
"""Numbers of the colour pairs."""


def columns(width: int) -> tuple[int, int, int]:
    """How many characters id, worker and task get on a line of *width*."""
    left = width - 1 - STATE_WIDTH - 1 - TIMESTAMP_WIDTH
    uuid = min(UUID_WIDTH, left - 1 - MIN_TASK_WIDTH - 1 - MIN_WORKER_WIDTH)
    left -= uuid + 1
    task = (left + 1) // 2
    return max(uuid, 1), max(left - task - 1, 1), max(task, 1)


class CursesMonitor:
    """Draws *state* and does what keys ask for.

    Arguments:
        state: what is known of the cluster.
        app: the app, for remote control.
        keymap: further keys, each with the function it calls.
    """

    keymap: dict[str, Callable[[], Any]] = {}
    win: Any = None

    #: Milliseconds between two looks at the keyboard.
    screen_delay = 10
    selected_task: str | None = None
    selected_position = 0
    selected_str = "Selected: "
    foreground = curses.COLOR_BLACK
    background = curses.COLOR_WHITE
    online_str = "Workers online: "
    help_title = "Keys: "
    help = "j:down k:up i:info t:traceback r:result c:revoke ^c: quit"
    greet = f"celery events {VERSION_BANNER}"
    info_str = "Info: "
    keyalias = {curses.KEY_DOWN: "J", curses.KEY_UP: "K", curses.KEY_ENTER: "I"}

    def __init__(self, state: Any, app: Any, keymap: Mapping[str, Callable[[], Any]] | None = None) -> None:
        self.app = app
        self.state = state
        self.keymap = {
            "J": self.move_selection_down,
            "K": self.move_selection_up,
            "C": self.revoke_selection,
            "T": self.selection_traceback,
            "R": self.selection_result,
            "I": self.selection_info,
            "L": self.selection_rate_limit,
            **(keymap or self.keymap),
        }
        self.lock = threading.RLock()
        #: Nobody waits for a key any more.
        self.closing = False
        self.state_colors: dict[str, int] = {}
        self._drawn: tuple[Any, ...] = ()

    # --- the screen ------------------------------------------------------------------

    def init_screen(self) -> None:
        """Take over the terminal."""
        with self.lock:
            self.win = curses.initscr()
            self.win.nodelay(True)
            self.win.keypad(True)
            curses.start_color()
            pairs = (
                (WHITE, self.foreground, self.background),
                (RED, curses.COLOR_RED, self.background),
                (GREEN, curses.COLOR_GREEN, self.background),
                (MAGENTA, curses.COLOR_MAGENTA, self.background),
                (BLUE, curses.COLOR_BLUE, self.background),
                (YELLOW, curses.COLOR_YELLOW, self.foreground),
            )
            for pair in pairs:
                curses.init_pair(*pair)
            self.state_colors = {
                **dict.fromkeys(states.EXCEPTION_STATES, curses.color_pair(RED)),
                states.SUCCESS: curses.color_pair(GREEN),
                states.REVOKED: curses.color_pair(MAGENTA),
                states.STARTED: curses.color_pair(YELLOW),
            }
            curses.noecho()
            curses.cbreak()
            self._drawn = ()

    def resetscreen(self) -> None:
        """Give the terminal back.  Legal early and twice."""
        with self.lock:
            win, self.win = self.win, None
            if win is not None:
                curses.nocbreak()
                win.keypad(False)
                curses.echo()
                curses.endwin()

    @property
    def screen_width(self) -> int:
        """Columns of the terminal."""
        return int(self.win.getmaxyx()[1])

    @property
    def screen_height(self) -> int:
        """Lines of the terminal."""
        return int(self.win.getmaxyx()[0])

    @property
    def display_width(self) -> int:
        """Columns within the border."""
        return self.screen_width - BORDER_SPACING

    @property
    def display_height(self) -> int:
        """Lines for tasks."""
        return self.screen_height - FOOTER_LINES

    @property
    def limit(self) -> int:
        """How many tasks are shown."""
        return max(self.display_height, 0)

    def nap(self) -> None:
        """Wait for :attr:`screen_delay`."""
        curses.napms(self.screen_delay)

    def safe_add_str(self, y: int, x: int, string: str, *args: Any, **kwargs: Any) -> None:
        """Write as much of *string* as there is room for."""
        height, width = self.win.getmaxyx()
        room = width - x - 1
        if 0 <= y < height and room > 0:
            try:
                self.win.addstr(y, x, string.replace("\n", " ")[:room], *args, **kwargs)
            except curses.error:
                return  # the terminal has just become smaller

    # --- what is shown ----------------------------------------------------------------

    @property
    def tasks(self) -> list[tuple[str, Any]]:
        """The newest tasks, as many as fit."""
        return [*self.state.tasks_by_time(limit=self.limit)]

    @property
    def workers(self) -> list[str]:
        """The workers that are there."""
        return [hostname for hostname, worker in self.state.workers.items() if worker.alive]

    def format_row(self, uuid: str, task: str | None, worker: str, timestamp: str, state: str) -> str:
        """One line of the list of tasks."""
        uuid_width, worker_width, task_width = columns(self.display_width)
        cells = (
            abbr(uuid, uuid_width).ljust(uuid_width),
            abbr(worker, worker_width).ljust(worker_width),
            abbrtask(task, task_width).ljust(task_width),
            timestamp.ljust(TIMESTAMP_WIDTH),
            abbr(state, STATE_WIDTH).ljust(STATE_WIDTH),
        )
        return f"{' '.join(cells)} "[: self.display_width]

    def draw(self) -> None:
        """Do what a key asked for, and draw if there is something new."""
        with self.lock:
            if self.win is None:
                return
            self.handle_keypress()
            now = (self.state.event_count, self.selected_task, self.win.getmaxyx(), monotonic() // REDRAW_S)
            if now != self._drawn:
                self._draw()
                self._drawn = now

    def _draw(self) -> None:
        win, x = self.win, LEFT_BORDER_OFFSET
        height, _ = win.getmaxyx()
        win.erase()
        win.bkgd(" ", curses.color_pair(WHITE))
        win.border()
        self.safe_add_str(1, x, self.greet, curses.A_DIM | curses.color_pair(BLUE))
        header = self.format_row("UUID", "TASK", "WORKER", "TIME", "STATE")
        self.safe_add_str(3, x, header, curses.A_BOLD | curses.A_UNDERLINE)
        for line, (_, task) in enumerate(self.tasks, 4):
            self.display_task_row(line, task)
        if height > FOOTER_LINES:
            win.hline(height - 6, x, curses.ACS_HLINE, max(self.screen_width - BORDER_SPACING, 1))
        self._draw_selection(height - 5)
        self._titled(height - 4, self.online_str, ", ".join(sorted(self.workers)) or "No workers discovered.")
        workers = [*self.state.workers.values()]
        alive = sum(1 for worker in workers if worker.alive)
        self._titled(height - 3, self.info_str, STATUS.format(state=self.state, alive=alive, all=len(workers)))
        self._titled(height - 2, self.help_title, self.help)
        win.refresh()

    def _titled(self, y: int, title: str, text: str) -> None:
        self.safe_add_str(y, LEFT_BORDER_OFFSET, title, curses.A_BOLD)
        self.safe_add_str(y, LEFT_BORDER_OFFSET + len(title), text)

    def display_task_row(self, lineno: int, task: Any) -> None:
        """Draw one task."""
        attr = curses.A_STANDOUT if task.uuid == self.selected_task else curses.A_NORMAL
        at = datetime.fromtimestamp(task.timestamp or time(), tz=timezone.utc).strftime("%H:%M:%S")
        hostname = task.worker.hostname if task.worker else "*NONE*"
        line = self.format_row(task.uuid, task.name, hostname, at, task.state)
        self.safe_add_str(lineno, LEFT_BORDER_OFFSET, line, attr)
        color = self.state_colors.get(task.state)
        if color:
            column = LEFT_BORDER_OFFSET + len(line) - STATE_WIDTH - 1
            self.safe_add_str(lineno, column, abbr(task.state, STATE_WIDTH), color | attr)

    def _draw_selection(self, y: int) -> None:
        if self.selected_task is None:
            self.safe_add_str(y, LEFT_BORDER_OFFSET, "No task selected")
            return
        task = self.state.tasks.get(self.selected_task)
        text = "Missing extended info"
        if task is not None:
            info = task.info()
            if "runtime" in info:
                info["runtime"] = f"{info['runtime']:.2f}"
            if "result" in info:
                info["result"] = abbr(str(info["result"]), 16)
            room = max(self.screen_width - len(self.selected_str) - LEFT_BORDER_OFFSET - 2, 12)
            text = abbr(" ".join(f"{name}={value}" for name, value in info.items()), room, "... -> key i")
        self._titled(y, self.selected_str, text)

    # --- keys -----------------------------------------------------------------------------

    def handle_keypress(self) -> None:
        """Do what the pressed key asks for, if one was pressed."""
        code = self.win.getch()
        if code == -1:
            return
        key = self.keyalias.get(code) or (chr(code).upper() if 0 <= code < 256 else "")
        handler = self.keymap.get(key)
        if handler is not None:
            handler()

    def find_position(self) -> int:
        """Line of the selected task."""
        for position, (uuid, _) in enumerate(self.tasks):
            if uuid == self.selected_task:
                return position
        return 0

    def move_selection(self, direction: int = 1) -> None:
        """Select another task; below the last comes the first."""
        tasks = self.tasks
        if tasks:
            position = self.find_position() + (direction if self.selected_task else 0)
            self.selected_task = tasks[position if position < len(tasks) else 0][0]

    def move_selection_up(self) -> None:
        """Select the task above."""
        self.move_selection(-1)

    def move_selection_down(self) -> None:
        """Select the task below."""
        self.move_selection(1)

    def _selection(self) -> Any:
        """The selected task, or ``None`` with a beep."""
        task = self.state.tasks.get(self.selected_task) if self.selected_task else None
        if task is None:
            curses.beep()
        return task

    def revoke_selection(self) -> None:
        """Revoke the selected task."""
        if self._selection() is not None:
            self.alert_remote_control_reply(self.app.control.revoke(self.selected_task, reply=True))

    def selection_rate_limit(self) -> None:
        """Ask for a rate limit and set it for the type of the selected task."""
        task = self._selection()
        if task is None or not task.name:
            return
        line, question = self.screen_height - 2, "New rate limit: "
        self.safe_add_str(line, LEFT_BORDER_OFFSET, question, curses.A_BOLD | curses.A_UNDERLINE)
        column = LEFT_BORDER_OFFSET + len(question)
        self.safe_add_str(line, column, " " * self.screen_width)
        limit = self.readline(line, column).strip()
        if limit:
            self.alert_remote_control_reply(self.app.control.rate_limit(task.name, limit, reply=True))

    def readline(self, x: int, y: int) -> str:
        """A line typed by the user; empty after Escape.  *x* is the line, *y* the column."""
        typed = ""
        curses.echo()
        try:
            while not self.closing:
                code = self.win.getch(x, y + len(typed))
                if code in (10, 13, curses.KEY_ENTER):
                    return typed
                if code == 27:
                    return ""
                if 32 <= code < 127:
                    typed += chr(code)
                elif code == -1:
                    self.nap()
            return ""
        finally:
            curses.noecho()

    # --- pages over the list -----------------------------------------------------------------

    def alert(self, callback: Writer, title: str | None = None) -> None:
        """Show a page until a key is pressed; *callback* gets height, width and the first line to write."""
        win = self.win
        win.erase()
        height, width = win.getmaxyx()
        if title:
            self.safe_add_str(2, LEFT_BORDER_OFFSET, title, curses.A_BOLD | curses.A_UNDERLINE)
        callback(height, width, 4 if title else 2)
        self.safe_add_str(height - 1, 0, "Press any key to continue...", curses.A_BOLD)
        win.refresh()
        while win.getch() == -1 and not self.closing:
            self.nap()
        self._drawn = ()

    def _page(self, title: str, lines: Iterable[Sequence[tuple[str, int]]]) -> None:
        """Show lines, each of pieces with their attributes."""

        def write(height: int, width: int, first: int) -> None:
            for line, pieces in enumerate(lines, first):
                if line >= height - 2:
                    self.safe_add_str(line, LEFT_BORDER_OFFSET, "[...]")
                    return
                column = LEFT_BORDER_OFFSET
                for text, attr in pieces:
                    self.safe_add_str(line, column, text, attr)
                    column += len(text)

        self.alert(write, title)

    def alert_remote_control_reply(self, reply: Any) -> None:
        """Show what workers answered."""
        lines = [
            [(f"{host}: ", curses.A_BOLD), *answer_of(response)]
            for each in reply or ()
            for host, response in each.items()
        ]
        if not lines:
            lines = [[("No replies received in 1s deadline.", curses.A_BOLD | curses.color_pair(RED))]]
        self._page("Remote Control Command Replies", lines)

    def selection_info(self) -> None:
        """Show what is known of the selected task."""
        task = self._selection()
        if task is None:
            return
        info = task.info(extra=["state"])
        lines: list[Sequence[tuple[str, int]]] = []
        for name in dict.fromkeys(("args", "kwargs", *info)):
            first, *rest = wrap(str(info.get(name)), max(self.screen_width - len(name) - 8, 10)) or [""]
            lines.append([(f"{name}: ", curses.A_BOLD), (first, curses.A_NORMAL)])
            lines += [[(f"    {line}", curses.A_NORMAL)] for line in rest]
        self._page(f"Task details for {self.selected_task}", lines)

    def selection_traceback(self) -> None:
        """Show the traceback of the selected task, if it failed."""
        task = self._selection()
        if task is None:
            return
        if task.state not in states.EXCEPTION_STATES:
            curses.beep()
            return
        lines = [[(line, curses.A_NORMAL)] for line in (task.traceback or "").split("\n")]
        self._page(f"Task Exception Traceback for {self.selected_task}", lines)

    def selection_result(self) -> None:
        """Show the result of the selected task."""
        task = self._selection()
        if task is None:
            return
        text = str(task.result or task.exception or "")
        lines = [[(line, curses.A_NORMAL)] for line in wrap(text, max(self.screen_width - 8, 10))]
        self._page(f"Task Result for {self.selected_task}", lines)


def answer_of(response: Mapping[str, Any]) -> list[tuple[str, int]]:
    """A worker's answer with its colour."""
    if "error" in response:
        return [(str(response["error"]), curses.color_pair(RED))]
    return [(str(response.get("ok", "")), curses.color_pair(GREEN))]


class DisplayThread(threading.Thread):
    """Draws until :attr:`shutdown` is set."""

    def __init__(self, display: Any) -> None:
        super().__init__(name="celery-events", daemon=True)
        self.display = display
        self.shutdown = False

    def run(self) -> None:
        """Draw."""
        while not self.shutdown:
            self.display.draw()
            self.display.nap()


def evtop(app: Any = None) -> None:
    """Show the cluster until interrupted, connecting again as often as it takes."""
    app = _state.app_or_default(app)
    state = app.events.State()
    display = CursesMonitor(state, app)
    display.init_screen()
    refresher = DisplayThread(display)
    refresher.start()
    said: list[str] = []
    try:
        receive(
            app,
            state.event,
            lambda url, error, seconds: said.append(f"Cannot connect to {url}: {error}"),
            lambda error: said.append(f"Connection lost: {error!r}"),
        )
    except (KeyboardInterrupt, SystemExit):
        return
    finally:
        refresher.shutdown = display.closing = True
        refresher.join()
        display.resetscreen()
        # Written while the screen was ours, these lines would have destroyed it.
        for line in said[-10:]:
            print(line, file=sys.stderr)


if __name__ == "__main__":
    evtop()
