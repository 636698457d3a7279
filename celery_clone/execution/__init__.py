"""The three value types of running a task: its context, how it ended, when its message is settled.

Used by ``app.trace``, ``app.task``, ``backends`` and ``worker``; import from the submodules.
"""
