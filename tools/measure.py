"""Measure once what a lesson cannot wait for, and store it small: python tools/measure.py [--model smollm2] [--only heads]

Parts: sink, factors, blocks, heads, phrasings, pairs, prices. Each becomes one file in helpers/data/measured, which
`helpers.measurements` reads. Finished steps are kept in .cache/measured, so a run that was killed goes on where it was;
they are used again only for the same weights, the same prompts and the same versions. Seeds are fixed: the same machine
and versions write the same bytes. `--show` prints the findings of the stored files and measures nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from measuring.blocks import measure_blocks, measure_pairs, measure_prices
from measuring.factors import measure_factors
from measuring.findings import findings
from measuring.heads import measure_heads
from measuring.job import OTHER, POCKET, Job
from measuring.phrasings import measure_phrasings
from measuring.sink import measure_sink
from measuring.steps import EDITION, SEED, Steps, sha256_of, versions, weights_of
from tqdm import tqdm

from helpers import HelpersError, load_model
from helpers.measurements import MEASURED_FOLDER, read

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "measured"
MEASURES: dict[str, Callable[[Job, Path], None]] = {
    "sink": measure_sink, "factors": measure_factors, "blocks": measure_blocks, "heads": measure_heads,
    "phrasings": measure_phrasings, "pairs": measure_pairs, "prices": measure_prices,
}  # fmt: skip


def short_name(model: str) -> str:
    """The last part of a model's name, without what a file's name should not hold."""
    return "".join(c if c.isalnum() or c in "._" else "_" for c in Path(model).name)


def job_for(name: str, bar: Callable[[str], object], cache: Path = CACHE) -> Job:
    lm = load_model(name)
    setup = POCKET if name == "pocket" else OTHER
    weights = {"weights": weights_of(lm)}
    key = {"edition": EDITION, "seed": SEED, "dtype": str(lm.dtype), **weights, **versions()}
    folder = cache / f"{short_name(name)}-{sha256_of(key)[:12]}"
    return Job(short_name(name), lm, setup, Steps(folder, key, bar), weights)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="pocket", help="'pocket', 'smollm2', a name on the model hub, or a folder")
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES), help="parts to measure")
    parser.add_argument("--show", action="store_true", help="print what the stored files say, and measure nothing")
    parser.add_argument("--out", type=Path, default=MEASURED_FOLDER, help="folder for the files")
    chosen = parser.parse_args(arguments)
    try:
        name = short_name(chosen.model)
        if not chosen.show:
            with tqdm(chosen.only, unit="part", disable=None) as bar:
                job = job_for(chosen.model, lambda step: bar.set_postfix_str(step))
                for part in bar:
                    bar.set_description(part)
                    job.steps.seconds = 0.0
                    MEASURES[part](job, chosen.out)
                    tqdm.write(f"{name} {part}: {job.steps.seconds:.0f} s of processor time", file=sys.stderr)
        for part in chosen.only:
            print(f"\n{name}, {part}")
            for line in findings(read(chosen.out, name, part)):
                print(f"- {line}")
    except HelpersError as mistake:
        print(f"{type(mistake).__name__}: {mistake}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
