"""Who does the work of a study: this process, or processes that joblib reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any

from . import errors
from .checks import whole

if TYPE_CHECKING:
    from .worker import Looked, Shard, Work

Run = Callable[["Work", Sequence["Shard"]], Iterator[Any]]  # gives each shard's numbers and values, in any order


def by_joblib(jobs: int | None) -> bool:
    """Whether other processes do the work. Raises BadValue."""
    from joblib import effective_n_jobs
    from joblib.parallel import get_active_backend

    if jobs is not None and not whole(jobs):
        raise errors.BadValue(
            "jobs {jobs!r} cannot be used: give a number of processes, or -1 for one on each core.", jobs=jobs
        )
    backend = type(get_active_backend()[0])
    if not backend.__module__.endswith("_parallel_backends"):  # a cluster
        return True
    return effective_n_jobs(jobs) > 1 and backend.__name__ not in ("ThreadingBackend", "SequentialBackend")


def end_old_processes() -> None:
    """joblib's processes outlive a study, with the modules that they imported then: new ones read the files again."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown()


def look(jobs: int | None, work: Work, prompts: Any, target: Any) -> Looked:
    """One process looks at the model, the prompts and the target."""
    return next(_calls(jobs, "look", work, [(prompts, target)]))


def run(jobs: int | None, work: Work, shards: Sequence[Shard]) -> Iterator[Any]:
    return _calls(jobs, "run", work, shards)


def _calls(jobs: int | None, kind: str, work: Work, given: Sequence[Any]) -> Iterator[Any]:
    import cloudpickle
    from joblib import Parallel, delayed, effective_n_jobs
    from joblib.parallel import get_active_backend

    from . import worker

    common = cloudpickle.dumps(work)
    # Results as they come; where a backend has them only when all are there, a few at a time.
    ready = get_active_backend()[0].supports_return_generator
    some = len(given) if ready else 4 * effective_n_jobs(jobs)
    parallel = Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered" if ready else "list")
    try:
        for start in range(0, len(given), some):
            yield from parallel(
                delayed(worker.there)(kind, common, cloudpickle.dumps(one)) for one in given[start : start + some]
            )
    except Exception as error:
        if isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker":  # the second is Dask's
            raise errors.WorkerDied(
                "a process that worked for the study was killed, most often because memory ran out: use fewer "
                "jobs or a smaller chunk=, and call it again. What was finished is kept."
            ) from error
        raise
