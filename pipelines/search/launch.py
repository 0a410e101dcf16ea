"""One launch of a search on a connected cluster: Ray Tune places the trials, every end is written down."""

import logging
import os
import shutil
import sys
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from cluster.connect import prepare_data
from pipelines.own_code import use_own_code
from pipelines.preflight import CheckedData
from pipelines.search.config import SearchTree, Stages
from pipelines.search.journal import Journal, Record, write_table
from pipelines.search.progress import SearchProgress
from pipelines.search.resources import TrialResources
from pipelines.search.stages import ACCURACY, Claims, history_of, steps_of
from pipelines.storage.atomic import write_json

SPENT = "spent.json"
LINGER_SECONDS = 10.0  # Ray frees a Ray Train run's workers some seconds after the trial that started it


class Launch:
    """One launch of a search on a connected cluster."""

    def __init__(
        self,
        tree: SearchTree,
        journal: Journal,
        stages: Stages,
        checked: CheckedData,
        resources: TrialResources,
        records: list[Record],
        limit: int | None,
        spent: float,
        left: float | None,
    ) -> None:
        self.tree, self.journal, self.stages, self.checked = tree, journal, stages, checked
        self.code = use_own_code(journal.space.config)
        self.resources, self.limit, self.spent, self.left = resources, limit, spent, left
        self.records = {r.number: r for r in records}
        self.started = time.monotonic()
        self.claims: Any = None
        self.progress: SearchProgress | None = None

    def go(self, console: Console) -> None:
        """All trials that are left, or as many as the time allows."""
        for name, value in (
            ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1"),
            ("TUNE_DISABLE_SIGINT_HANDLER", "1"),
            ("TUNE_PRINT_ALL_TRIAL_ERRORS", "0"),
            ("TUNE_FORCE_TRIAL_CLEANUP_S", "10"),
            ("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1"),  # a trial's last report holds its end alone
            ("RAY_AIR_NEW_OUTPUT", "0"),  # which shows a banner however quiet it is told to be
        ):
            os.environ.setdefault(name, value)
        import ray
        from ray import tune
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from pipelines.search.suggest import JournaledSearcher, make_sampler
        from pipelines.search.trials import run_trial

        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        scratch = self.journal.folder / ".ray"  # Tune's own files; a search goes on without them
        shutil.rmtree(scratch, ignore_errors=True)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.claims = ray.remote(Claims).options(num_cpus=0, scheduling_strategy=here).remote()
        first = max(self.records, default=-1) + 1
        open_numbers = [r.number for r in self.records.values() if r.status == "open"]
        searcher = JournaledSearcher(
            self.journal,
            make_sampler(
                self.tree.search, self.journal.space, self.journal.objectives, self.tree.seed, first
            ),
            open_numbers=open_numbers,
            first=first,
            limit=self.limit,
            conclude=self.conclude,
        )
        searcher.recall(r for r in self.records.values() if r.status != "open")
        left = -1 if self.limit is None else len(open_numbers) + max(0, self.limit - first)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_trial, shared=self._shared()), self.resources.request
            ),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=self._scheduler(),
                num_samples=left,
                max_concurrent_trials=self.resources.concurrent,
                reuse_actors=not self.resources.nested,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(scratch),
                stop=self._stopper(),
                callbacks=[self._watcher()],
                failure_config=tune.FailureConfig(max_failures=self.tree.cluster.max_failures),
                verbose=0,
            ),
        )
        ended = [r for r in self.records.values() if r.status != "open"]
        with SearchProgress(self.limit, ended, self.journal.objectives, console) as self.progress:
            try:
                tuner.fit()
            finally:
                self._write_spent()
                with suppress(ray.exceptions.RayError):
                    ray.get(self.claims.close.remote(), timeout=10)
                ray.kill(self.claims)
                shutil.rmtree(scratch, ignore_errors=True)

    def conclude(self, number: int, result: dict[str, Any], error: bool) -> Record:
        """A trial has ended: complete its record, and rewrite the table."""
        record = self.journal.read(number)
        if record.status == "open" and error:
            times = self.tree.cluster.max_failures + 1
            record.status = "failed"
            record.reason = f"lost its process or node {times} times (cluster.max_failures)"
            self.journal.write(record)
        elif record.status == "open":
            record.status = "stopped"
            record.records = int(result.get("training_iteration", 0))
            record.metrics = {"accuracy": float(result[ACCURACY])}
            record.reason = f"asha stopped it after {record.records} epochs and pruning steps"
            self.journal.write(record)
        self.records[number] = record
        write_table(self.journal, [self.records[n] for n in sorted(self.records)])
        self._write_spent()
        if self.progress is not None:
            self.progress.ended(record)
        return record

    def _shared(self) -> Any:
        from pipelines.search.trials import Shared

        train, test = self._rows()
        return Shared(
            journal=self.journal,
            stages=self.stages,
            nested=self.resources.nested,
            asha=self.tree.search.scheduler == "asha",
            checked=self.checked,
            code=self.code,
            train=train,
            test=test,
            claims=self.claims,
            command=sys.argv,
        )

    def _rows(self) -> tuple[Any, Any]:
        """All rows, for the object store; ``None`` where each trial reads row groups as it goes on."""
        if self.journal.space.config.data.reading == "shards":
            return None, None
        if self.resources.nested:
            from pipelines.training.stored_rows import load_rows as load

            prepare_data()
        else:
            from pipelines.training.local import load_rows as load
        return load(self.checked.train), load(self.checked.test)

    def _scheduler(self) -> Any:
        """asha, knowing the trials of earlier launches; ``None`` for none."""
        settings = self.tree.search
        if settings.scheduler == "none":
            return None
        from ray.tune.schedulers import ASHAScheduler

        scheduler = ASHAScheduler(
            metric=ACCURACY,
            mode="max",
            max_t=steps_of(self.journal.space.config, self.stages),
            grace_period=settings.grace_epochs,
            reduction_factor=settings.reduction,
            stop_last_trials=False,
        )
        controller: Any = None  # asha asks nothing of it
        for record in self.records.values():
            if record.status not in ("finished", "stopped"):
                continue
            trial: Any = SimpleNamespace(trial_id=f"earlier-{record.number}")  # all that asha asks for
            scheduler.on_trial_add(controller, trial)
            history = history_of(self.journal.stage_folders(record))
            for i, epoch in enumerate(history[: record.records or None], 1):
                scheduler.on_trial_result(
                    controller, trial, {ACCURACY: epoch[ACCURACY], "training_iteration": i}
                )
        return scheduler

    def _stopper(self) -> Any:
        from ray import tune

        deadline = None if self.left is None else time.monotonic() + self.left

        class Deadline(tune.Stopper):
            """The wall-time budget."""

            def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
                return False

            def stop_all(self) -> bool:
                return deadline is not None and time.monotonic() > deadline

        return Deadline()

    def _watcher(self) -> Any:
        from ray import tune

        claims, linger = self.claims, LINGER_SECONDS if self.resources.nested else 0.0

        class FreeClaims(tune.Callback):
            """A trial that is gone, for good or to be started again, works on no stage any more."""

            def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                claims.drop.remote(trial.trial_id, linger, for_good=True)

            def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                claims.drop.remote(trial.trial_id, linger, for_good=False)

            on_trial_error = on_trial_complete

        return FreeClaims()

    def _write_spent(self) -> None:
        seconds = self.spent + time.monotonic() - self.started
        write_json(self.journal.folder / SPENT, {"seconds": round(seconds, 1)})
