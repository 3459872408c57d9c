"""The command `ferry-coordinator`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import sys
from pathlib import Path

from common.errors import FerryError
from common.telemetry import SpanBuffer, telemetry
from coordinator import app
from coordinator.config import CoordinatorConfig, load


def main() -> None:
    """Coordinate a fleet until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="ferry-coordinator", description="Sequences migrations between the hosts of a fleet.")
    parser.add_argument(
        "--config", type=Path, help="TOML file; each setting but hosts can be given as FERRY_COORDINATOR_<SETTING> too"
    )
    arguments = parser.parse_args()
    try:
        config = load(arguments.config)
        with telemetry(
            "ferry-coordinator", socket.gethostname(), otlp_endpoint=config.otlp_endpoint, log_level=config.log_level
        ) as spans:
            asyncio.run(_serve(config, spans))
    except FerryError as error:
        sys.exit(f"ferry-coordinator: {error.text}")


async def _serve(config: CoordinatorConfig, spans: SpanBuffer) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await app.run(config, spans, stopping)


if __name__ == "__main__":
    main()
