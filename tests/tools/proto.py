"""Regenerates the protobuf code of `swarm/api` (`make proto`).

Messages get `_pb2.py` and typed stubs; only files with services get `_pb2_grpc.py`.
"""

from __future__ import annotations

import re
import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]


def generate(out: Path, root: Path = ROOT) -> None:
    """Write the generated code of every .proto below `root` into `out` (same relative paths)."""
    protos = sorted((root / "swarm" / "api").glob("*.proto"))
    includes = [f"-I{root}", f"-I{files('grpc_tools') / '_proto'}"]
    names = [str(p.relative_to(root)) for p in protos]
    services = [n for p, n in zip(protos, names, strict=True) if re.search(r"^service ", p.read_text(), re.MULTILINE)]
    for flags, inputs in (
        (["--python_out", "--mypy_out"], names),
        (["--grpc_python_out", "--mypy_grpc_out"], services),
    ):
        # protoc finds the mypy plug-ins on PATH: beside the interpreter.
        plugins = [
            f"--plugin=protoc-gen-{name}={Path(sys.executable).with_name('protoc-gen-' + name)}"
            for name in ("mypy", "mypy_grpc")
        ]
        args = ["protoc", *includes, *plugins, *(f"{flag}={out}" for flag in flags), *inputs]
        if protoc.main(args) != 0:
            raise SystemExit("protoc failed; its message is above")


if __name__ == "__main__":
    generate(ROOT)
