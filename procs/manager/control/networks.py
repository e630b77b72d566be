"""Networks, as far as one can look at them (reference manager §5.7)."""

from __future__ import annotations

from typing import Any

from procs.manager.control.filters import labels_match, one_of, starts_with
from procs.manager.control.ports import Ports
from procs.manager.status import invalid_argument, not_found
from swarm.api import control_pb2
from swarm.api.objects_pb2 import Network

# ruff: noqa: N802, ARG002  (gRPC's method names and arguments)


class NetworkMethods(Ports):
    """GetNetwork and ListNetworks."""

    async def GetNetwork(self, request: control_pb2.GetNetworkRequest, context: Any) -> control_pb2.GetNetworkResponse:
        if not request.network_id:
            raise invalid_argument()
        network = self._store.get(Network, request.network_id)
        if network is None:
            raise not_found(f"network {request.network_id} not found")
        return control_pb2.GetNetworkResponse(network=network)

    async def ListNetworks(
        self, request: control_pb2.ListNetworksRequest, context: Any
    ) -> control_pb2.ListNetworksResponse:
        filters = request.filters
        return control_pb2.ListNetworksResponse(
            networks=[
                network
                for network in self._store.find(Network)
                if one_of(filters.names, network.spec.annotations.name)
                and starts_with(filters.name_prefixes, network.spec.annotations.name)
                and starts_with(filters.id_prefixes, network.id)
                and labels_match(filters.labels, network.spec.annotations.labels)
            ]
        )
