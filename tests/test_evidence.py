"""The evidence and the table of candidates: what they refuse, and that what they show is what was measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import against_tuned, paired
from finetune import candidates
from finetune.compare import compare
from finetune.evidence import evidence, main, render
from finetune.evidence_config import EvidenceConfig
from finetune.evidence_page import GOALS, figures, pairs_of, share_of
from finetune.evidence_parts import Part
from tests.compare_toys import planted_tuner, toy_bench
from tests.test_compare import config as comparison
from tests.test_compare import quiet
from zoft.errors import UsageError

ROOT = Path(__file__).parents[1]

LEAD = "Of toys."
NOTES = f"{LEAD}\n\n## What failed\n\nMost of it.\n\n## Limits\n\nToys.\n"


def values(folder: Path, **more: Any) -> dict[str, Any]:
    """An evidence of a second or two: a base and a derivative, on toys."""
    tuner = folder / "tuner"
    if not tuner.is_dir():
        planted_tuner(tuner)
        (folder / "notes.md").write_text(NOTES)
    bases = [
        {"name": "toy", "base": "toy", "tuner": str(tuner), "tasks": ["alike", "held"], "choose_on": ["dev"]},
        {"name": "toy-2", "base": "toy", "tuner": str(tuner), "tasks": ["alike"], "choose_on": ["dev"],
         "derivative": True},
    ]  # fmt: skip
    fixed = {
        "bases": bases, "optimizers": ["mezo"], "budgets": [20], "seeds": 3, "selection_seeds": 1, "lr_start": 1e-2,
        "lr_reach": 14, "workers": 1, "eval_points": 4, "output_dir": str(folder / "runs"),
        "result": str(folder / "docs" / "evidence.json"), "page": str(folder / "docs" / "evidence.md"),
        "notes": str(folder / "notes.md"), "plots": False,
    }  # fmt: skip
    return {**fixed, **more}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of an evidence, and its figures."""
    folder = tmp_path_factory.mktemp("evidence")
    return folder, evidence(EvidenceConfig.build(values(folder)), say=quiet, factory=toy_bench)


def test_the_figures_are_those_of_the_comparisons(made: tuple[Path, dict[str, Any]]) -> None:
    folder, content = made
    pairs = pairs_of(content)
    assert [(pair.base, pair.regime, pair.task.task) for pair in pairs] == [
        ("toy", "tuned", "alike"), ("toy", "tuned", "held"), ("toy", "untuned", "alike"), ("toy", "untuned", "held"),
        ("toy-2", "tuned", "alike"), ("toy-2", "untuned", "alike"),
    ]  # fmt: skip
    compared = json.loads((folder / "runs" / "toy" / "compare.json").read_text())
    for pair, task in zip(pairs, compared["tasks"], strict=False):
        loss = task["cells"]["default"]["loss"]
        assert pair.task.cells["default"].loss == pytest.approx(loss, rel=1e-5)
    outcomes = [pair.contest.outcome for pair in pairs if pair.contest]
    assert outcomes == ["win", "win", "win", "open", "win", "win"]  # one rate for all is lost on the steep task
    found = {(figure.measure, figure.derivatives): figure for figure in figures(pairs)}
    assert len(found) == 2 * len(GOALS)
    assert found["tuned", False].shown.startswith("2 of 2 = 100%")
    assert found["untuned", False].shown.startswith("1 of 2 = 50%")
    assert found["untuned", False].shown.endswith("; 3 of 6 runs diverged")
    assert found["tuned", True].shown.startswith("1 of 1 = 100%")
    assert found["crossed", False].shown.startswith("1 of 2")
    reach = found["reach", False].found
    assert reach is not None
    assert 0 < reach.low <= reach.mean <= reach.high < 1
    assert found["metric", False].found is not None


def test_the_page_shows_goals_tables_plots_and_the_notes(made: tuple[Path, dict[str, Any]]) -> None:
    folder, content = made
    text = (folder / "docs" / "evidence.md").read_text()
    for words in (
        "## On held-out tasks",
        "## On derivatives",
        "| wins on final loss over the best rival, tuned | ≥ 95 % of ≥ 28 pairs | 82.1 %, no control | 2 of 2 = 100%",
        "### toy: untuned, 20 forward passes",
        "Against every rival by itself, tuned, 20 forwards, on bases, of 2 pairs:",
        "| mezo | 2 | 0 | 0 | ",
        "| best rival | ",
        "![Loss by forward passes](evidence/toy-loss.png)",
        content["frozen"]["tuners"]["toy"][0],
        NOTES.removeprefix(LEAD),
    ):
        assert words in text
    assert text.count(LEAD) == 1
    assert text.index(LEAD) < text.index("## On held-out tasks")
    for name in ("toy-loss", "toy-lr", "toy-2-loss", "toy-2-lr"):
        assert (folder / "docs" / "evidence" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    again = render(EvidenceConfig.build(values(folder)))
    assert again == text


def test_figures_of_what_is_complete_name_the_rest(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, whole = made
    config = EvidenceConfig.build(values(tmp_path))
    runs = [json.loads(line) for line in (folder / "runs" / "toy" / "runs.jsonl").read_text().splitlines()]
    kept = [run for run in runs if run["settings"]["task"] != "held"]
    target = tmp_path / "runs" / "toy" / "runs.jsonl"
    target.parent.mkdir(parents=True)
    target.write_text("".join(json.dumps(run) + "\n" for run in kept))
    content = evidence(config, so_far=True, say=quiet, factory=toy_bench)
    assert target.read_text().count("\n") == len(kept)
    assert content["missing"] == [
        {"base": "toy", "regime": "tuned", "forwards": 20, "tasks": ["held"]},
        {"base": "toy", "regime": "untuned", "forwards": 20, "tasks": ["alike", "held"]},
        {"base": "toy-2", "regime": "tuned", "forwards": 20, "tasks": ["alike"]},
        {"base": "toy-2", "regime": "untuned", "forwards": 20, "tasks": ["alike"]},
    ]
    (base,) = content["bases"]
    (view,) = base["views"]
    assert [task["task"] for task in view["tasks"]] == ["alike"]
    assert view["tasks"][0] == whole["bases"][0]["views"][0]["tasks"][0]
    page = Path(config.page).read_text()
    assert "- untuned, 20 forwards: alike, held on toy; alike on toy-2" in page
    assert "| the same, untuned | 100 %, no divergence | – | – |" in page
    target.write_text("".join(json.dumps(run) + "\n" for run in runs))
    again = evidence(config, so_far=True, say=quiet, factory=toy_bench)
    assert again["bases"] == whole["bases"][:1]
    assert {one["base"] for one in again["missing"]} == {"toy-2"}


def untimed(bases: list[dict[str, Any]]) -> Any:
    """The figures without the seconds that runs took."""
    text = json.dumps(bases)
    return json.loads(text, object_hook=lambda found: {k: v for k, v in found.items() if k != "seconds"})


def test_it_is_made_in_parts_and_figures_outlive_their_runs(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, whole = made
    config = EvidenceConfig.build(values(tmp_path))

    def part(**of: Any) -> dict[str, Any]:
        return evidence(config, part=Part(**of), say=quiet, factory=toy_bench)

    first = part(bases=["toy"], regimes=["tuned"], tasks=["held"])
    assert [[task["task"] for task in view["tasks"]] for view in first["bases"][0]["views"]] == [["held"]]
    runs = tmp_path / "runs" / "toy" / "runs.jsonl"
    assert {json.loads(line)["settings"]["task"] for line in runs.read_text().splitlines()} == {"held"}
    shutil.rmtree(tmp_path / "runs")
    second = part(bases=["toy"], budgets=[20], tasks=["alike"])
    assert untimed(second["bases"])[0]["views"][0] == untimed(whole["bases"])[0]["views"][0]
    assert [(one["base"], one["regime"]) for one in second["missing"]] == [
        ("toy", "untuned"), ("toy-2", "tuned"), ("toy-2", "untuned"),
    ]  # fmt: skip
    shutil.rmtree(tmp_path / "runs")
    part(regimes=["untuned"], bases=["toy"])
    shutil.rmtree(tmp_path / "runs")
    third = part(bases=["toy-2"])
    assert (untimed(third["bases"]), third["missing"]) == (untimed(whole["bases"]), [])
    result = Path(config.result)
    assert evidence(config, so_far=True, say=quiet, factory=toy_bench)["bases"] == third["bases"]
    other = json.loads(result.read_text())
    other["bases"][1]["base"]["weights"] = "others"
    result.write_text(json.dumps(other))
    with pytest.raises(UsageError, match="evidence of toy-2 with other weights is there already"):
        evidence(config, so_far=True, say=quiet, factory=toy_bench)
    with pytest.raises(UsageError, match="unknown budget of the evidence '30'"):
        part(budgets=[30])


def test_tuners_of_a_base_without_figures_may_change(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, whole = made
    config = EvidenceConfig.build(values(tmp_path))
    evidence(config, part=Part(bases=["toy"]), say=quiet, factory=toy_bench)
    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(tmp_path / "tuner")  # what was made with it is there: it is not needed any more
    bases = values(tmp_path)["bases"]
    shutil.rmtree(tmp_path / "tuner")
    bases[1]["tuner"] = str(planted_tuner(tmp_path / "second", seed=1))
    config = EvidenceConfig.build(values(tmp_path, bases=bases))
    shutil.rmtree(tmp_path / "tuner")
    content = evidence(config, part=Part(bases=["toy-2"]), say=quiet, factory=toy_bench)
    assert untimed(content["bases"])[0] == untimed(whole["bases"])[0]
    assert content["bases"][1]["tuners"] == content["frozen"]["tuners"]["toy-2"] != content["bases"][0]["tuners"]
    shutil.rmtree(tmp_path / "second")
    planted_tuner(tmp_path / "second", seed=2)
    with pytest.raises(UsageError, match="evidence of other tuners of toy-2 is there already"):
        evidence(config, so_far=True, say=quiet, factory=toy_bench)


def test_another_tuner_or_setting_is_refused_unless_it_is_said_why(made: tuple[Path, dict[str, Any]]) -> None:
    folder, content = made
    config = EvidenceConfig.build(values(folder))
    lines: list[str] = []
    again = evidence(config, say=lines.append, factory=toy_bench)
    assert again == content
    assert not any("validation loss" in line for line in lines)
    with pytest.raises(UsageError, match="evidence of other settings is there already"):
        evidence(EvidenceConfig.build(values(folder, seeds=4)), say=quiet, factory=toy_bench)
    other = planted_tuner(folder / "other", seed=1)
    bases = [{**values(folder)["bases"][1], "tuner": str(other)}]
    changed = EvidenceConfig.build(values(folder, bases=bases, seeds=1))
    with pytest.raises(UsageError, match="evidence of other tuners of toy-2 is there already"):
        evidence(changed, say=quiet, factory=toy_bench)
    assert json.loads((folder / "docs" / "evidence.json").read_text()) == content
    after = evidence(changed, supersede="a mistake was found", say=quiet, factory=toy_bench)
    assert after["earlier"] == [{"frozen": content["frozen"], "reason": "a mistake was found"}]
    assert (
        f"put aside earlier: tuners {content['frozen']['tuners']['toy'][0]}"
        in (folder / "docs" / "evidence.md").read_text()
    )


def test_what_is_no_evidence_is_refused(tmp_path: Path) -> None:
    bases = [{"name": "a", "base": "zoft-base", "tuner": "x", "tasks": ["question-type"]}]
    with pytest.raises(UsageError, match="question-type of a is no held-out task"):
        EvidenceConfig.build(values(tmp_path, bases=bases))
    dev = [{**values(tmp_path)["bases"][0], "tasks": ["dev"]}]
    with pytest.raises(UsageError, match="dev: no held-out task"):
        evidence(EvidenceConfig.build(values(tmp_path, bases=dev, seeds=1)), say=quiet, factory=toy_bench)
    (tmp_path / "notes.md").write_text("## What failed\n\n## Limits\n\nToys.\n")
    with pytest.raises(UsageError, match="nothing under '## What failed'"):
        evidence(EvidenceConfig.build(values(tmp_path)), say=quiet, factory=toy_bench)
    with pytest.raises(UsageError, match="different names"):
        EvidenceConfig.build(values(tmp_path, bases=[dev[0], dev[0]]))


def test_the_command_and_its_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ROOT / "finetune" / "configs" / "evidence.yaml"
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first == "# python -m finetune.evidence --config finetune/configs/evidence.yaml"
    assert first.removeprefix("# python ") in (ROOT / "Makefile").read_text(encoding="utf-8")
    made = EvidenceConfig.load(file)
    assert EvidenceConfig.build(made.to_dict()) == made
    assert made.seeds >= 10
    assert made.budgets == [600, 2000, 10000]
    assert sum(len(base.reported) for base in made.bases) >= 28
    assert all(isinstance(base.tuner, list) and len(base.tuner) >= 3 for base in made.bases)
    for base in made.bases:
        compared = made.comparison(base)
        assert (compared.regimes, compared.controls) == (["tuned", "untuned"], None)
        assert compared.output_dir == f"runs/evidence/{base.name}"
    assert main(["--config", str(tmp_path / "none.yaml")]) == 2
    assert "cannot read" in capsys.readouterr().err
    parts = "bases: [{name: a, base: a, tuner: b}]\nnotes: " + str(tmp_path / "notes.md")
    (tmp_path / "evidence.yaml").write_text(parts)
    (tmp_path / "notes.md").write_text(NOTES)
    assert main(["--config", str(tmp_path / "evidence.yaml"), "--base", "c"]) == 2
    assert "unknown base of the evidence 'c'" in capsys.readouterr().err


def test_intervals_of_shares_are_wilson_s() -> None:
    found, shown = share_of(27, 28)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(0.8229, abs=1e-3), pytest.approx(0.9937, abs=1e-3))
    assert shown == "27 of 28 = 96% (82% … 99%)"
    assert share_of(0, 0) == (None, "–")


def test_candidates_are_kept_failures_too_and_come_from_development_tasks(tmp_path: Path) -> None:
    tuner = planted_tuner(tmp_path / "tuner")
    common = {"optimizers": ["mezo"], "seeds": 2, "forwards": 12, "tuners": {"mine": str(tuner)}, "plots": False}
    common |= {"lr_mode": "fixed", "lrs": dict.fromkeys(("mezo", "untrained", "permuted", "mine"), 1e-2)}
    for name, tasks in (("dev", ["dev"]), ("held", ["dev", "alike"])):
        compare(comparison(tmp_path / name, **{**common, "tasks": tasks}), say=quiet, factory=toy_bench)
    result, page = tmp_path / "candidates.json", tmp_path / "candidates.md"
    made = tmp_path / "dev" / "compare.json"
    rows = candidates.add(made, "mine", "planted | by hand", result, page)
    assert candidates.add(made, "mine", "said again", result, page) == rows
    assert len(rows) == 1
    assert "| mine | planted / by hand | toy | 1 | given | 12 | " in page.read_text()
    content = json.loads(made.read_text())
    content["views"][0]["standings"]["mine"] |= {"tasks": 1, "losses": 1, "reach": None, "reach_runs": 2}
    made.write_text(json.dumps(content))
    assert len(candidates.add(made, "mine", "failed", result, page)) == 2
    assert "| 0 : 1 of 1 | – | – | not reached | " in page.read_text()
    with pytest.raises(UsageError, match="alike are no development tasks"):
        candidates.add(tmp_path / "held" / "compare.json", "mine", "", result, page)
    with pytest.raises(UsageError, match="no tuner yours in this comparison; its tuners: mine"):
        candidates.add(made, "yours", "", result, page)
    with pytest.raises(UsageError, match="is no result of a comparison"):
        candidates.add(result, "mine", "", result, page)


def test_a_tuner_at_one_rate_is_held_against_mezo_at_its_best(
    made: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, content = made
    common = {"forwards": 20, "seeds": 3, "optimizers": ["mezo"], "tasks": ["alike", "held"], "plots": False}
    common |= {"controls": [], "tuners": {"mine": str(folder / "tuner")}, "lr_mode": "fixed"}
    compare(comparison(tmp_path, **common, lrs={"mezo": 1e-4, "mine": 1e-2}), say=quiet, factory=toy_bench)
    result = folder / "docs" / "figures.json"
    result.write_text(json.dumps(content))
    given = tmp_path / "compare.json"
    assert against_tuned.main([str(given), str(result)]) == 0
    found = list(against_tuned.rows(json.loads(given.read_text()), content))
    assert [(task, label) for task, label, _, _ in found] == [("alike", "mine"), ("held", "mine")]
    tuned = {task["task"]: task["cells"]["mezo"] for task in content["bases"][0]["views"][0]["tasks"]}
    for task, _, mine, mezo in found:
        assert (mine.lr, mezo.lr) == (1e-2, tuned[task]["lr"])
        assert (mezo.loss, mine.seeds) == (tuned[task]["loss"], mezo.seeds)
    lines = capsys.readouterr().out.splitlines()
    for line, (_, _, mine, mezo) in zip(lines[2:], found, strict=False):
        difference = sum(mine.loss) / 3 - sum(mezo.loss) / 3
        assert f"| {difference:+.4f} (" in line
    outcomes = [line.split("|")[-2].strip() for line in lines[2:4]]
    assert lines[-1] == f"mine wins on {outcomes.count('win')} of 2."
    given.write_text(given.read_text().replace(json.loads(given.read_text())["base"]["weights"], "other"))
    assert list(against_tuned.rows(json.loads(given.read_text()), content)) == []


METHODS = ("mezo", "permuted", "mine")


def test_a_tuner_of_one_comparison_is_held_against_the_methods_of_another(
    made: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = made
    common = {"forwards": 20, "seeds": 3, "tasks": ["alike", "held"], "plots": False, "lr_mode": "fixed"}
    common |= {"tuners": {"mine": str(folder / "tuner")}}
    files = []
    for name, changes in (
        ("first", {"controls": [], "optimizers": [], "lrs": {"mine": 1e-2}}),
        ("second", {"controls": ["permuted"], "optimizers": ["mezo"], "lrs": dict.fromkeys(METHODS, 1e-4)}),
    ):
        compare(comparison(tmp_path / name, **common, **changes), say=quiet, factory=toy_bench)
        files.append(tmp_path / name / "compare.json")
    contents = [json.loads(file.read_text()) for file in files]
    found = list(paired.rows(*contents))
    assert [(task, label) for task, label, _, _ in found] == [(t, m) for t in ("alike", "held") for m in METHODS]
    assert {(mine.lr, other.lr) for _, _, mine, other in found} == {(1e-2, 1e-4)}
    assert paired.main([str(file) for file in files]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, (_, _, mine, other) in zip(lines[2:], found, strict=False):
        assert f"| {sum(mine.loss) / 3 - sum(other.loss) / 3:+.4f} (" in line
    counts = {m: sum(f"| {m} |" in line and line.endswith("| win |") for line in lines) for m in METHODS}
    least = [min(found[at : at + 2], key=lambda row: sum(row[3].loss))[1] for at in (0, 3)]  # of mezo and permuted
    best = sum(
        any(f"| {task} |" in x and f"| {m} |" in x and x.endswith("| win |") for x in lines)
        for task, m in zip(("alike", "held"), least, strict=True)
    )
    said = "; ".join(f"{method} {count} of 2" for method, count in counts.items())
    assert lines[-1] == f"Wins: {said}; against the best of each task's rivals {best} of 2."
    contents[0]["base"]["weights"] = "other"
    assert list(paired.rows(*contents)) == []
