"""Waiting until a CA has signed a request (reference/node-and-ca §5.5, "Client rule").

Imports grpc: whoever imports this module does so late.
"""

from __future__ import annotations

import asyncio
import logging
import random

import grpc
import grpc.aio

from swarm.api import ca_pb2, ca_pb2_grpc, types_pb2
from swarm.errors import BadInput, Refused, SwarmvisorError
from swarm.pki import privatekey
from swarm.pki.certificate import parse_bundle
from swarm.pki.chain import validate_chain
from swarm.pki.credentials import Credentials, make_credentials

CALL_TIMEOUT = 5.0
"""Seconds for each call."""
_POLL_CAP = 30.0

_FINAL = (types_pb2.IssuanceStatus.ISSUED, types_pb2.IssuanceStatus.ROTATE)


class NotSigned(SwarmvisorError):
    """The managers took the request, but the CA cannot sign for now."""


class RequestFailed(Refused):
    """The CA will never sign this request (SwarmKit would poll for ever)."""


async def signed(
    ca: ca_pb2_grpc.NodeCAAsyncStub,
    node_id: str,
    csr: bytes,
    log: logging.Logger | logging.LoggerAdapter[logging.Logger],
) -> bytes:
    """The certificate of `node_id` once its record holds this very CSR, signed. The caller bounds the time.

    Raises NotSigned, RequestFailed, BadInput for an answer without certificate, AioRpcError but for deadlines.
    """
    question = ca_pb2.NodeCertificateStatusRequest(node_id=node_id)
    polls = 0
    while True:
        try:
            answer = await ca.NodeCertificateStatus(question, timeout=CALL_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            log.debug("not signed yet")
        else:
            if answer.certificate.csr == csr:
                if answer.status.state in _FINAL:
                    if not answer.certificate.certificate:
                        raise BadInput("no certificate in CertificateStatus response")
                    return answer.certificate.certificate
                if answer.status.state == types_pb2.IssuanceStatus.FAILED:
                    raise RequestFailed(f"the swarm's CA refused the request: {answer.status.err}")
                if answer.status.err:
                    raise NotSigned(f"the swarm's CA cannot sign now: {answer.status.err}")
        polls += 1
        # The server blocks until the record is final; this bounds the calls where it does not.
        await asyncio.sleep(random.uniform(0.0, min(_POLL_CAP, 1.0 + 2.0 ** min(polls - 1, 10))))


def check_issued(held: Credentials, certificate_pem: bytes, key_pem: bytes) -> Credentials:
    """Credentials of what was issued. Raises BadInput unless it verifies, fits the key and names the same node."""
    chain = validate_chain(parse_bundle(held.root_pem), certificate_pem)
    if chain.leaf.public_key != privatekey.public_key_info(privatekey.load_pem(key_pem)):
        raise BadInput("the certificate that was issued is not for the key that asked")
    issued = make_credentials(chain, certificate_pem, key_pem, held.root_pem)
    if (issued.node_id, issued.cluster_id) != (held.node_id, held.cluster_id):
        raise BadInput(f"the certificate that was issued is for node {issued.node_id} of swarm {issued.cluster_id}")
    return issued
