"""Health: whether the parts that peers ask for are serving (reference agent-and-dispatcher §7.3)."""

from __future__ import annotations

from typing import Any

from procs.manager.status import not_found
from swarm.api import health_pb2, health_pb2_grpc

RAFT = "Raft"
"""Asked by other managers, before they join or forward."""
CONTROL_API = "ControlAPI"
"""Asked by this node's own processes."""

_Answer = health_pb2.HealthCheckResponse


class HealthService(health_pb2_grpc.HealthServicer):
    """Answers from a table; what is not in it is unknown, and "" is the process itself."""

    def __init__(self) -> None:
        self._serving = {"": True, RAFT: False, CONTROL_API: False}

    def set(self, service: str, serving: bool) -> None:
        """Say whether `service` serves from now on."""
        self._serving[service] = serving

    async def Check(  # noqa: N802  (gRPC's name)
        self,
        request: health_pb2.HealthCheckRequest,
        context: Any,  # noqa: ARG002
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._serving:
            raise not_found("unknown service")
        serving = self._serving[request.service]
        return _Answer(status=_Answer.SERVING if serving else _Answer.NOT_SERVING)
