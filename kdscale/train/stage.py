"""One stage from start to finish on one of its processes: `run_stage(root, digest)`, re-entrant.

Called again after whatever ended it, it goes on from the newest whole checkpoint; called on a stage that
is done, it does nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file

from kdscale import atomic, checkpoint, ranks
from kdscale.config.schema import StageSpec
from kdscale.errors import NonFiniteLoss
from kdscale.pipeline.artifacts import Claim, Root, StageFolder
from kdscale.pipeline.profiles import Profiles
from kdscale.trackers.spool import Spool
from kdscale.train.attempts import STATE_EVERY_S, planned_stage
from kdscale.train.build import Parts, build
from kdscale.train.device import device_of_rank, make_deterministic, settle_heap
from kdscale.train.evaluate import Evaluator, Figures
from kdscale.train.failure import leave_record, meter_of, recent_of
from kdscale.train.held import held
from kdscale.train.imported import check_class_order
from kdscale.train.inspect import write_first_look
from kdscale.train.loop import HEARTBEAT_S, Loop, LoopState
from kdscale.train.memory import MemoryOfStage
from kdscale.train.pixels import PixelFigures
from kdscale.train.profiling import Profiler
from kdscale.train.records import attempt_record, demand_expected, link_last, results_of
from kdscale.train.stop import Interrupted, Stop

__all__ = ["Outcome", "run_stage"]

Outcome = Literal["done", "interrupted"]
log = logging.getLogger(__name__)

MOST_ROLLBACKS = 5
"""Batches that `on_nonfinite: rollback` passes over before it gives up."""


def run_stage(root_path: Path, digest: str, stop: Stop | None = None) -> Outcome:
    """Run a training stage on this process; called by all of the stage's ranks.

    Raises:
        StageError: a parent is not done or changed, or another live attempt holds the stage.
        KDScaleError: whatever else ended it; the state file is the caller's to write.
    """
    root = Root.find(root_path)
    folder = planned_stage(root, digest)
    if folder.state().get("state") == "done":
        return "done"
    run = _StageRun(root, folder, stop or Stop())
    with run.memory.told(), held(folder, attempt_record(run.definition, run.spec, run.device)) as run.claim:
        return run.run()


class _StageRun:
    """What one attempt holds while it runs."""

    def __init__(self, root: Root, folder: StageFolder, stop: Stop) -> None:
        definition = folder.definition()
        self.root, self.folder, self.stop = root, folder, stop
        self.digest: str = definition["digest"]
        self.spec = StageSpec.model_validate(definition["spec"])
        self.definition = definition
        self.main = ranks.rank() == 0
        self.device = device_of_rank()
        self.memory = MemoryOfStage(self.spec, self.device)
        self.claim: Claim | None = None
        self._written = 0.0

    # ------------------------------------------------------------------ frame

    def run(self) -> Outcome:
        begun = time.perf_counter()
        make_deterministic(self.spec, self.device)
        parts = build(self.definition, self.root, self.device, alive=self.stop.move)
        self.memory.mark(parts)
        if ranks.broadcast_object(checkpoint.newest(self.folder.checkpoints) is None):
            if not parts.fill_view(0, self.stop, self._filling):
                self._say(state="interrupted", reason=self.stop.reason)
                return "interrupted"
            write_first_look(self.folder.path, parts, self.spec.train, write=self.main)  # before an engine shards it
        if self.spec.student.weights is not None and not self.spec.train.epochs:
            check_class_order(parts, f"stages.{self.spec.name}.student")
        loop = self._begun(parts)
        left = self.total_steps - loop.state.step
        log.info("ready after %.1f s: %d steps to go", time.perf_counter() - begun, left)
        try:
            self._train(parts, loop)
            figures = self._finish(parts, loop)
        except Interrupted as reason:
            self._say(state="interrupted", reason=str(reason), step=loop.state.step)
            return "interrupted"
        finally:
            self.profiler.close()
            if loop.tracker is not None:
                loop.tracker.close()
            parts.train_loader.close()
            checkpoint.settle()
        if figures is None:
            self._say(state="interrupted", reason=self.stop.reason)
            return "interrupted"
        return "done"

    # ------------------------------------------------------------------ loop

    def _begun(self, parts: Parts) -> Loop:
        """The loop, where the newest checkpoint has it."""
        loop = self._loop(parts)
        saved = checkpoint.load(self.folder.checkpoints, self.digest, parts.engine.load)
        if saved is not None:
            loop.restore(saved)
        loop.tracker = self._spool(saved)
        self._note_start(loop.state, saved)
        self.profiler = Profiler(
            Profiles(self.folder.path), len(self.folder.state()["attempts"]), parts.assembled.strategy,
            self.spec.train, self.stop, self.device, loop.checkpoint,
        )  # fmt: skip
        loop.after_step = self.profiler.after_step
        return loop

    def _loop(self, parts: Parts) -> Loop:
        train = self.spec.train
        evaluator = parts.evaluator("val")
        loop = Loop(
            train=train, seed=self.spec.seed, engine=parts.engine, teachers=parts.teachers,
            loader=parts.batches, meter=meter_of(parts),
            tracker=None, device=self.device, stop=self.stop, keep=[k for k in self.definition["keep"] if ":" in k],
            save=lambda state: self._save(parts, loop), validate=None, test=None,
            snapshot=lambda selector: self._snapshot(parts, loop.state.step, selector),
            progress=self._progress, heartbeat=self._heartbeat,
            before_epoch=lambda epoch: parts.fill_view(epoch, self.stop, self._filling),
        )  # fmt: skip
        if evaluator is not None:
            loop.validate = lambda: self._evaluated(parts, loop.state.step, evaluator, train.precision)
        tests = parts.evaluator("test") if self.spec.protocol == "paper" else None
        if tests is not None:
            loop.test = lambda: self._evaluated(parts, loop.state.step, tests, train.precision)
        self.total_steps = train.epochs * parts.train_loader.steps_per_epoch
        self.recent = recent_of(parts)
        loop.note = self.recent.note
        return loop

    def _save(self, parts: Parts, loop: Loop) -> None:
        spool = loop.tracker
        document = loop.saved() | {
            "digest": self.digest,
            "step": loop.state.step,
            "world": ranks.world(),
            "spool": spool.flush() if spool is not None else 0,
        }
        checkpoint.save(
            self.folder.checkpoints,
            document,
            parts.engine.save,
            keep=self.spec.train.keep_checkpoints,
            is_mine=lambda: self.claim is None or self.claim.is_mine(),
        )

    def _evaluated(
        self, parts: Parts, step: int, evaluator: Evaluator, precision: str
    ) -> Figures | PixelFigures | None:
        with parts.exported_weights(step):
            network = parts.assembled.strategy.evaluated()
            return evaluator(network, precision=precision, interrupted=self.stop.agreed)

    def _snapshot(self, parts: Parts, step: int, selector: str) -> None:
        """Write the weights as they are evaluated and exported, and record their hash."""
        with parts.exported_weights(step):
            if not self.main:
                return
            wanted = [selector, *(k for k in self.definition["keep"] if k.startswith(f"{selector}#"))]
            kept = {name: parts.tensors(name.partition("#")[2]) for name in wanted}
        weights = dict(self.folder.state().get("weights", {}))
        for name, tensors in kept.items():
            target = self.folder.snapshot(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic.aside(target) as side:
                # one entry: the format's writer orders several by chance, and equal weights must be equal files
                save_file(tensors, side, metadata={"made_by": f"{self.digest}@{name}"})
            weights[name] = checkpoint.file_hash(target)
        self._say(weights=weights)

    def _progress(self, state: LoopState, metrics: Mapping[str, float]) -> None:
        del metrics
        if not self.main or time.monotonic() - self._written < STATE_EVERY_S:
            return
        self.profiler.look()
        try:
            self._say(step=state.step, epoch=self._epochs(state))
        except OSError as error:  # screens lag behind; a checkpoint can give up older ones, so that is not the end
            if not atomic.is_disk_full(error):
                raise
            log.warning("how far the stage is cannot be written: %s", error)

    def _epochs(self, state: LoopState) -> float:
        per_epoch = max(1, self.total_steps // max(1, self.spec.train.epochs))
        return round(state.epoch + state.index / per_epoch, 4)

    def _heartbeat(self, state: LoopState) -> None:
        if self.claim is not None:
            self.claim.heartbeat()
            self._progress(state, {})
            if self.folder.cancel_request() is not None:
                self.stop.ask("cancelled by its user")

    def _filling(self) -> None:
        """Between the blocks of a cache that the stage fills itself: sign of life, no boundary of training."""
        self.stop.move()
        if self.claim is not None and time.monotonic() - self._written > HEARTBEAT_S:
            self._written = time.monotonic()
            self.claim.heartbeat()
            if self.folder.cancel_request() is not None:
                self.stop.ask("cancelled by its user")

    def _train(self, parts: Parts, loop: Loop) -> None:
        """Run the loop; where asked to, go back behind a non-finite loss and pass over its batch."""
        settle_heap()
        while True:
            try:
                loop.run()
                self.profiler.finish()
            except NonFiniteLoss as error:
                leave_record(self.folder, error, parts.train_loader, loop.meter, self.recent)
                tried = [*loop.state.skip]
                if self.spec.train.on_nonfinite != "rollback" or error.step is None or len(tried) >= MOST_ROLLBACKS:
                    raise
                saved = checkpoint.load(self.folder.checkpoints, self.digest, parts.engine.load)
                if saved is None:
                    raise
                log.warning("%s; back to step %d, passing over that batch", error, saved["step"])
                loop.restore(saved)
                loop.state.skip = sorted({*tried, *loop.state.skip, error.step})
                if loop.tracker is not None:
                    loop.tracker.close()
                loop.tracker = self._spool(saved)
            else:
                return

    # ------------------------------------------------------------------ end

    def _finish(self, parts: Parts, loop: Loop) -> Figures | PixelFigures | None:
        """Evaluate the last weights on test, record everything, and only then call the stage done."""
        self._say(state="evaluating", step=loop.state.step, epoch=self._epochs(loop.state))
        self._snapshot(parts, loop.state.step, "last")
        tests = parts.evaluator("test")
        assert tests is not None
        figures = self._evaluated(parts, loop.state.step, tests, "fp32")
        if figures is None:
            return None
        parts.demand_same_teachers()
        if loop.tracker is not None:
            loop.tracker.log(loop.state.step, figures.metrics("test"))
            loop.tracker.flush()
        demand_expected(self.spec, figures)
        with parts.exported_weights(loop.state.step):  # on all ranks, each of which may hold a part of them only
            if self.main:
                results = results_of(parts, loop.state, figures, self.definition, self.folder.state()["attempts"])
                link_last(self.folder.path)
                self._say(state="done", reason="", step=loop.state.step, results=results, consumed=parts.consumed)
        ranks.barrier()
        return figures

    # ------------------------------------------------------------------ records

    def _note_start(self, state: LoopState, saved: Mapping[str, Any] | None) -> None:
        if saved is not None and saved["world"] != ranks.world():
            log.warning(
                "resumed with %d processes what %d began: same global batches, BatchNorm starts from the mean of all "
                "ranks; the result is not bitwise that of an undisturbed run", ranks.world(), saved["world"],
            )  # fmt: skip
        self._say(state="running", reason="", step=state.step, steps=self.total_steps, epoch=self._epochs(state))
        if self.claim is not None:
            other_world = saved is not None and saved["world"] != ranks.world()
            self.folder.note_attempt(resumed_from=state.step, **({"other_world": True} if other_world else {}))

    def _spool(self, saved: Mapping[str, Any] | None) -> Spool | None:
        if not self.main:
            return None
        per_epoch = self.total_steps / max(1, self.spec.train.epochs)
        return Spool(self.folder.metrics, saved["spool"] if saved else 0, steps_per_epoch=per_epoch)

    def _say(self, **changes: Any) -> None:
        if not self.main:
            return
        self.folder.write_state(**changes)
        self._written = time.monotonic()
