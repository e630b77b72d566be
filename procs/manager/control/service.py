"""The Control API: all 43 methods, of which this version serves those of nodes, services, tasks and clusters."""

from __future__ import annotations

from procs.manager.control.clusters import ClusterMethods
from procs.manager.control.later import LaterMethods
from procs.manager.control.networks import NetworkMethods
from procs.manager.control.nodes import NodeMethods
from procs.manager.control.services import ServiceMethods
from procs.manager.control.tasks import TaskMethods
from swarm.api import control_pb2_grpc


class ControlService(
    NodeMethods,
    TaskMethods,
    ServiceMethods,
    ClusterMethods,
    NetworkMethods,
    LaterMethods,
    control_pb2_grpc.ControlServicer,
):
    """Refusals are raised as `procs.manager.status.Status`, or as the store's own errors (code UNKNOWN)."""
