"""`make bench`: the figures that the issues ask for, beside the peers' and our aims.

Absolute times do not carry to another machine; the peers' were measured on one 2-core machine, swarmd / dockerd.
"""

from __future__ import annotations

from tests.bench import bus, joining, node, roles


def main() -> None:
    print(f"{'what':48} {'here':24} {'swarmd / dockerd':26} aim")
    for part in (node, joining, roles):
        for what, ours, peers, aim in part.report():
            print(f"{what:48} {ours:24} {peers:26} {aim}", flush=True)
    print("\nbus")
    bus.main()


if __name__ == "__main__":
    main()
