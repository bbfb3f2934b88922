"""What a finished run adds to its networks: the structure, the step-size head, and the learning rate to recommend."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from meta_train import report
from meta_train.config import MetaTrainConfig
from meta_train.edge import Measured, measure
from meta_train.moments import model_bytes
from meta_train.signal import Signal
from meta_train.signal_structure import SignalStructure
from meta_train.turns import learned_turns
from zoft.blocks import Blocks
from zoft.noise import get_noise
from zoft.perturb import Perturber
from zoft.step import State
from zoft.tuner.bound import BoundTuner
from zoft.tuner.config import CONSTANT, Recommended
from zoft.tuner.module_types import module_types
from zoft.tuner.step_rule import StepRuleConfig
from zoft.tuner.structure import Structure, described
from zoft.tuner.turns import TurnsConfig, parts_of

#: The learning rate of the step-size head gauss-newton, which has no units, where no runs say another one. Best or
#: nearly so on development tasks of three bases, with scales, eight directions and a rate that falls to 0
#: (docs/learning.md).
GAUSS_NEWTON_RATE = 1.0


class FinishedRun(Protocol):
    """What is read of a run."""

    model: nn.Module
    blocks: Blocks
    tasks: Any
    config: MetaTrainConfig
    perturber: Perturber
    reporter: Any
    lookahead_lr: float
    moments: Any
    signal: Signal | None
    histories: list[State]
    bound: BoundTuner


@dataclass(frozen=True)
class LearnedParts:
    """What :func:`learned_parts` gives.

    Attributes:
        structure, rule, turns: None where there are none.
        edge: the rate at the edge for the tuner's own directions.
    """

    structure: Structure | None
    rule: StepRuleConfig | None
    edge: float
    turns: TurnsConfig | None = None


def learned_parts(run: FinishedRun) -> LearnedParts:
    """The parts of a run's tuner; the model must be at the weights to measure curvature at.

    The curvature is that along the tuner's directions, with the σ that the tasks had last. Without a structure, a
    step-size head or the expected objective nothing is measured, and the edge is MeZO's.
    """
    config = run.config
    turns = _turns(run)
    if run.moments is None and config.step_size == "none" and config.objective == "lookahead":
        return LearnedParts(None, None, run.lookahead_lr, turns)
    plain = _measured(run, None, learned=False)
    structure = _structure(run, plain.edge) if run.moments is not None else None
    mine = _measured(run, structure, learned=True)
    return LearnedParts(structure, _step_rule(config, mine), run.lookahead_lr * mine.edge / plain.edge, turns)


def tuners_without(run: FinishedRun, parts: LearnedParts) -> list[BoundTuner]:
    """For every task the run's tuner with the structure and turns that the other tasks say, where that can be told."""
    tuners = []
    for index in range(len(run.tasks)):
        structure = parts.structure
        if structure is not None and isinstance(run.moments, SignalStructure) and len(run.tasks) > 1:
            structure = run.moments.structure(float(structure.share.max()), without=index)
        bound = structure.bind(run.blocks.names, run.blocks.shapes) if structure is not None else None
        left_out = index if len(run.tasks) > 1 else None
        turns = tuple(learned_turns(run.config, run.blocks, run.signal, left_out) or ())
        tuners.append(replace(run.bound, structure=bound, step_rule=parts.rule, turns=turns))
    return tuners


def _turns(run: FinishedRun) -> TurnsConfig | None:
    found = learned_turns(run.config, run.blocks, run.signal)
    if found is None:
        return None
    report.note(run.reporter, f"turns: {' | '.join(parts_of(found, module_types(run.blocks)))}")
    return TurnsConfig(of=found, learned=run.config.turns != "types")


def recommended_rate(config: MetaTrainConfig, parts: LearnedParts) -> float:
    """The learning rate to recommend where none is given."""
    if parts.rule is not None and parts.rule.by_example:
        return GAUSS_NEWTON_RATE
    # A mean over n directions has an n-th of the variance, which is what limits the rate; and a rate that falls to
    # 0 is half of its first value in the mean.
    longer = config.recommended_directions * (1 if config.recommended_schedule == CONSTANT else 2)
    return parts.edge / 4 * longer


def recommended(config: MetaTrainConfig, lr: float) -> Recommended:
    """What the tuner recommends, with that learning rate."""
    return Recommended(
        lr=lr,
        epsilon=config.epsilon,
        batch_size=config.batch_size,
        directions=config.recommended_directions,
        estimator=config.recommended_estimator,
        schedule=config.recommended_schedule,
    )


def _step_rule(config: MetaTrainConfig, measured: Measured) -> StepRuleConfig | None:
    """The step-size head: what it goes by as it was measured."""
    if config.step_size == "none":
        return None
    if config.step_size == "slopes":
        decay, power = config.step_size_decay, config.step_size_power
        return StepRuleConfig(kind="slopes", slope=measured.slope, power=power, decay=decay)
    if config.step_size == "gauss-newton":
        damping, decay = config.step_size_damping, config.step_size_decay
        return StepRuleConfig(kind="gauss-newton", damping=damping, decay=decay)
    return StepRuleConfig(kind="curvature", curvature=measured.curvature, every=config.step_size_every)


def _measured(run: FinishedRun, structure: Structure | None, learned: bool) -> Measured:
    """Along directions with that structure, and the learned σ or 1."""
    bound = structure.bind(run.blocks.names, run.blocks.shapes) if structure is not None else None
    scales = None
    if learned:
        with torch.no_grad():
            sigma = torch.stack([history["sigma"] for history in run.histories]).log().mean(0).exp()
            scales = replace(run.bound, structure=bound).scales(sigma, run.blocks)
    config, noise = run.config, get_noise(run.config.noise)
    return measure(run.perturber, run.model, run.tasks, config.batch_size, noise, config.seed, bound, scales)


def _structure(run: FinishedRun, plain: float) -> Structure:
    """The structure with its share: the one given, or the balanced one, (1 − a)·T(I) = a·T(L) for curvatures T.

    T is the inverse of a rate at the edge, and that of S = (1 − a)·I + a·L is (1 − a)·T(I) + a·T(L).
    """
    share = run.config.structure_share
    if share is None:
        both = 1 / _measured(run, run.moments.structure(0.5), learned=False).edge
        learned = max(2 * both - 1 / plain, 0.01 / plain)  # an estimate of a difference, which may be negative
        share = 1 / (1 + learned * plain)
    structure: Structure = run.moments.structure(share)
    said = f"structure: {described(structure.config, structure.shapes)}"
    part = structure.nbytes / model_bytes(run.blocks)
    report.note(run.reporter, f"{said}, {part:.2%} of this model's bytes; learned share {share:.3g}")
    return structure
