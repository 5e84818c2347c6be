"""What a study costs on top of its sweeps: python tools/bench_study.py

Prints the table of docs/speed.md: for this process, two processes and a Dask cluster of two workers, the time until the first
shard is there, and the time of each further shard. The shards are as small as can be (one prompt of three tokens, one edit), so
that nearly all of it is overhead. Needs the extra "study", and Dask for the last column.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from time import perf_counter
from typing import Any

import torch

from helpers import load_model, scale_block, study, sweep_edits, sweep_heads

SHARDS = 50
ROUNDS = 2


@contextmanager
def dask() -> Iterator[None]:
    import joblib
    from distributed import Client, LocalCluster

    with tempfile.TemporaryDirectory() as folder:
        with (
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=folder) as cluster,
            Client(cluster),
            joblib.parallel_config(backend="dask"),
        ):
            yield


def prompts(number: int, length: int, vocabulary: int, seed: int) -> torch.Tensor:
    return torch.randint(2, vocabulary, (number, length), generator=torch.Generator().manual_seed(seed))


def seconds(jobs: int | None, ids: torch.Tensor) -> tuple[float, float]:
    """Until the first shard is there, and for each of the others."""
    told: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        begun = perf_counter()
        study(
            sweep_edits, "pocket", ids, 7, edits=[scale_block(1, 0.5)], folder=folder, jobs=jobs, shard=1,
            progress=lambda done, total: told.append(perf_counter()),
        )  # fmt: skip
    return told[0] - begun, (told[-1] - told[0]) / (len(told) - 1)


def main() -> None:
    lm = load_model()
    engines: dict[str, tuple[Any, int | None]] = {
        "this process": (nullcontext, 1),
        "two processes": (nullcontext, 2),
        "Dask, two workers": (dask, None),
    }
    rows = []
    for name, (context, jobs) in engines.items():
        with context():
            cold, _ = seconds(jobs, prompts(2, 3, lm.vocabulary, 0))
            each = [seconds(jobs, prompts(SHARDS, 3, lm.vocabulary, seed)) for seed in range(1, ROUNDS + 1)]
        rows.append((name, cold, min(first for first, _ in each), 1000 * min(one for _, one in each)))
    plain = []
    for _ in range(ROUNDS * 10):
        begun = perf_counter()
        sweep_edits(lm, prompts(1, 3, lm.vocabulary, 1), [scale_block(1, 0.5)], 7)
        plain.append(perf_counter() - begun)
    begun = perf_counter()
    sweep_heads(lm, prompts(32, 12, lm.vocabulary, 1), 7)
    whole = perf_counter() - begun
    print("| | first shard of a new study, s | of the next study, s | each further shard, ms |")
    print("| --- | ---: | ---: | ---: |")
    for name, cold, warm, each_ms in rows:
        print(f"| {name} | {cold:.1f} | {warm:.1f} | {each_ms:.0f} |")
    print(
        f"\nOne such sweep alone takes {1000 * min(plain):.0f} ms; 144 heads on 32 prompts of 12 tokens {whole:.1f} s."
    )


if __name__ == "__main__":
    main()
