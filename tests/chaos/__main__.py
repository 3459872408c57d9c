"""A randomised fault injector on real QEMUs: `make chaos [ROUNDS=500] [SEED=]`.

Every round is a move of a guest between two hosts with a fault at some moment, judged from outside. Needs root.
`python -m tests.chaos --seed S --round N` runs one round again.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.chaos.case import draw

KEPT = Path(__file__).parents[2] / ".cache" / "chaos"


def main() -> int:
    """Run the rounds in several workers; exit code 1 when a round found something."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=500, help="how many rounds [default: 500]")
    parser.add_argument("--seed", type=int, help="which cases [default: another one each time]")
    parser.add_argument("--first", type=int, default=0, help="number of the first round [default: 0]")
    parser.add_argument("--round", type=int, action="append", help="run this round only; may be given several times")
    parser.add_argument("--jobs", type=int, default=2, help="rounds at a time [default: 2]")
    parser.add_argument("--only", default="", help="only rounds whose title has this text")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("make chaos: network namespaces and small file systems need root", file=sys.stderr)
        return 2
    seed = random.SystemRandom().randrange(1, 1_000_000) if options.seed is None else options.seed
    numbers = options.round or range(options.first, options.first + options.rounds)
    chosen = [number for number in numbers if options.only in str(draw(seed, number))]
    return _run(seed, chosen, options.jobs)


def _run(seed: int, numbers: list[int], jobs: int) -> int:
    directory = KEPT / str(seed)
    directory.mkdir(parents=True, exist_ok=True)
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in numbers:
        waiting.put(number)
    results: queue.SimpleQueue[str] = queue.SimpleQueue()
    jobs = min(jobs, len(numbers))
    threads = [threading.Thread(target=_feed, args=(seed, directory, waiting, results), daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    print(f"seed {seed}: {len(numbers)} rounds, {jobs} at a time; findings go to {directory}")
    found, began_s = 0, time.monotonic()
    with (directory / "results.jsonl").open("a") as log:
        done = 0
        while done < len(numbers) and (any(thread.is_alive() for thread in threads) or not results.empty()):
            try:
                line = results.get(timeout=1.0)
            except queue.Empty:
                continue
            done += 1
            log.write(line)
            log.flush()
            result = json.loads(line)
            found += bool(result["wrong"])
            for text in result["wrong"]:
                print(f"round {result['number']}: {result['title']}\n    {text}", flush=True)
            if done % 20 == 0 or done == len(numbers):
                rate = 60 * done / (time.monotonic() - began_s)
                print(f"{done} of {len(numbers)} rounds, {found} with findings, {rate:.0f} a minute", flush=True)
    return 1 if found or done < len(numbers) else 0


def _feed(seed: int, directory: Path, waiting: queue.SimpleQueue[int], results: queue.SimpleQueue[str]) -> None:
    """Give a worker one round at a time; a worker that ends is replaced."""
    while True:
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.worker", str(seed), str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        while True:
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                worker.stdin.close()
                worker.wait()
                return
            try:
                worker.stdin.write(f"{number}\n")
                worker.stdin.flush()
                line = worker.stdout.readline()
            except BrokenPipeError:
                line = ""
            if not line:
                results.put(json.dumps({"number": number, "title": str(draw(seed, number)), "wrong": ["the worker ended"]}) + "\n")
                break
            results.put(line)
        worker.wait()


if __name__ == "__main__":
    sys.exit(main())
