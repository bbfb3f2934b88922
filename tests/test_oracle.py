"""The oracle: on planted problems it finds what is best, and what it found goes through the comparison's own runs."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import oracle as script
from finetune import oracle_report
from finetune.compare_run import Runner
from finetune.oracle import Candidate, Oracle, Plan, run_oracle
from finetune.oracle_config import OracleConfig
from finetune.oracle_cost import cost
from finetune.oracle_spaces import SPACES, Scales, Share
from finetune.processes import InProcess, Record
from finetune.report import number
from finetune.run_spec import Bench, RunSpec
from finetune.sweep import RunStore, drive
from tests.compare_toys import Toy
from tests.oracle_toys import frozen_bench, planted_bench
from tests.structures import structure_for
from tests.tiny import tiny_model
from zoft.blocks import Blocks
from zoft.errors import UsageError
from zoft.evolution import CEILING, FLOOR, log_ratio
from zoft.tuner import Tuner
from zoft.tuner.bound import BoundTuner
from zoft.tuner.module_types import depths, module_types

needs_cma = pytest.mark.skipif(importlib.util.find_spec("cma") is None, reason="cma is not installed")


def quiet(line: str) -> None:
    """Say nothing."""


def config(folder: Path, **values: Any) -> OracleConfig:
    """A small search in this process."""
    fixed = {"base": "toy", "tasks": ["dev"], "lr_start": 1e-2, "workers": 1, "output_dir": str(folder)}
    return OracleConfig.build({**fixed, **values})


class Quadratic(nn.Module):
    """Three matrices whose curvatures and distances differ; only its shapes are used, see :class:`Expected`."""

    def __init__(self) -> None:
        super().__init__()
        self.far = nn.Parameter(torch.zeros(2, 4))
        self.steep = nn.Parameter(torch.zeros(8, 8))
        self.mild = nn.Parameter(torch.zeros(4, 4))


class Expected:
    """Runs whose result is the exact expectation of zeroth-order descent on a quadratic, in place of a run.

    With z = s∘u, L = ½ Σ h_b |x_b|² and c = Σ h_a s_a x_a·u_a (central differences are exact there):
    E|x_b'|² = (1 − 2η s_b² h_b) E_b + η² s_b² (d_b Σ_a h_a² s_a² E_a + 2 h_b² s_b² E_b).
    """

    sizes = np.array([8.0, 64.0, 16.0])
    curvature = np.array([0.3, 6.0, 1.0])
    start = np.array([8.0, 0.4, 0.5])

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def loss(self, scale: np.ndarray, lr: np.ndarray, steps: int) -> np.ndarray:
        """The expected final loss of scales [..., 3] and learning rates [...]."""
        h, squares = self.curvature, scale**2
        energy = np.broadcast_to(self.start, squares.shape)
        rate = lr[..., None]
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(steps):
                c = (h**2 * squares * energy).sum(-1, keepdims=True)
                noise = rate**2 * squares * (self.sizes * c + 2 * h**2 * squares * energy)
                energy = (1 - 2 * rate * squares * h) * energy + noise
        return 0.5 * (h * energy).sum(-1)

    @property
    def zero(self) -> float:
        """The loss at the start."""
        return float(0.5 * (self.curvature * self.start).sum())

    def __call__(self, spec: RunSpec) -> Record:
        scale = np.ones(3)
        if spec.tuner is not None:
            scale = np.asarray(scales(spec.tuner.load(self._model), self._model)[0])
        final = float(self.loss(scale, np.asarray(spec.lr), spec.forwards // 2))
        loss = final if math.isfinite(final) else None
        return {
            "key": spec.key,
            "settings": spec.settings,
            "validation_loss": loss,
            "test_loss": loss,
            "zero_shot": {"validation_loss": self.zero, "test_loss": self.zero},
            "metric": None,
            "diverged": None if loss is not None and loss < self.zero else "no better than zero-shot",
        }


def scales(tuner: Tuner, model: nn.Module) -> list[list[float]]:
    """ν·σ of every block at the first step and at a later one, with other losses and weights."""
    bound, blocks = tuner.bind(model, 16), Blocks.of(model)
    state = bound.init(blocks)
    found = []
    for losses in (torch.zeros(2), torch.tensor([3.0, 5.0])):
        state["tuner/losses"].copy_(losses)
        bound.begin(state, blocks)
        found.append([bound.scale(state, block) for block in blocks])
    return found


@needs_cma
def test_the_search_comes_close_to_the_planted_optimum(tmp_path: Path) -> None:
    bench = Bench(Quadratic(), {"dev": Toy("dev")}, {"dev": "development"})
    plan = Plan(config(tmp_path, forwards=100, generations=25, lr_start=0.02), bench, quiet)
    run = Expected(bench.model)
    found, mezo = drive([plan.search(), plan.mezo()], InProcess(run), RunStore(tmp_path / "runs.jsonl"))
    # The optimum by brute force: two free ratios (ν takes the third) and the learning rate.
    ratios, rates = np.arange(-4, 4.01, 0.25), 0.02 * 2 ** np.arange(-6, 6, 0.25)
    first, second, lr = np.meshgrid(ratios, ratios, rates, indexing="ij")
    sigma = np.exp(np.stack([first, np.zeros_like(first), second], -1))
    scale = sigma * np.sqrt(run.sizes.sum() / (run.sizes * sigma**2).sum(-1, keepdims=True))
    values = run.loss(scale, lr, 50)
    planted = float(np.nanmin(values))
    at = np.unravel_index(np.nanargmin(values), values.shape)
    assert 0 < at[0] < len(ratios) - 1 or 0 < at[1] < len(ratios) - 1, "the planted optimum is not at a corner"
    reached, plain = found.records[0]["test_loss"], mezo.records[0]["test_loss"]
    assert planted < 0.8 * plain
    assert math.log(reached / planted) < 0.1 * math.log(plain / planted)
    assert found.search_runs == 25 * 8 + 4 * 4
    assert mezo.search_runs == pytest.approx(found.search_runs, rel=0.35)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Oracle, OracleConfig]:
    """A search with runs of the real kind."""
    pytest.importorskip("cma")
    folder = tmp_path_factory.mktemp("oracle")
    small = {"forwards": 30, "population": 6, "generations": 6, "finalists": 2, "final_seeds": 2, "seeds": 4}
    made = config(folder, **small, lr_start=0.02)
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    oracle = run_oracle(made, say=quiet, factory=planted_bench)
    assert (np.random.get_state()[1] == state[0]).all()
    assert torch.equal(torch.get_rng_state(), state[1])
    return oracle, made


def test_runs_of_the_real_kind_find_which_block_is_useless(searched: tuple[Oracle, OracleConfig]) -> None:
    oracle, made = searched
    meaning = oracle.content["found"]["meaning"]["scale"]
    assert meaning["useless"] < 0.3
    assert meaning["useful"] > 2.9  # ν: at most 3 = √(72 / 8), with all of the norm in its eight entries
    losses, plain = (oracle.content["tasks"]["dev"][method]["loss"] for method in ("oracle", "mezo"))
    # The planted optimum: the useless block is not trained, and the learning rate is chosen for that.
    plan = Plan(made, frozen_bench("toy", ["dev"]), quiet)
    (frozen,) = drive([plan.mezo()], InProcess(Runner(plan._bench)), RunStore(made_folder(made) / "frozen.jsonl"))
    best = [record["test_loss"] for record in frozen.records]
    logs = [float(np.mean(np.log(values))) for values in (best, losses, plain)]
    assert logs[1] - logs[0] < 0.2 * (logs[2] - logs[0]), logs
    assert oracle.content["overall"]["interval"]["high"] < 0


def made_folder(made: OracleConfig) -> Path:
    """The output folder of a search."""
    return Path(made.output_dir)


def test_every_run_has_the_seeds_that_it_should_have(searched: tuple[Oracle, OracleConfig]) -> None:
    oracle, made = searched
    runs = [json.loads(line) for line in (oracle.folder / "runs.jsonl").read_text().splitlines()]
    learned = [run for run in runs if run["settings"]["tuner"] is not None]
    by_seed: dict[int, int] = {}
    for run in learned:
        by_seed[run["settings"]["seed"]] = by_seed.get(run["settings"]["seed"], 0) + 1
        assert run["settings"]["test"] == (run["settings"]["seed"] in made.reported_seeds)
    generations = [made.generation_seeds(number) for number in range(made.generations)]
    assert {seed: by_seed[seed] for group in generations for seed in group} == {
        seed: made.population for group in generations for seed in group
    }
    assert {seed: by_seed[seed] for seed in made.finalists_seeds} == dict.fromkeys(made.finalists_seeds, 2)
    assert {seed: by_seed[seed] for seed in made.reported_seeds} == dict.fromkeys(made.reported_seeds, 1)
    assert len(by_seed) == made.generations + made.final_seeds + made.seeds
    mezo = {run["settings"]["seed"] for run in runs if run["settings"]["tuner"] is None}
    assert mezo == {*made.mezo_seeds, *made.reported_seeds}


@pytest.mark.parametrize("fresh", [True, False])
def test_seeds_that_choose_finalists_and_report_never_meet(fresh: bool) -> None:
    made = OracleConfig(generations=7, candidate_seeds=3, final_seeds=5, fresh_seeds=fresh, seed=2)
    searched = {seed for generation in range(7) for seed in made.generation_seeds(generation)}
    groups = [searched, set(made.finalists_seeds), set(made.reported_seeds)]
    assert len(searched) == (21 if fresh else 3)
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert not set(made.mezo_seeds) & set(made.reported_seeds)


def test_a_search_goes_on_from_the_runs_that_are_kept(
    searched: tuple[Oracle, OracleConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle, made = searched
    lines = (oracle.folder / "runs.jsonl").read_bytes().splitlines(keepends=True)
    runs = tmp_path / "runs.jsonl"
    cut = len(lines) - 3
    runs.write_bytes(b"".join(lines[:cut]) + lines[cut][:40])
    count = {"made": 0}
    run = Runner.__call__

    def counted(self: Runner, spec: RunSpec) -> Record:
        count["made"] += 1
        return run(self, spec)

    monkeypatch.setattr(Runner, "__call__", counted)
    again = run_oracle(made.model_copy(update={"output_dir": str(tmp_path)}), say=quiet, factory=planted_bench)
    assert count["made"] == 3
    different = {"config"}
    assert {k: v for k, v in again.content.items() if k not in different} == {
        k: v for k, v in oracle.content.items() if k not in different
    }


def test_what_is_written_can_be_used(searched: tuple[Oracle, OracleConfig]) -> None:
    oracle, made = searched
    content = json.loads((oracle.folder / "oracle.json").read_text(encoding="utf-8"))
    assert oracle_report.markdown(content) in (oracle.folder / "oracle.md").read_text(encoding="utf-8")
    assert content["space"] == {"name": "scales", "coordinates": ["useful", "useless"]}
    assert len(content["trail"]) == made.generations + 1
    tuner = Tuner.from_pretrained(oracle.folder / "tuner")
    assert tuner.config.recommended.lr == content["found"]["lr"]
    # A comparison refuses to count the tasks that it was fitted to.
    assert tuner.provenance["tasks"] == ["dev"]
    given = tuple(content["found"]["coordinates"].values())
    assert tuner.digest == Scales(planted_bench("toy", ["dev"]).model).tuner(given).digest
    assert OracleConfig.load(oracle.folder / "config.yaml").tasks == ["dev"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_scales_are_constants_of_type_and_depth(family: str) -> None:
    model = tiny_model(family)
    space, blocks = Scales(model), Blocks.of(model)
    types, places = module_types(blocks), depths(blocks)
    coordinates = [0.1 * at for at in range(len(space.names))]
    by_type = dict(zip(space.names, coordinates, strict=True))
    raw = [math.exp(by_type[kind] + by_type["slope"] * float(at)) for kind, at in zip(types, places, strict=True)]
    tuner = space.tuner(coordinates)
    (first, later) = scales(tuner, model)
    nu = first[0] / raw[0]
    assert first == pytest.approx([nu * value for value in raw], rel=1e-5)
    assert later == first
    weights = [min(block.numel, 15 * 16 * block.shape[-1]) if block.is_embedding else block.numel for block in blocks]
    kept = sum(w * s**2 for w, s in zip(weights, first, strict=True))
    assert kept == pytest.approx(sum(weights), rel=1e-5)
    told = space.described(coordinates)
    assert told["scale"][types[0]] == pytest.approx(nu * math.exp(by_type[types[0]]), rel=1e-3)
    assert told["last_layer_over_first"] == pytest.approx(math.exp(2 * by_type["slope"]), rel=1e-3)
    assert scales(space.tuner([0.0] * len(coordinates)), model)[0] == [1.0] * len(blocks)


def test_module_types_by_family() -> None:
    found = {family: dict.fromkeys(module_types(Blocks.of(tiny_model(family)))) for family in ("llama", "gpt2")}
    assert list(found["llama"]) == [
        "model.embed_tokens",
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        "norms",
    ]
    assert list(found["gpt2"]) == [
        "transformer.wte",
        "transformer.wpe",
        "norms",
        "biases",
        "attn.c_attn",
        "attn.c_proj",
        "mlp.c_fc",
        "mlp.c_proj",
    ]
    places = depths(Blocks.of(tiny_model("llama")))
    assert sorted(set(places.tolist())) == [-1.0, 0.0, 1.0]


@dataclass(frozen=True)
class Structured:
    """What the search of shares asks of a structured part."""

    names: tuple[str, ...]
    share: Tensor
    factors: dict[str, Any]


@dataclass
class StructuredTuner:
    """A tuner with a structured part, as far as the search of shares is concerned."""

    structure: Structured | None
    digest: str = "of a tuner"

    def bind(self, model: nn.Module) -> BoundTuner | None:
        return None

    def structured(self, structure: Structured) -> StructuredTuner:
        return replace(self, structure=structure)


def test_shares_are_set_for_the_blocks_that_the_structure_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    blocks = Blocks.of(model)
    covered = {block.name: () for block in blocks if block.is_matrix}
    given = Structured(tuple(blocks.names), torch.full((len(blocks),), 0.25), covered)
    monkeypatch.setattr(Tuner, "from_pretrained", lambda folder: StructuredTuner(given))
    space = Share(model, "some")
    assert "norms" not in space.names
    assert space.names[-1] == "slope"
    assert space.start == pytest.approx([math.log(0.25 / 0.75)] * (len(space.names) - 1) + [0.0])
    coordinates = [0.0] * (len(space.names) - 1) + [1.0]
    share = space.tuner(coordinates).structure.share
    for row, block in enumerate(blocks):
        depth = {"0": -1.0, "1": 1.0}.get(block.name.split(".")[2], 0.0)
        expected = 1 / (1 + math.exp(-depth)) if block.name in covered else 0.25
        assert float(share[row]) == pytest.approx(expected)
    assert torch.equal(given.share, torch.full((len(blocks),), 0.25))
    assert set(space.described(coordinates)["share"].values()) == {0.5}
    monkeypatch.setattr(Tuner, "from_pretrained", lambda folder: StructuredTuner(None))
    with pytest.raises(UsageError, match="tuner some has no structured part"):
        Share(model, "some")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tasks": ["dev", "held"]}, "held: nothing is chosen on a held-out task"),
        ({"search": "scale"}, "unknown search space 'scale'; did you mean scales"),
        ({"search": "share"}, "needs a tuner with a structured part"),
        ({"tuner": "mine"}, "the search of scales starts from no tuner"),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_oracle(config(tmp_path, **values), say=quiet, factory=planted_bench)


def test_without_the_library_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(UsageError, match="needs the library cma") as error:
        run_oracle(config(tmp_path), say=quiet, factory=planted_bench)
    assert "zoft[research]" in error.value.remedy


def test_a_score_orders_runs_and_lets_none_outweigh_the_others() -> None:
    finals = [1e-9, 0.01, 0.5, 1.0, 1.5, 1e3, 1e30, None]
    found = [log_ratio(number(final), 1.0) for final in finals]
    assert found == sorted(found)
    assert len(set(found)) == len(found)
    assert (found[0], found[-1]) == (FLOOR, CEILING)
    assert found[2] == pytest.approx(math.log(0.5))


def test_a_score_after_a_loss_of_0_tells_only_whether_it_stayed() -> None:
    assert log_ratio(0.0, 0.0) == 0.0
    assert log_ratio(1e-9, 0.0) == CEILING


def test_the_cost_is_said_beforehand(tmp_path: Path) -> None:
    lines = cost(config(tmp_path, generations=3, population=4, workers=2), factory=planted_bench)
    assert lines[0] == "search scales: 2 coordinates (useful, useless) and log lr"
    assert lines[1].startswith("3 generations of 4 on dev: 12 runs; finalists 16; MeZO about as many; reported 20")
    assert "in all about 76 runs of 600 forward passes" in lines[2]
    assert "with 2 processes" in lines[2]
    assert not (tmp_path / "runs.jsonl").exists()


def test_the_script_says_its_cost_and_names_wrong_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["oracle.py", "--help"])
    assert script.main() == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "A run of 600 forward passes on the embedded base takes about 13 s of one core" in told
    assert "--generations" in told
    monkeypatch.setattr("sys.argv", ["oracle.py", "--generation", "3"])
    assert script.main() == 2
    assert "--generations" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["oracle.py", "--population", "1"])
    assert script.main() == 2
    assert "population" in capsys.readouterr().err


def test_every_space_is_registered_under_its_name() -> None:
    assert {name: space.name for name, space in SPACES.items()} == {name: name for name in SPACES}
    assert set(SPACES) == {"scales", "share"}


def test_a_share_found_is_a_tuner_as_every_other(tmp_path: Path) -> None:
    bench = planted_bench("toy", ["dev"])
    Tuner.untrained(bench.model).structured(structure_for(bench.model, "scales")).save_pretrained(tmp_path / "tuner")
    made = config(tmp_path, search="share", tuner=str(tmp_path / "tuner"), forwards=8)
    plan = Plan(made, bench, quiet)
    low, high = (Candidate((value,) * len(plan.space.names), 0.01) for value in (-2.0, 2.0))
    specs = [plan.specs(candidate, [3])[0] for candidate in (low, high)]
    assert specs[0].key != specs[1].key
    records = [Runner(bench)(spec) for spec in specs]
    assert records[0]["validation_loss"] != records[1]["validation_loss"]
    plan.space.tuner(low.coordinates or ()).save_pretrained(tmp_path / "found")
    assert Tuner.from_pretrained(tmp_path / "found").digest == specs[0].tuner.digest
