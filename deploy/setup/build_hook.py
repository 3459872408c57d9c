"""Makes the generated protobuf modules part of the wheel, and of an editable install."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parents[2]))  # a build has its own tree on no path

from deploy.setup import protos


class ProtosHook(BuildHookInterface[Any]):
    """Generates before the files of the wheel are collected."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        """Generate into protos/, from where `artifacts` in pyproject.toml picks the modules up."""
        protos.generate(Path(self.root, "protos"))
