"""What meta-training can be told, and its named recipes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from zoft.config import Config, read_yaml, unknown
from zoft.errors import UsageError
from zoft.noise import NOISES, GaussianTable
from zoft.tuner.config import RateSchedule
from zoft.tuner.normalization import NormalizationConfig
from zoft.tuner.pertnn import NetworkConfig

_FOLDER = Path(__file__).parent / "configs"

#: Fields that may differ between a run and its continuation: they change no number.
INCIDENTAL = ("save_every", "log_every", "keep_noise_mib")


class MetaTrainConfig(Config):
    """How a tuner is learned. The defaults are those of the recipe ``default``, but for the runs that find its rate."""

    steps: int = Field(600, ge=1, description="Meta-training steps, over all tasks together.")
    batch_size: int = Field(16, ge=1, description="Examples a minibatch.")
    epsilon: float = Field(1e-3, gt=0, allow_inf_nan=False, description="Perturbation scale ε.")
    seed: int = Field(0, ge=0, description="Seed of the networks, the data order, the task order and the noise.")
    noise: str = Field(GaussianTable.name, description="Kind of noise.")
    network: NetworkConfig = Field(NetworkConfig(), description="What the PertNNs are.")
    normalization: NormalizationConfig = Field(NormalizationConfig(), description="How ν comes about.")
    normalization_gradient: Literal["constant", "differentiable"] = Field(
        "differentiable",
        description="Whether the meta-gradient takes ν as a constant, as published, or flows through it.",
    )
    recurrent_gradient: bool = Field(
        True, description="Whether the meta-gradient flows through the σ that one lookahead step feeds to the next."
    )
    objective: Literal["lookahead", "expected"] = Field(
        "expected",
        description="What the networks learn by: the loss after a sampled lookahead, or the decrease of it that a"
        " step's scales give in expectation, from the gradients of several minibatches.",
    )
    learn_sigma: bool = Field(
        False,
        description="Whether the networks learn; if not, σ stays as they begin and the structure alone is learned.",
    )
    gradient_batches: int = Field(
        4, ge=2, description="Minibatches whose gradients the expected objective compares; each costs a backward pass."
    )
    lookahead_steps: int = Field(4, ge=1, description="Fine-tuning steps K that the meta-loss looks ahead.")
    lookahead_lr: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Learning rate of the lookahead steps, best near MeZO's limit; empty: from the measured curvature.",
    )
    lookahead_batch: Literal["same", "fresh"] = Field(
        "fresh",
        description="One minibatch for the whole lookahead and the meta-loss, or a new one for each of them.",
    )
    meta_gradient: Literal["closed-form", "higher"] = Field(
        "closed-form",
        description="One backward pass reduced to scalars, or an unrolled graph (general, several times the memory).",
    )
    gradient_scale: Literal["none", "unit"] = Field(
        "unit",
        description="Leave the gradient with respect to σ as it is, or scale each step's to root mean square 1.",
    )
    inner: Literal["first-order", "zeroth-order"] = Field(
        "zeroth-order",
        description="What moves the weights between meta-steps: SGD with backpropagation, or the tuner's own step.",
    )
    inner_lr: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Learning rate of the inner steps; empty: a quarter of the lookahead's for zeroth-order steps,"
        " and for first-order ones 0.01 with one task, 0.05 with several.",
    )
    inner_momentum: float = Field(0.8, ge=0, lt=1, description="Momentum of first-order inner steps.")
    inner_schedule: Literal["constant", "linear"] = Field(
        "constant", description="Inner learning rate: constant, or falling to 0 from each restart to the next."
    )
    clip: float | None = Field(
        1.0, gt=0, allow_inf_nan=False, description="Largest gradient norm of first-order inner steps; empty: none."
    )
    restart_every: int | None = Field(
        200, ge=1, description="Steps after which the weights go back to the base's; empty: never."
    )
    restart_sigma: bool = Field(True, description="Whether a restart also sets every task's last σ back to 1.")
    task_order: Literal["round-robin", "shuffled"] = Field(
        "round-robin", description="Order of the tasks in each round: as given, or shuffled by the seed."
    )
    network_optimizer: Literal["sgd", "adam"] = Field("adam", description="Optimizer of the PertNNs.")
    network_lr: float | None = Field(
        2e-3,
        gt=0,
        allow_inf_nan=False,
        description="Learning rate of the PertNNs; empty: 0.1 with one task, 0.05 with several.",
    )
    network_schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="Learning rate of the PertNNs over the run: constant, or falling to 0."
    )
    accumulate: int = Field(1, ge=1, description="Meta-steps whose gradients are averaged for one network update.")
    nonfinite_limit: int = Field(
        10,
        ge=1,
        description="Non-finite meta-losses in a row before the weights go back to the base's; twice as many give up.",
    )
    structure: Literal["none", "scales", "low-rank", "gains", "gains-and-offsets"] = Field(
        "gains",
        description="Learned structure within the blocks, from the gradients along the trajectories: none, row and"
        " column scales of every matrix, a low rank, gains of rows and columns, or these and offsets of layers without"
        " a bias.",
    )
    structure_from: Literal["energy", "signal"] = Field(
        "signal",
        description="What scales are learned from: the gradients' second moments, or what of them is the same on"
        " different minibatches, over what is not; that needs the expected objective.",
    )
    structure_share: float | None = Field(
        1.0,
        ge=0,
        le=1,
        description="Share a of the learned part in each block's covariance; empty: so much that it meets as much"
        " curvature as the isotropic rest.",
    )
    structure_rank: int | None = Field(
        None,
        ge=1,
        le=2**12,
        description="Rank of each side of a low-rank structure; empty: the largest within 2 % of the model's bytes.",
    )
    structure_power: float = Field(
        1.0,
        allow_inf_nan=False,
        description="Exponent of the moments, or of signal over noise: 1 samples directions in proportion, 0 evenly.",
    )
    structure_floor: float = Field(
        0.3,
        ge=0,
        allow_inf_nan=False,
        description="Added to a scale's moment before the exponent, or to its noise, in means of them.",
    )
    structure_block_power: float = Field(
        0.0,
        allow_inf_nan=False,
        description="Exponent of a block's mean energy, or of its signal over noise, for its weight among the learned"
        " parts; 0 leaves that to σ.",
    )
    structure_vectors: Literal["isotropic", "elementwise"] = Field(
        "isotropic", description="Whether vectors (biases, norms) stay isotropic or have a scale for every entry."
    )
    structure_storage: Literal["float16", "float32"] = Field(
        "float16", description="How the structure is stored: half the bytes, or exactly."
    )
    turns: Literal["none", "types", "signal"] = Field(
        "none",
        description="Directions of all blocks; of one module type after the other; or of one of two parts of the"
        " types after the other, those with the most signal over noise.",
    )
    step_size: Literal["none", "curvature", "slopes", "gauss-newton"] = Field(
        "gauss-newton",
        description="Step-size head: none, or a learning rate that follows the curvature measured by an occasional"
        " third forward, the slopes that are measured anyway, or the losses of the single examples.",
    )
    step_size_every: int = Field(10, ge=1, le=2**20, description="Steps between two forwards of the kind curvature.")
    step_size_power: float = Field(
        2.0, ge=0, le=4, description="Of the kind slopes: 1 keeps steps as long as they were, 2 is for their curvature."
    )
    step_size_decay: float = Field(
        0.9, ge=0, lt=1, description="Of slopes and gauss-newton: weight of the past in the mean."
    )
    step_size_damping: float = Field(1.0, gt=0, le=1e3, description="Of the kind gauss-newton: κ, in mean curvatures.")
    outcome_generations: int = Field(
        0,
        ge=0,
        description="Generations of a search of σ by module type on the outcomes of whole runs, after the meta-steps;"
        " 0 leaves it out. It needs the step-size head gauss-newton.",
    )
    outcome_population: int = Field(8, ge=4, description="Candidates of a generation.")
    outcome_forwards: int = Field(600, ge=1, description="Forward passes of a run of a search by outcomes.")
    outcome_examples: int = Field(
        192, ge=1, description="Examples that a run is judged on, besides those it learns on."
    )
    outcome_checks: int = Field(
        2, ge=1, description="Runs a task of what was found and of σ = 1 on other seeds: the better of the two is kept."
    )
    save_every: int = Field(200, ge=1, description="Steps between checkpoints.")
    log_every: int = Field(10, ge=1, description="Steps between reports.")
    keep_noise_mib: int = Field(
        64, ge=0, description="MiB for each lookahead step's noise, kept instead of made again; the same numbers."
    )
    recommended_lr: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Learning rate to recommend in the tuner; empty: found by runs (rate_seeds), or without them 1 with"
        " the step-size head gauss-newton, else a quarter of the lookahead's a direction.",
    )
    rate_seeds: int = Field(
        0,
        ge=0,
        description="Runs on every task at each learning rate that is tried to find the one to recommend, after the"
        " meta-steps; 0 makes none. The recipe default makes one.",
    )
    recommended_directions: int = Field(
        8, ge=1, le=2**16, description="Directions a step to recommend in the tuner; nothing is learned with them."
    )
    recommended_estimator: Literal["central", "one-sided"] = Field(
        "one-sided",
        description="Estimator to recommend: two forwards a direction, or one and one more for all of them.",
    )
    recommended_schedule: RateSchedule = Field(
        "linear", description="Course of the learning rate to recommend in the tuner; nothing is learned with it."
    )

    @field_validator("noise")
    @classmethod
    def _known_noise(cls, value: str) -> str:
        if value not in NOISES:
            raise ValueError(unknown("noise kind", value, NOISES))
        return value

    @model_validator(mode="after")
    def _has_gradients(self) -> Self:
        if self.structure != "none" and self.meta_gradient != "closed-form":
            raise ValueError("a structure is learned from the closed form's backward passes; meta_gradient is another")
        if not self.learn_sigma and self.structure == "none" and not self.outcome_generations:
            raise ValueError("nothing is learned: learn_sigma is off, and there is no structure")
        if self.outcome_generations:
            if self.step_size != "gauss-newton":
                raise ValueError("outcomes are compared at one learning rate, for which step_size is gauss-newton")
            if self.learn_sigma or self.network.init != "neutral" or self.network.output == "abs":
                raise ValueError("outcomes set a constant σ: no learn_sigma, network init neutral, output not abs")
        if self.objective == "expected" and self.meta_gradient != "closed-form":
            raise ValueError("the expected objective unrolls nothing; leave meta_gradient at closed-form")
        if self.turns == "signal" and self.objective != "expected":
            raise ValueError("turns signal compares the minibatches of objective expected; set it too")
        if self.turns != "none" and self.step_size == "curvature":
            raise ValueError("the step-size head curvature has one curvature for all turns; take another step_size")
        if self.step_size == "curvature" and self.recommended_estimator != "central":
            raise ValueError("the step-size head curvature needs both sides; step_size slopes does not")
        if self.structure_from == "signal" and self.structure != "none":
            if self.objective != "expected":
                raise ValueError("structure_from signal compares the minibatches of objective expected; set it too")
            if self.structure == "low-rank":
                raise ValueError(f"structure_from signal learns scales or gains, and the structure is {self.structure}")
        elif self.structure.startswith("gains"):
            raise ValueError(f"structure {self.structure} is learned from the signal; set structure_from to signal")
        return self

    @property
    def horizon(self) -> int:
        """Sampled steps of a meta-step: K, or with the expected objective the one that the weights are moved by."""
        return 1 if self.objective == "expected" else self.lookahead_steps

    @property
    def batches_per_visit(self) -> int:
        """Minibatches of a task that a meta-step takes."""
        if self.objective == "expected":
            return self.gradient_batches
        return 1 if self.lookahead_batch == "same" else self.lookahead_steps + 1

    def inner_rate(self, tasks: int, lookahead_lr: float) -> float:
        """Learning rate of the inner steps with so many tasks (first-order as published: 0.01, 0.05)."""
        if self.inner_lr is not None:
            return self.inner_lr
        return lookahead_lr / 4 if self.inner == "zeroth-order" else 0.01 if tasks == 1 else 0.05

    def network_rate(self, tasks: int) -> float:
        """Learning rate of the PertNNs with so many tasks (published: 0.1 for one, 0.05 for several)."""
        return self.network_lr if self.network_lr is not None else (0.1 if tasks == 1 else 0.05)


@cache
def _recipes() -> dict[str, Path]:
    return {file.stem: file for file in sorted(_FOLDER.glob("*.yaml"))}


#: Every recipe's file by its name.
RECIPES: dict[str, Path] = _recipes()


def recipe(name: str = "default") -> dict[str, Any]:
    """The values of a named recipe: what ``MetaTrainConfig.load(file, flags, base=...)`` starts from.

    Raises:
        UsageError: there is none of that name; the nearest ones are given.
    """
    if name not in RECIPES:
        raise UsageError(unknown("recipe", name, RECIPES), "Give your own settings with --config FILE.yaml.")
    return read_yaml(RECIPES[name])
