"""The node-local bus: ZeroMQ pub/sub, one publisher per process, states and never events (DESIGN §3).

Start with `ipc.topics` (what is said), then `ipc.bus` (no asyncio) or `ipc.aio` (asyncio).
"""
