"""The command line: what it prints and how it exits."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import finetune.run
from tests.test_finetune import tiny_loaded, untrained, write_reviews
from tests.tiny import save_tiny
from zoft.cli import VERBS, LazyGroup, cli, main
from zoft.errors import ArtifactError, DivergedError, DoesNotFitError, IncompatibleError, Interrupted, UsageError
from zoft.optimizers import OPTIMIZERS
from zoft.tasks import TASKS, tasks_with_role

ROOT = Path(__file__).parent.parent

LEARNED, DEVELOPED, HELD_OUT = (tasks_with_role(role)[0] for role in ("meta-training", "development", "held-out"))

#: A name that is nearest to HELD_OUT.
MISSPELT = HELD_OUT + HELD_OUT[-1]

TINY = ["--steps", "2", "--batch-size", "2", "--eval-limit", "4", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model on disk."""
    return str(save_tiny("llama", tmp_path_factory.mktemp("base")))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def without_warnings(err: str) -> list[str]:
    """The lines that are no warnings: two steps may well end worse than they began, and then it is said."""
    return [line for line in err.splitlines() if not line.startswith("zoft: warning: ")]


def one_or_two_lines(err: str) -> bool:
    """Whether ``err`` is an error as they shall be: cause and remedy, no traceback."""
    lines = err.strip().splitlines()
    return 1 <= len(lines) <= 2 and lines[0].startswith("zoft: error: ")


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_imports_nothing_large(flag: str) -> None:
    code = (
        "import sys\nfrom zoft.cli import main\ntry:\n    main([sys.argv[1]])\nfinally:\n"
        "    print({'torch', 'transformers', 'pydantic', 'numpy', 'rich', 'yaml'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"
    assert done.stdout.startswith("Usage: zoft" if flag == "--help" else "zoft ")


def test_every_verb_has_help_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(cli, LazyGroup)
    assert list(VERBS) == ["meta-train", "finetune", "evaluate", "compare", "tuner", "env"]
    _, listed, _ = run(capsys, "--help")
    for name in VERBS:
        assert name in listed
        command = cli.get_command(click.Context(cli), name)
        below = list(command.commands) if isinstance(command, click.Group) else []
        for verb in [[name, part] for part in below] or [[name]]:
            code, out, _ = run(capsys, *verb, "--help")
            assert code == 0
            assert re.search(rf"Examples:\n  zoft {' '.join(verb)}", out)
            assert "--debug" in out
        if name == "tuner":
            assert below == ["show", "list", "pull", "push", "convert"]


def test_examples_name_tasks_that_there_are() -> None:
    named = []
    for name in VERBS:
        command = cli.get_command(click.Context(cli), name)
        for values in re.findall(r"--tasks? (\S+)", getattr(command, "epilog", None) or ""):
            named += values.split(",")
    assert len(named) > 5
    assert set(named) <= set(TASKS)


def test_every_flag_is_explained() -> None:
    for name in VERBS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        options = [param for param in command.params if isinstance(param, click.Option)]
        assert all(option.help for option in options), name


def test_flags_follow_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "finetune", "--help")
    for method in OPTIMIZERS.values():
        for key in method.model_fields:
            assert f"--{key.replace('_', '-')} " in out


def test_the_dry_run_prints_a_configuration_that_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "zoft-base", "--task", HELD_OUT, "--optimizer", "hizoo", "--smooth-scale", "1e-5"]
    code, out, err = run(capsys, "finetune", *flags, "--lr", "2e-6", "--eval-limit", "none", "--dry-run")
    assert (code, err) == (0, "")
    values = yaml.safe_load(out)
    assert values["hyper"] == {"lr": 2e-6, "epsilon": 1e-3, "smooth_scale": 1e-5}
    assert values["eval_limit"] is None
    assert values["output_dir"] == f"runs/{HELD_OUT}-zoft-base-hizoo-0"
    assert "# lr 2e-06: as given" in out
    Path("run.yaml").write_text(out)
    again = run(capsys, "finetune", "--config", "run.yaml", "--seed", "5", "--dry-run")[1]
    assert yaml.safe_load(again) == {**values, "seed": 5}


def test_nested_flags_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("network: {hidden: 8}\nsteps: 7\n")
    args = [
        "--recipe",
        "paper",
        "--config",
        "mine.yaml",
        "--network-output",
        "exp",
        "--steps",
        "9",
        "--tasks",
        LEARNED,
    ]
    code, out, _ = run(capsys, "meta-train", *args, "--no-restart-sigma", "--dry-run")
    assert code == 0
    values = yaml.safe_load(out)
    assert values["network"]["hidden"] == 8
    assert values["network"]["output"] == "exp"
    assert values["network"]["features"] == "raw"  # of the recipe
    assert values["steps"] == 9
    assert values["restart_sigma"] is False
    assert values["tasks"] == [LEARNED]


def test_files_with_configurations_say_their_command_and_it_runs_dry(
    base: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = sorted((ROOT / "finetune" / "configs").rglob("*.yaml")) + sorted((ROOT / "meta_train").rglob("*.yaml"))
    tried = 0
    tuner = untrained(replace(tiny_loaded(), name=base)).save_pretrained(tmp_path / "my-tuner")
    assert tuner.name == "my-tuner"
    rows = [{"text": "A fine film.", "label": ("negative", "positive")[index % 2]} for index in range(12)]
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for file in files:
        first = file.read_text().splitlines()[0]
        words = shlex.split(first.removeprefix("# "))
        if words[:2] not in (["zoft", "finetune"], ["zoft", "meta-train"]):
            continue
        words = [str(ROOT / word) if "/configs/" in word else word for word in words]
        stand_ins = {"BASE": "zoft-base", "TASK,...": LEARNED, "FOLDER": "out", "TUNER": "my-tuner"}
        words = [stand_ins.get(word, word) for word in words]
        code, _, err = run(capsys, *words[1:], "--dry-run")
        assert (code, err) == (0, ""), file
        tried += 1
    assert tried == 29


def test_fine_tuning_resuming_and_evaluating(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_reviews(Path(".")))
    args = ["finetune", "--model", base, "--dataset", data, "--template", "{text} it was", "--optimizer", "mezo"]
    args += ["--lr", "1e-3", *TINY]
    code, out, err = run(capsys, *args, "--output-dir", "run")
    assert (code, without_warnings(err)) == (0, [])
    assert "zero-shot" in out
    assert "model: run/final" in out
    final = json.loads(Path("run/result.json").read_text())["final"]["test"]
    code, _, err = run(capsys, *args, "--output-dir", "run")
    assert code == 2
    assert "this very run, finished" in err
    code, _, err = run(capsys, *args, "--lr", "2e-3", "--labels", "great,terrible", "--output-dir", "run")
    assert code == 2
    assert "another run: labels: None there, ['great', 'terrible'] here; hyper.lr: 0.001 there, 0.002 here" in err
    evaluate = ["evaluate", "--model", "run/final", "--dataset", data, "--template", "{text} it was"]
    code, out, _ = run(capsys, *evaluate, "--splits", "test", "--limit", "4", "--json")
    assert code == 0
    assert json.loads(out)["test"] == {**final, "examples": 2}
    code, out, _ = run(capsys, *evaluate)
    assert re.search(r"^test +loss \d", out, re.MULTILINE)


def test_progress_and_the_resolved_configuration_are_shown(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_reviews(Path(".")))
    args = ["--model", base, "--dataset", data, "--optimizer", "mezo", "--output-dir", "run", *TINY[:-1]]
    code, out, err = run(capsys, "finetune", *args)
    assert code == 0
    assert "batch_size: 2" in out
    assert "# lr 1e-06: the method's default" in out
    lines = without_warnings(err)
    assert [line.split("  ")[0] for line in lines] == ["reviews step 1/2", "reviews step 2/2"]
    assert "validation/accuracy" in lines[1]


def test_meta_training_and_its_tuner(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["meta-train", "--base", "zoft-base", "--tasks", LEARNED, "--steps", "2", "--batch-size", "2"]
    args += ["--lookahead-steps", "1", "--log-every", "1", "--quiet", "--output-dir", "tuner"]
    args += ["--outcome-forwards", "18", "--outcome-examples", "2"]
    code, out, err = run(capsys, *args)
    assert (code, out, err) == (0, "tuner: tuner\n", "")
    assert len(Path("tuner/logs/metrics.jsonl").read_text().splitlines()) == 2
    code, _, err = run(capsys, *args)
    assert code == 2
    assert "this very run, finished" in err
    code, _, err = run(capsys, *args, "--seed", "1")
    assert code == 2
    assert "different meta-training run" in err
    assert run(capsys, *args, "--resume")[0] == 0
    code, out, _ = run(capsys, "tuner", "show", "tuner")
    assert code == 0
    for word in ("zoft-base", LEARNED, "recommended", "median"):
        assert word in out
    assert json.loads(run(capsys, "tuner", "show", "tuner", "--json")[1])["base"] == "zoft-base"
    code, _, err = run(capsys, "finetune", "--tuner", "tuner", "--model", base, "--task", HELD_OUT, "--quiet")
    assert code == 4
    assert re.search(r"\d+ of \d+ blocks match; .*; .*; .* more\)", err)
    assert one_or_two_lines(err)


def test_roles_of_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "meta-train", "--tasks", f"{LEARNED},{HELD_OUT}", "--dry-run")
    assert code == 2
    assert f"{HELD_OUT}: results are reported on held-out tasks" in err
    assert "--allow-held-out" in err
    assert run(capsys, "meta-train", "--tasks", HELD_OUT, "--allow-held-out", "--dry-run")[0] == 0
    code, _, err = run(capsys, "meta-train", "--tasks", DEVELOPED, "--dry-run")
    assert code == 0
    assert err.startswith(f"zoft: warning: {DEVELOPED}: ")


MODEL_AND_TASK = ["--model", "zoft-base", "--task", HELD_OUT]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["finetun"], ["unknown command 'finetun'", "did you mean finetune", "zoft --help"]),
        (["finetune", "--stepz", "3"], ["unknown flag --stepz", "did you mean --steps"]),
        (["finetune", "--steps"], ["requires an argument", "zoft finetune --help"]),
        (["finetune", "--model", "zoft-bas", "--task", MISSPELT], ["zoft-base", f"did you mean {HELD_OUT}"]),
        (["finetune", *MODEL_AND_TASK], ["no method is given", "mezo"]),
        (["finetune", *MODEL_AND_TASK, "--optimizer", "hizo"], ["unknown optimizer 'hizo'", "hizoo"]),
        (["finetune", *MODEL_AND_TASK, "--optimizer", "mezo", "--smooth-scale", "1"], ["one of hizoo"]),
        (
            ["finetune", *MODEL_AND_TASK, "--optimizer", "forward-grad", "--objective", "f1"],
            ["forward-grad needs a gradient, and f1 has none", "such as mezo"],
        ),
        (["compare", "--dry-run", "--optimizers", "mezo,hizo"], ["unknown optimizer 'hizo'; did you mean hizoo"]),
        (["compare", "--dry-run", "--optimizers", "hizoo:smooth_scal=1e-3"], ["did you mean smooth_scale"]),
        (["finetune", *MODEL_AND_TASK, "--optimizer", "mezo", "--steps", "x", "--seed", "-1"], ["steps: ", "seed: "]),
        (["finetune", "--config", "absent.yaml"], ["cannot read absent.yaml"]),
        (["finetune", "--columns", "text"], ["not name=value"]),
        (["meta-train", "--recipe", "papr", "--base", "llama-2-7"], ["did you mean paper", "llama-2-7b"]),
        (["meta-train", "--network-output", "relu"], ["network.output", "'abs', 'exp' or 'bounded'"]),
        (["evaluate", "--task", HELD_OUT], ["no model is given", "--model"]),
        (["evaluate", *MODEL_AND_TASK, "--splits", "dev"], ["splits.0"]),
        (["tuner", "shw"], ["shw"]),
    ],
)
def test_usage_errors(args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "")
    assert one_or_two_lines(err)
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("mezo --epsilon -1", "hyper: mezo: epsilon: input should be greater than 0 (given: '-1')"),
        ("mezo --directions 0", "hyper: mezo: directions: input should be greater than or equal to 1 (given: '0')"),
        ("hizoo+lozo", "optimizer: hizoo+lozo cannot be composed: hizoo and lozo both shape the direction"),
    ],
)
def test_a_wrong_value_is_shown_once(options: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "finetune", *MODEL_AND_TASK, "--optimizer", *options.split())
    assert (code, err) == (2, f"zoft: error: zoft finetune: {sentence}\nCorrect the value.\n")


def test_unknown_keys_of_a_file_are_named_together(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text(f"stepz: 3\nbatchsize: 4\ntask: {MISSPELT}\n")
    code, _, err = run(capsys, "finetune", "--config", "bad.yaml")
    assert code == 2
    assert one_or_two_lines(err)
    for word in ("bad.yaml: ", "did you mean steps?", "batch_size", HELD_OUT):
        assert word in err


def test_data_that_cannot_be_used(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.jsonl").write_text("")
    common = ["finetune", "--model", base, "--optimizer", "mezo", *TINY, "--output-dir", "run"]
    code, _, err = run(capsys, *common, "--dataset", "empty.jsonl")
    assert code == 2
    assert one_or_two_lines(err)
    rows = [{"text": "x " * (200 if i == 5 else 2), "label": "ab"[i % 2]} for i in range(12)]
    Path("long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = run(capsys, *common, "--dataset", "long.jsonl")
    assert code == 2
    assert "long.jsonl, row 6: 402 tokens" in err
    code, _, err = run(capsys, *common, "--dataset", "absent.jsonl")
    assert code == 3
    assert "absent.jsonl" in err
    assert not Path("run").exists()


def test_artifacts_that_cannot_be_had(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("old.pth").write_bytes(b"\x80\x04.")
    code, _, err = run(capsys, "finetune", "--tuner", "old.pth", "--task", HELD_OUT)
    assert code == 3
    assert "zoft tuner convert" in err
    code, _, err = run(capsys, "finetune", "--tuner", "./absent", "--task", HELD_OUT)
    assert code == 3
    assert one_or_two_lines(err)
    code, _, err = run(capsys, "evaluate", "--model", "./absent", "--task", HELD_OUT)
    assert code == 3
    assert one_or_two_lines(err)


def test_a_learning_rate_that_diverges(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(write_reviews(Path(".")))
    args = ["--model", base, "--dataset", data, "--optimizer", "mezo", "--lr", "1e6", "--patience", "3"]
    code, _, err = run(capsys, "finetune", *args, *TINY, "--steps", "30", "--output-dir", "run")
    assert code == 5
    assert one_or_two_lines(err)
    assert "for instance 500000" in err
    assert len(list(Path("run/checkpoints").iterdir())) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("c", "r"), 2),
        (ArtifactError("c", "r"), 3),
        (IncompatibleError("c", "r"), 4),
        (DivergedError("c", "r"), 5),
        (DoesNotFitError("c", "r"), 6),
        (Interrupted("c", "r"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(finetune.run, "finetune", _raising(error))
    given, _, err = run(capsys, "finetune", *MODEL_AND_TASK, "--optimizer", "mezo", "--quiet")
    assert given == code
    assert err.strip() == ("zoft: interrupted" if isinstance(error, KeyboardInterrupt) else "zoft: error: c\nr")


def test_a_bug_says_so_and_shows_its_traceback_with_debug_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(finetune.run, "finetune", _raising(RuntimeError("what\nnow")))
    args = ["finetune", *MODEL_AND_TASK, "--optimizer", "mezo", "--quiet"]
    code, _, err = run(capsys, *args)
    assert code == 1
    assert err.startswith("zoft: error: this is a bug: RuntimeError: what now\n")
    assert "--debug" in err
    assert "Traceback" not in err
    assert "Traceback" in run(capsys, *args, "--debug")[2]


def _raising(error: BaseException) -> Any:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    return fail


def test_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "env")
    assert code == 0
    for name in ("python", "zoft", "torch", "transformers", "cuda"):
        assert re.search(rf"^{name} +\S", out, re.MULTILINE)


def test_ended_from_outside_it_saves_and_goes_on(base: str) -> None:
    """The whole way in a process of its own: SIGTERM in the middle, 143, then --resume to the end."""
    data = str(write_reviews(Path(".")))
    args = [sys.executable, "-m", "zoft.cli", "finetune", "--model", base, "--dataset", data, "--optimizer", "mezo"]
    args += [
        "--steps",
        "400",
        "--threads",
        "1",
        "--batch-size",
        "2",
        "--eval-limit",
        "4",
        "--eval-every",
        "0",
        "--output-dir",
        "run",
    ]
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=".")
    assert process.stderr is not None
    first = process.stderr.readline()  # the first line of progress: it has begun
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert first.startswith("reviews step ")
    assert process.returncode == 143
    assert "Traceback" not in err
    stopped = re.search(
        r"zoft: error: stopped after step (\d+), saved in (\S+)\nRun the same command with --resume", err
    )
    assert stopped is not None
    assert Path(stopped[2], "model.safetensors").is_file()
    assert int(stopped[1]) < 400
