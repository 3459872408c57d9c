"""Generates the Python modules of protos/, each beside its .proto file.

protoc's Python output imports by the path under --proto_path, so protos/ is both the import root and the output
directory. Messages come with type stubs; only files named *_service.proto get gRPC code.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


class ProtocFailed(Exception):
    """protoc refused the .proto files; it has said why on stderr."""


def generate(root: Path) -> None:
    """Generate every module under `root` and remove those whose .proto file is gone.

    Raises:
        ProtocFailed: nothing is known about the generated files then.
    """
    messages = sorted(root.rglob("*.proto"))
    services = [path for path in messages if path.stem.endswith("_service")]
    for stale in _generated(root) - {path.with_name(path.stem + suffix) for path in messages for suffix in SUFFIXES}:
        stale.unlink()
    _protoc(root, messages, f"--python_out={root}", _plugin("mypy"), f"--mypy_out=quiet:{root}")
    # fmt: off
    _protoc(
        root, services,
        f"--grpc_python_out={root}",
        _plugin("mypy_grpc"), f"--mypy_grpc_out=only_async,quiet:{root}",
    )
    # fmt: on


def _generated(root: Path) -> set[Path]:
    return {path for suffix in SUFFIXES for path in root.rglob(f"*{suffix}")}


def _protoc(root: Path, paths: list[Path], *options: str) -> None:
    well_known = files("grpc_tools").joinpath("_proto")
    status = protoc.main(["protoc", f"--proto_path={root}", f"--proto_path={well_known}", *options, *map(str, paths)])
    if status != 0:
        raise ProtocFailed(f"protoc: exit status {status}")


def _plugin(name: str) -> str:
    """Return the option that tells protoc where the plugin is: beside this Python, or else in PATH."""
    program = f"protoc-gen-{name}"
    directories = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = shutil.which(program, path=directories)
    if found is None:
        raise ProtocFailed(f"{program}: not found; it is part of mypy-protobuf")
    return f"--plugin={program}={found}"


def main() -> None:
    """Generate the modules of this tree."""
    generate(Path(__file__).parents[2] / "protos")


if __name__ == "__main__":
    main()
