"""One end of a spliced connection, over real TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl

from procs.manager.gateway.splice import End
from procs.manager.gateway.tls import server_context
from tests.tools.authority import Authority


async def test_an_end_that_was_closed_twice_can_still_be_aborted_when_its_peer_never_answers() -> None:
    authority = Authority()
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.setblocking(False)
    loop = asyncio.get_running_loop()
    end, gone = End(), asyncio.Event()
    context = ssl.create_default_context(cadata=authority.root.certs.decode())
    context.set_alpn_protocols(["h2"])
    own = authority.issue("manager")
    served = server_context(own.certificate_pem, own.key_pem, own.root_pem)
    welcome = loop.create_task(loop.connect_accepted_socket(lambda: end, near, ssl=served))
    peer, _ = await loop.create_connection(asyncio.Protocol, sock=far, ssl=context, server_hostname="swarm-manager")
    await welcome
    peer.pause_reading()  # it never answers the goodbye of TLS
    end.tie(End(), gone.set)
    end.close()
    end.close()
    end.abort()
    async with asyncio.timeout(5):
        await gone.wait()
    peer.abort()
    await asyncio.sleep(0)
