"""Meta-training: learn a tuner for a model on tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from meta_train import checkpoint, report
from meta_train.config import MetaTrainConfig
from meta_train.edge import measure
from meta_train.feed import Feed, derived_seed
from meta_train.lookahead import LearnedStep, Lookahead, look_ahead, restored
from meta_train.meta_gradient import closed_form, into_networks
from meta_train.moments import Moments, model_bytes
from meta_train.network_optimizer import NetworkOptimizer
from meta_train.outcome_runs import OutcomeRuns
from meta_train.outcomes import check_outcomes, learn_by_outcomes
from meta_train.parts import LearnedParts, learned_parts, recommended
from meta_train.rate import recommend_rate
from meta_train.report import Reporter
from meta_train.signal import BatchGradients, Signal, batch_gradients
from meta_train.signal_structure import SignalStructure
from meta_train.structure_learner import structure_learner
from meta_train.trajectory import TRAJECTORIES, BaseWeights, Trajectory
from meta_train.turns import check_turns
from zoft.blocks import Blocks
from zoft.errors import DivergedError, Interrupted, UsageError
from zoft.noise import Key, get_noise
from zoft.objective import Objective
from zoft.perturb import Perturber
from zoft.tasks.base import Task
from zoft.tuner.artifact import Tuner
from zoft.tuner.bound import BoundTuner
from zoft.uninterrupted import uninterrupted

Resume = bool | Literal["auto"]


def meta_train(
    model: nn.Module,
    tasks: Sequence[Task],
    config: MetaTrainConfig | None = None,
    *,
    output_dir: str | Path | None = None,
    base_model_name_or_path: str = "",
    base_model_revision: str | None = None,
    resume: Resume = "auto",
    reporter: Reporter | None = None,
) -> Tuner:
    """Learn a tuner: how strongly each block of ``model`` should be perturbed.

    A meta-step takes the next task, looks ahead K fine-tuning steps with the current networks, takes the
    loss there (the meta-loss), moves the networks by its gradient, and then the weights by one step of
    the inner trajectory, so that the next meta-step sees what fine-tuning would see [ZOFT]. Every few
    hundred steps the weights go back to the base's. σ and the last losses are kept for each task.
    With the objective ``expected`` nothing is sampled but the inner step: the gradients of a few
    minibatches say what a step of such scales gains in expectation (:mod:`meta_train.signal`).

    Args:
        model: the base; its parameters with ``requires_grad`` are the blocks. It is as it was, bit for
            bit, when the function returns or raises.
        tasks: what to learn on; ``zoft.tasks.function.FunctionTask`` makes one from functions.
        config: all settings; the recipe ``default`` if not given.
        output_dir: where checkpoints go and, at the end, the tuner in its layout.
        base_model_name_or_path: recorded in the tuner.
        base_model_revision: recorded in the tuner.
        resume: ``"auto"`` continues the run in ``output_dir`` if there is one; True needs one; False
            refuses one. The continuation is bit for bit what the run without a break gives.
        reporter: takes scalars every ``log_every`` steps; the caller closes it.

    Returns:
        The tuner, with its provenance.

    Raises:
        UsageError: no task, a loss that cannot be differentiated, or a folder that holds another run.
        DivergedError: the meta-loss was not finite too many times in a row; the run is saved.
        Interrupted: Ctrl-C; the run is saved where there is an ``output_dir``.

    Reference: [ZOFT] Zhang et al., "Learning a Zeroth-Order Optimizer for Fine-Tuning LLMs", arXiv
    2510.00419.
    """
    config = config or MetaTrainConfig()
    folder = None if output_dir is None else Path(output_dir)
    blocks = _blocks(model, config)
    feed = Feed(tasks, config.batch_size, config.seed, config.batches_per_visit, config.task_order == "shuffled")
    asked = checkpoint.identity(config, feed.names, blocks)
    finished = _finished(folder, asked, resume, reporter)
    if finished is not None:
        return finished
    base = (base_model_name_or_path, base_model_revision)
    tuner = Tuner.untrained(model, config.network, config.normalization, *base, config.noise, config.seed)
    run = _Run(model, blocks, tasks, feed, config, tuner, folder, asked, reporter)
    try:
        run.resume(resume)
        run.all_steps()
    finally:
        run.base.put_back()
    return run.finish()


def _blocks(model: nn.Module, config: MetaTrainConfig) -> Blocks:
    """The model's blocks, on which all that is asked for can be learned."""
    blocks = Blocks.of(model)
    check_turns(config, blocks)
    check_outcomes(config, blocks)
    return blocks


def _finished(folder: Path | None, asked: dict[str, Any], resume: Resume, reporter: Reporter | None) -> Tuner | None:
    """The tuner of the finished run in ``folder``, if it is the one asked for; None if there is none."""
    content = None if folder is None else checkpoint.read_finished(folder)
    if folder is None or content is None:
        return None
    if resume is False:
        raise UsageError(f"{folder} holds a finished tuner", "Use another output folder, or delete that one.")
    checkpoint.require_same(folder, content, asked)
    report.note(reporter, f"{folder} holds this run already, finished: nothing to do")
    return Tuner.from_pretrained(folder)


class _Run:
    """One run: everything that a step changes, and how it is saved."""

    def __init__(
        self,
        model: nn.Module,
        blocks: Blocks,
        tasks: Sequence[Task],
        feed: Feed,
        config: MetaTrainConfig,
        tuner: Tuner,
        folder: Path | None,
        asked: dict[str, Any],
        reporter: Reporter | None,
    ) -> None:
        self.model, self.blocks, self.tasks, self.feed, self.config = model, blocks, tasks, feed, config
        self.tuner, self.folder, self.asked, self.reporter = tuner, folder, asked, reporter
        self.base = BaseWeights(blocks)
        tuner.network.requires_grad_(True)
        self.bound = BoundTuner(tuner.network, tuner.config.constants, config.normalization, config.batch_size)
        differentiable = config.normalization_gradient == "differentiable"
        self.method = LearnedStep(self.bound, blocks, config.epsilon, differentiable, config.recurrent_gradient)
        self.histories = [self.method.initial() for _ in tasks]
        self.optimizer = NetworkOptimizer(config, tuner.network, len(tasks))
        self.signal = Signal(len(tasks), len(blocks)) if config.objective == "expected" else None
        self.moments = structure_learner(config, model, blocks, tasks, self.signal)
        #: Of the step that is under way.
        self.seen: tuple[Signal, BatchGradients] | None = None
        kind = TRAJECTORIES[config.inner]
        self.perturber = Perturber(model, blocks)
        noise = get_noise(config.noise)
        self.lookahead_lr = (
            config.lookahead_lr or measure(self.perturber, model, tasks, config.batch_size, noise, config.seed).edge
        )
        peak = config.inner_rate(len(tasks), self.lookahead_lr)
        self.trajectory: Trajectory = kind(config, peak, model, blocks, self.method)
        self.noises = [get_noise(config.noise, config.keep_noise_mib << 20) for _ in range(config.horizon)]
        self.noise_seed = derived_seed("noise", config.seed)
        self.curve: list[tuple[int, float, float]] = []
        #: Scores of the runs of the search by outcomes, in their order.
        self.outcomes: list[float] = []
        self.done = 0
        self.nonfinite = 0

    def all_steps(self) -> None:
        """Every step that is left, with checkpoints, reports, and a checkpoint on an interruption."""
        try:
            while self.done < self.config.steps:
                self.step()
                if self.folder is not None and self.done % self.config.save_every == 0:
                    self.save()
        except KeyboardInterrupt:
            raise self._interrupted(f"after {self.done} of {self.config.steps} steps") from None

    def _interrupted(self, when: str) -> Interrupted:
        """Save, and say so."""
        self.save()
        if self.folder is None:
            return Interrupted(f"interrupted {when}; nothing is saved", "Give an output folder to be able to go on.")
        return Interrupted(f"interrupted {when}; saved in {self.folder}", "Start the same run again to go on.")

    def _by_outcomes(self, parts: LearnedParts) -> tuple[float, dict[str, Any]]:
        """What whole runs say, where they are asked for: σ, which the networks get, and the rate; with a record."""
        runs, found = OutcomeRuns.of(self), {}
        try:
            if self.config.outcome_generations:
                found["outcomes"] = learn_by_outcomes(self, parts, runs)
            rate, tried = recommend_rate(self, parts, runs)
        except KeyboardInterrupt:
            raise self._interrupted(f"after {len(self.outcomes)} runs of the search by outcomes") from None
        return rate, found | tried

    def step(self) -> None:
        """One meta-step; what it changes, it changes at its end and wholly."""
        if self.config.restart_every and self.done and self.done % self.config.restart_every == 0:
            self.restart()
        index = self.feed.task_at(self.done)
        loss, batches = self.tasks[index].loss, self.feed.batches(self.done)
        look = self._look if self.signal is None else self._expect
        record, meta_loss, gradient = look(index, batches)
        usable = record is not None and gradient is not None and bool(torch.isfinite(gradient).all())
        if record is None or gradient is None or not usable or not self.trajectory.prepare(loss, batches[0], record):
            self._skip(index)
            return
        with uninterrupted():
            # The gain's gradient is bounded, and says by its size how much is left to win.
            scale = self.config.gradient_scale if self.signal is None else "none"
            if self.config.learn_sigma:
                into_networks(record.scales, gradient, self.tuner.network, scale)
                self.optimizer.advance(self.done)
            self.trajectory.move(record)
            self._keep_gradients(index)
            self.histories[index] = record.first
            self.curve.append((index, record.loss, meta_loss))
            self.nonfinite = 0
            self.done += 1
        self._report(index, record.scales[0])

    def _ahead(self, index: int, batches: list[Any]) -> Lookahead | None:
        """Look ahead in place, a batch a step."""
        objectives = [Objective(self.model, self.tasks[index].loss, [batch]) for batch in batches]
        key, history = Key(self.noise_seed, self.done * len(batches)), self.histories[index]
        return look_ahead(
            self.method, history, self.blocks, self.perturber, objectives, self.noises, key, self.lookahead_lr
        )

    def _look(self, index: int, batches: list[Any]) -> tuple[Lookahead | None, float, Tensor | None]:
        """Look ahead and come back: the record, the meta-loss and its gradient by scale."""
        count, loss = self.config.lookahead_steps, self.tasks[index].loss
        with restored(self.blocks):
            record = self._ahead(index, batches * count if len(batches) == 1 else batches[:count])
            if record is None:
                return None, math.nan, None
            if self.config.meta_gradient == "closed-form":
                observe = self.moments.take if self.moments is not None else None
                return record, *closed_form(record, self.model, self.blocks, loss, batches[-1], observe)
        from meta_train.unroll import unrolled

        return record, *unrolled(record, self.model, self.blocks, loss, batches[-1])

    def _expect(self, index: int, batches: list[Any]) -> tuple[Lookahead | None, float, Tensor | None]:
        """The inner step's record, the loss, and the gradient of what the scales gain in expectation."""
        if self.signal is None:
            raise ValueError("no signal is measured")
        with restored(self.blocks):
            record = self._ahead(index, batches[:1])
        if record is None:
            return None, math.nan, None
        observe = self.moments.take if self.moments is not None else None
        loss, gradients = batch_gradients(self.model, self.blocks, self.tasks[index].loss, batches, observe)
        after = self.signal.after(index, gradients) if math.isfinite(loss) else None
        if after is None:
            return None, math.nan, None
        self.seen = after, gradients
        return record, loss, after.gradient(index, record.scales[0])

    def _keep_gradients(self, index: int) -> None:
        """What the step's gradients add to the signal and to the structure."""
        if isinstance(self.moments, Moments):
            self.moments.commit()
        if self.seen is not None and self.signal is not None:
            after, gradients = self.seen
            self.signal.load(after.state())
            self.seen = None
            if isinstance(self.moments, SignalStructure):
                self.moments.commit(index, gradients)

    def _skip(self, index: int) -> None:
        """A meta-loss that is not finite: no update; restart, then give up, after enough in a row."""
        for parameter in self.model.parameters():
            parameter.grad = None
        self.seen = None
        if self.moments is not None:
            self.moments.discard()
        self.curve.append((index, math.nan, math.nan))
        self.nonfinite += 1
        self.done += 1
        limit = self.config.nonfinite_limit
        if self.nonfinite == limit:
            self.restart()
        elif self.nonfinite >= 2 * limit:
            self.save()
            raise DivergedError(
                f"the meta-loss was not finite {self.nonfinite} steps in a row, also from the base's weights",
                "Lower lookahead_lr and inner_lr.",
            )

    def restart(self) -> None:
        """Back to the base's weights, and to what a fine-tuning run begins with."""
        self.base.put_back()
        self.trajectory.restart()
        fresh = [self.method.initial() for _ in self.tasks]
        if not self.config.restart_sigma:
            for new, old in zip(fresh, self.histories, strict=True):
                new["sigma"], new["scale"] = old["sigma"], old["scale"]
        self.histories = fresh

    def _report(self, index: int, scales: Tensor) -> None:
        if self.reporter is None or (self.done % self.config.log_every and self.done < self.config.steps):
            return
        values = report.curve_scalars(self.curve[-self.config.log_every :], self.feed.names)
        rate = self.optimizer.rate(self.done - 1)
        values |= {**report.sigma_scalars(self.blocks, scales), "meta/network_lr": rate}
        if self.signal is not None:
            values["meta/gain"] = self.signal.gain(index, scales)
        self.reporter.scalars(self.done, values)

    def save(self) -> None:
        """A checkpoint of everything that the next step depends on."""
        if self.folder is None:
            return
        tensors = {f"network/{name}": tensor for name, tensor in self.tuner.network.state_dict().items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in self.optimizer.state().items()}
        tensors |= {f"trajectory/{name}": tensor for name, tensor in self.trajectory.state().items()}
        tensors |= {f"weights/{block.name}": block.parameter.data for block in self.blocks}
        for index, history in enumerate(self.histories):
            tensors |= {f"history/{index}/{name}": tensor for name, tensor in history.items()}
        if self.moments is not None:
            tensors |= {f"moments/{name}": tensor for name, tensor in self.moments.state().items()}
        if self.signal is not None:
            tensors |= {f"signal/{name}": tensor for name, tensor in self.signal.state().items()}
        tensors["outcomes"] = torch.tensor(self.outcomes, dtype=torch.float64)
        tensors["curve"] = torch.tensor(self.curve, dtype=torch.float64).reshape(-1, 3)
        checkpoint.save(self.folder, tensors, {**self.asked, "done": self.done, "nonfinite": self.nonfinite})

    def resume(self, mode: Resume) -> None:
        """Go on from the folder's checkpoint, as ``mode`` says."""
        record = None if self.folder is None else checkpoint.read_record(self.folder)
        if self.folder is None or record is None:
            if mode is True:
                raise UsageError(f"there is no run to continue in {self.folder}", "Leave out --resume to begin one.")
            return
        if mode is False:
            raise UsageError(
                f"{self.folder} holds a run of {record['done']} steps", "Continue it, or use another output folder."
            )
        checkpoint.require_same(self.folder, record, self.asked)
        self._load(checkpoint.read_tensors(self.folder))
        self.done, self.nonfinite = int(record["done"]), int(record["nonfinite"])
        report.note(self.reporter, f"going on in {self.folder} after step {self.done}")

    def _load(self, tensors: dict[str, Tensor]) -> None:
        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

        self.tuner.network.load_state_dict(under("network/"))
        self.optimizer.load(under("optimizer/"))
        self.trajectory.load(under("trajectory/"))
        self.histories = [under(f"history/{index}/") for index in range(len(self.tasks))]
        if self.moments is not None:
            self.moments.load(under("moments/"))
        if self.signal is not None:
            self.signal.load(under("signal/"))
        self.outcomes = tensors["outcomes"].tolist() if "outcomes" in tensors else []
        self.curve = [(int(task), before, after) for task, before, after in tensors["curve"].tolist()]
        with torch.no_grad():
            for block in self.blocks:
                block.parameter.copy_(tensors[f"weights/{block.name}"])

    def finish(self) -> Tuner:
        """The tuner with its provenance, written to the folder."""
        config = self.config
        provenance = {
            **self.asked,
            "steps": self.done,
            "skipped": sum(not math.isfinite(after) for _, _, after in self.curve),
            "lookahead_lr": self.lookahead_lr,
            "seeds": {"run": config.seed, "noise": self.noise_seed},
            "versions": report.versions(),
            "curve": report.thinned(self.curve),
        }
        parts = learned_parts(self)
        rate, outcomes = self._by_outcomes(parts)
        provenance |= outcomes
        if parts.structure is not None:
            provenance["structure"] = {
                "gradients": self.moments.count if self.moments is not None else 0,
                "bytes": parts.structure.nbytes,
                "model_bytes": model_bytes(self.blocks),
                "edge_lr": parts.edge,
            }
        learned = {"recommended": recommended(config, rate), "step_rule": parts.rule, "turns": parts.turns}
        its_config, network = self.tuner.config.model_copy(update=learned), self.tuner.network.requires_grad_(False)
        tuner = Tuner(its_config, network, provenance).structured(parts.structure)
        if self.folder is not None:
            tuner.save_pretrained(self.folder)
            (self.folder / checkpoint.CHECKPOINT_FILE).unlink(missing_ok=True)
        return tuner
