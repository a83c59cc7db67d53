"""Completions from simulated workers to a learner through Ray actors, as tina-bench cluster does it.

    pip install -r bench/peers/requirements-ray.txt
    python bench/peers/hand_off_ray.py --workers 100

One actor coordinates, one learns; the workers are coroutines (one a slot) in a few actors, since a Ray
actor is a process. A worker's call carries its completion (512 token ids and log-probs, NumPy arrays) and
returns the next sample; a batch goes to the learner in one call. Nothing is scored and nothing is written
to a disk, which is less work than ours.

Prints one JSON object, with the keys that `tina-bench side cluster` prints.
"""

import argparse
import asyncio
import json
import os
import sys
import time

# Tells the benchmark that the peer is not installed.
NOT_INSTALLED = 3

try:
    import numpy as np
    import ray
except ImportError as error:
    print(f"{error} (pip install -r bench/peers/requirements-ray.txt)", file=sys.stderr)
    sys.exit(NOT_INSTALLED)


def resident(field):
    """KiB of this process's memory."""
    with open("/proc/self/status") as status:
        (line,) = [line for line in status if line.startswith(field)]
    return int(line.split()[1])


class Coordinator:
    """Takes a completion, gives a sample, hands on batches."""

    def __init__(self, learner, batch, steps):
        self.learner, self.batch, self.steps = learner, batch, steps
        self.waiting, self.step, self.given = [], 1, 0
        self.marks, self.memory = [], resident("VmRSS:")

    async def ready(self, worker):
        """A slot is there."""
        return worker

    async def grown(self):
        """KiB since the beginning."""
        return resident("VmRSS:") - self.memory

    async def exchange(self, worker, completion):
        """The next sample, or None when the run is over."""
        if completion is not None:
            self.waiting.append((worker, *completion))
        if len(self.waiting) >= self.batch and self.step <= self.steps:
            batch, self.waiting = self.waiting, []
            at, count = await self.learner.learn.remote(batch)
            self.marks.append((at, count, time.process_time()))
            self.step += 1
        if self.step > self.steps:
            return None
        self.given += 1
        return self.step, self.given

    async def report(self):
        """What was seen."""
        return self.marks, resident("VmHWM:")


class Learner:
    """Takes batches."""

    def learn(self, batch):
        """When it had the batch, and how much that was."""
        return time.monotonic(), len(batch)


class Workers:
    """Many workers in one process."""

    def __init__(self, coordinator, first, count, slots, tokens, decode, first_step):
        self.coordinator, self.decode, self.first_step = coordinator, decode, first_step
        self.slots = [(first + at // slots, at) for at in range(count * slots)]
        random = np.random.default_rng(first)
        self.completions = [
            (
                random.integers(256, 32000, tokens, dtype=np.uint32),
                -random.random(tokens, dtype=np.float32),
            )
            for _ in range(64)
        ]
        self.latencies = []

    async def ready(self):
        """All slots are known to the coordinator."""
        await asyncio.gather(*[self.coordinator.ready.remote(w) for w, _ in self.slots])

    async def work(self):
        """Until the run is over; the latencies."""
        await asyncio.gather(*[self.slot(worker, at) for worker, at in self.slots])
        return self.latencies

    async def slot(self, worker, at):
        """One slot."""
        completion, random = None, np.random.default_rng(at)
        while True:
            since = time.monotonic()
            sample = await self.coordinator.exchange.remote(worker, completion)
            if sample is None:
                return
            step, number = sample
            if completion is not None and step >= self.first_step:
                self.latencies.append(time.monotonic() - since)
            if self.decode:
                await asyncio.sleep(self.decode * (0.5 + random.random()))
            completion = self.completions[number % len(self.completions)]


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--workers", type=int, default=100)
    options.add_argument("--slots", type=int, default=4)
    options.add_argument("--actors", type=int, default=2)
    options.add_argument("--tokens", type=int, default=512)
    options.add_argument("--batch", type=int, default=8000)
    options.add_argument("--steps", type=int, default=6)
    options.add_argument("--first-step", type=int, default=3)
    options.add_argument("--decode-us", type=int, default=0)
    args = options.parse_args()

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=args.actors + 2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    many = args.workers * args.slots + 16
    learner = ray.remote(Learner).remote()
    coordinator = ray.remote(max_concurrency=many)(Coordinator).remote(
        learner, args.batch, args.steps
    )
    actors = min(args.actors, args.workers)
    share = [args.workers * at // actors for at in range(actors + 1)]
    workers = [
        ray.remote(Workers).remote(
            coordinator,
            first,
            end - first,
            args.slots,
            args.tokens,
            args.decode_us / 1e6,
            args.first_step,
        )
        for first, end in zip(share, share[1:])
    ]
    ray.get([some.ready.remote() for some in workers])
    grown = ray.get(coordinator.grown.remote())
    latencies = sorted(sum(ray.get([some.work.remote() for some in workers]), []))
    marks, peak = ray.get(coordinator.report.remote())
    ray.shutdown()

    timed = marks[args.first_step - 2 :]
    completions = sum(count for _, count, _ in timed[1:])

    def percentile(share):
        return latencies[int(share * (len(latencies) - 1))] * 1e3

    report = {
        "completions_per_second": completions / (timed[-1][0] - timed[0][0]),
        "completions": completions,
        "dispatch_p50_ms": percentile(0.5),
        "dispatch_p99_ms": percentile(0.99),
        "cpu_us_per_completion": (timed[-1][2] - timed[0][2]) * 1e6 / completions,
        "kib_per_worker": grown / args.workers,
        "peak_mib": peak / 1024,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
