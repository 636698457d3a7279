"""Consumer step: an agent of the package cell, for projects that name one in ``worker_agent``.

Started by the consumer after the loop's other steps; it owns nothing but the agent.
"""

from __future__ import annotations

from typing import Any

from celery_clone.bootsteps import StartStopStep

__all__ = ("Agent",)


class Agent(StartStopStep):
    """Makes the agent and has it live as long as the connection."""

    name = "celery.worker.consumer.agent.Agent"
    conditional = True
    requires = ("celery_clone.worker.consumer.connection:Connection",)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        self.agent_cls = self.enabled = c.app.conf.worker_agent
        c.agent = None
        super().__init__(c, **kwargs)

    def create(self, c: Any) -> Any:
        c.agent = self.instantiate(self.agent_cls, c.connection)
        return c.agent

    def start(self, c: Any) -> None:
        # When it was made there was no connection yet, and after a reconnect there is another one.
        self.obj.connection = c.connection
        self.obj.start()
