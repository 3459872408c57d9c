"""The command `ferry-agent`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import sys
from pathlib import Path

from agent import app
from agent.capabilities import keep_capabilities_to_ourselves
from agent.config import AgentConfig, load
from common.errors import FerryError
from common.telemetry import SpanBuffer, telemetry

# New objects between two collections; Python's own 700 are made several times while a guest waits for its hand-over.
_OBJECTS_A_COLLECTION = 50_000


def main() -> None:
    """Serve as the agent of this host until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="ferry-agent", description="The agent of one host: drives its QEMUs, serves gRPC.")
    parser.add_argument("--config", type=Path, help="TOML file; each setting can be given as FERRY_AGENT_<SETTING> too")
    arguments = parser.parse_args()
    try:
        config = load(arguments.config)
        keep_capabilities_to_ourselves()
        gc.freeze()  # what is imported stays, and need not be looked at again
        gc.set_threshold(_OBJECTS_A_COLLECTION)
        with telemetry("ferry-agent", config.name, otlp_endpoint=config.otlp_endpoint, log_level=config.log_level) as spans:
            asyncio.run(_serve(config, spans))
    except FerryError as error:
        sys.exit(f"ferry-agent: {error.text}")


async def _serve(config: AgentConfig, spans: SpanBuffer) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await app.run(config, spans, stopping)


if __name__ == "__main__":
    main()
