"""The generated pages: one for every method of the registry, what goes together, and the list of both in mkdocs.yml.

    python docs/generate.py            write what is not current
    python docs/generate.py --check    write nothing; name what is not current and exit with 1

Everything comes from ``zoft.OPTIMIZERS``: the docstring, the hyper-parameters with their help, and the cost as the
method itself declares it, on a Llama of 97 million parameters that exists on the meta device only.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from pydantic.fields import FieldInfo

from zoft.blocks import Blocks
from zoft.models import new_causal_lm
from zoft.optimizers import OPTIMIZERS, ZOOptimizer
from zoft.optimizers.base import Estimator
from zoft.optimizers.compose import JOIN
from zoft.tuner import BoundTuner, NetworkConfig
from zoft.tuner.features import FeatureConstants
from zoft.tuner.normalization import NormalizationConfig
from zoft.tuner.pertnn import PertNN

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("docs/optimizers")
NAV = Path("mkdocs.yml")
COMMAND = "python docs/generate.py"

#: The model whose state bytes the pages give.
LLAMA = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "vocab_size": 8192,
}

#: Between these lines of mkdocs.yml stands the list of pages.
_BEGIN, _END = f"  # written by {COMMAND}:\n", "  # until here\n"

#: How pydantic's bounds read.
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@cache
def reference_blocks() -> Blocks:
    """The blocks of :data:`LLAMA`, without memory."""
    with torch.device("meta"):
        return Blocks.of(new_causal_lm(LLAMA, seed=0), values=False)


def method(name: str, blocks: Blocks, **hyper: Any) -> ZOOptimizer:
    """The method with its defaults, and with an untrained tuner where it cannot do without one."""
    try:
        return OPTIMIZERS[name](**hyper)
    except ValueError as error:
        if "tuner" not in str(error):
            raise
    network = PertNN(len(blocks), NetworkConfig())
    return OPTIMIZERS[name](tuner=BoundTuner(network, FeatureConstants(), NormalizationConfig()), **hyper)


def forwards(name: str) -> str:
    """Forward passes a step by the number of directions n, from what the method declares at n = 2, 3 and 4.

    Raises:
        ValueError: they are no linear function of n.
    """
    two, three, four = (method(name, reference_blocks(), directions=n).forwards for n in (2, 3, 4))
    slope = three - two
    if four - three != slope:
        raise ValueError(f"{name}: {two}, {three}, {four} forwards with 2, 3, 4 directions")
    default = method(name, reference_blocks()).forwards
    if not slope:
        return str(default)
    rest = two - 2 * slope
    formula = f"{'' if slope == 1 else slope}n" + (f" {'+' if rest > 0 else '−'} {abs(rest)}" if rest else "")
    return f"{default} ({formula} with n directions)"


def state(name: str) -> tuple[int, str]:
    """Bytes of the state for :func:`reference_blocks`, and the same in words."""
    blocks = reference_blocks()
    count = method(name, blocks).state_bytes(blocks)
    if not count:
        return 0, "none"
    if count < 100 * len(blocks):
        return count, f"{count:,} bytes, {count / len(blocks):.1f} a block"
    return count, f"{count:,} bytes, {count / blocks.numel:.2g} a parameter"


def sections(text: str) -> Iterator[tuple[str, str]]:
    """A docstring's parts: (heading, body), the heading "" for plain paragraphs; bodies are dedented."""
    heading, lines = "", []
    for line in text.splitlines():
        begins = re.match(r"([A-Z][a-z]+):(?: +(.*))?$", line)
        ends = heading and line and not line.startswith(" ") and (begins or not lines or not lines[-1])
        if begins or ends:
            yield heading, inspect.cleandoc("\n".join(lines))
            heading, lines = (begins[1], [begins[2] or ""]) if begins else ("", [line])
        else:
            lines.append(line)
    yield heading, inspect.cleandoc("\n".join(lines))


def markdown(text: str) -> str:
    """Docstring text as Markdown: roles become code, arXiv numbers links, examples code blocks."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.lstrip().startswith(">>>"):
            parts.append(f"```pycon\n{inspect.cleandoc(paragraph)}\n```")
            continue
        paragraph = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", paragraph).replace("``", "`")
        paragraph = paragraph.replace("<", "&lt;")
        parts.append(re.sub(r"arXiv\s+(\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", paragraph))
    return "\n\n".join(parts)


def _range(cls: type[ZOOptimizer], name: str) -> str:
    """The values that a hyper-parameter may have."""
    field = cls.model_fields[name]
    if get_origin(field.annotation) is Literal:
        choices = [choice for choice in get_args(field.annotation) if name != "estimator" or choice not in cls.refuses]
        return ", ".join(f"`{choice}`" for choice in choices)
    found = [
        f"{sign} {getattr(item, key):g}"
        for item in field.metadata
        for key, sign in _BOUNDS.items()
        if hasattr(item, key)
    ]
    return ", ".join(found)


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None:
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _row(*cells: str) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def hyper_parameters(cls: type[ZOOptimizer]) -> list[str]:
    """The table of a method's hyper-parameters; those that every method has come last."""
    shared = ZOOptimizer.model_fields
    own = [name for name in cls.model_fields if name not in shared]
    rows = ["| name | default | values | |", "|---|---|---|---|"]
    for name in (*own, *(name for name in shared if name in cls.model_fields)):
        field = cls.model_fields[name]
        rows.append(_row(f"`{name}`", _default(field), _range(cls, name), field.description or ""))
    return rows


def page(name: str) -> str:
    """docs/optimizers/<name>.md."""
    cls = OPTIMIZERS[name]
    parts = list(sections(inspect.getdoc(cls) or ""))
    by_heading = {heading: body for heading, body in parts if heading}
    lines = [f"# {name}", "", f"*Generated by `{COMMAND}`; do not edit.*", ""]
    for heading, body in parts:
        if heading in ("Cost", "Examples", "Reference") or not body:
            continue
        if heading == "Note":
            lines += ["!!! note", *(f"    {line}".rstrip() for line in markdown(body).splitlines()), ""]
        else:
            lines += [f"**{heading}.** {markdown(body)}" if heading else markdown(body), ""]
    given = "--tuner my-tuner" if method(name, reference_blocks()).tuner else f"--optimizer {name}"
    blocks = reference_blocks()
    lines += [
        "## Use",
        "",
        "```bash",
        f"zoft finetune --model zoft-base --task review-contrast {given}",
        "```",
        "",
        f'In Python: `zoft.ZerothOrder(model, method="{name}", ...)` in [your own loop](../trainers.md).',
        "",
        *([markdown(by_heading["Examples"]), ""] if "Examples" in by_heading else []),
        "## Hyper-parameters",
        "",
        *hyper_parameters(cls),
        "",
        "## Published settings",
        "",
        markdown(cls.published),
        "",
        "## Cost",
        "",
        markdown(by_heading["Cost"]),
        "",
        "| | |",
        "|---|---|",
        f"| forward passes a step | {forwards(name)} |",
        f"| state, for a float32 Llama of {blocks.numel:,} parameters in {len(blocks)} blocks | {state(name)[1]} |",
        "",
        "## Reference",
        "",
        markdown(by_heading["Reference"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def index() -> str:
    """docs/optimizers/index.md."""
    blocks = reference_blocks()
    rows = [
        f"| method | | forward passes a step | state, {blocks.numel / 1e6:.1f}M parameters | |",
        "|---|---|---|---|---|",
    ]
    for name, cls in OPTIMIZERS.items():
        summary = next(sections(inspect.getdoc(cls) or ""))[1].split("\n\n")[0]
        size, words = state(name)
        mib = words if size < 1 << 20 else f"{size / (1 << 20):.0f} MiB"
        rows.append(_row(f"[{name}]({name}.md)", markdown(summary), forwards(name), mib, markdown(cls.paper)))
    return "\n".join(
        [
            "# The methods",
            "",
            f"*Generated by `{COMMAND}`; do not edit.*",
            "",
            f"{len(OPTIMIZERS)} methods, all with the same step, noise and tests. Forward passes and bytes are what "
            "the methods declare and the tests measure; the bytes are for a float32 Llama of "
            f"{blocks.numel:,} parameters in {len(blocks)} blocks.",
            "",
            *rows,
            "",
            "A tuner's σ goes with any of them (`--optimizer zo-adam --tuner my-tuner`), and many go with each other: "
            "[compositions](compositions.md).",
            "",
        ]
    )


def compositions() -> str:
    """docs/optimizers/compositions.md: which parts go together, and why the others do not."""
    pairs = OPTIMIZERS.compositions()
    possible = [name for name, reason in pairs.items() if reason is None]
    shapes, rules = (list(dict.fromkeys(name.split(JOIN)[part] for name in possible)) for part in (0, 1))
    table = [_row("direction", *rules), _row(*["---"] * (1 + len(rules)))]
    for shape in shapes:
        found = [f"{shape}{JOIN}{rule}" for rule in rules]
        table.append(_row(f"**{shape}**", *(f"`{name}`" if name in possible else "refused" for name in found)))
    reasons: dict[str, list[str]] = {}
    for name, reason in pairs.items():
        if reason is not None:
            reasons.setdefault(reason, []).append(f"`{name}`")
    kinds = get_args(Estimator)
    refusing = {name: cls.refuses for name, cls in OPTIMIZERS.items() if cls.refuses}
    estimators = [_row("method", *kinds), _row(*["---"] * (1 + len(kinds)))]
    estimators += [_row(f"`{name}`", *(why.get(kind, "yes") for kind in kinds)) for name, why in refusing.items()]
    return "\n".join(
        [
            "# Compositions",
            "",
            f"*Generated by `{COMMAND}`; do not edit.*",
            "",
            "A step has three parts: what shapes the direction, what is measured along it, and what turns the "
            "estimate into a step. Each may come from elsewhere.",
            "",
            "- **Learned σ**: `--tuner` scales the direction of every method and composition.",
            "- **Estimator**: the hyper-parameter `estimator`, and `directions` for the mean over n of them.",
            "- **Direction and update rule**: `a+b` is the direction of `a` with the update rule of `b`, wherever a "
            "method's name may stand. With the plain direction u a rule goes by its own name, and so does a direction "
            "with MeZO's rule.",
            "",
            "```bash",
            f"zoft finetune --model zoft-base --task review-contrast --optimizer {possible[0]}",
            "```",
            "",
            f"## {len(possible)} that are possible",
            "",
            *table,
            "",
            f"## {len(pairs) - len(possible)} that are refused",
            "",
            *(f"- {', '.join(names)}: {reason}." for reason, names in reasons.items()),
            "",
            f"{_listed([name for name, cls in OPTIMIZERS.items() if not cls.parts])} bring no part of their own.",
            "",
            "## Estimators",
            "",
            f"Every method takes each of {', '.join(f'`{kind}`' for kind in kinds)}, but for these:",
            "",
            *estimators,
            "",
        ]
    )


def _listed(names: Sequence[str]) -> str:
    """Names in code style, the last one after "and"."""
    marked = [f"`{name}`" for name in names]
    return " and ".join(filter(None, (", ".join(marked[:-1]), marked[-1])))


def navigation(current: str) -> str:
    """mkdocs.yml with the methods' pages between its two marks.

    Raises:
        ValueError: the marks are missing.
    """
    before, begin, rest = current.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"{NAV} has no lines {_BEGIN.strip()!r} and {_END.strip()!r}")
    entries = [("Overview", "index"), *((name, name) for name in OPTIMIZERS), ("Compositions", "compositions")]
    listed = "".join(f"      - {title}: optimizers/{file}.md\n" for title, file in entries)
    return f"{before}{begin}  - Methods:\n{listed}{end}{after}"


def generated(root: Path) -> dict[Path, str]:
    """Every generated file below ``root`` with its content."""
    pages = {root / FOLDER / f"{name}.md": page(name) for name in OPTIMIZERS}
    overview = {root / FOLDER / "index.md": index(), root / FOLDER / "compositions.md": compositions()}
    return {**overview, **pages, root / NAV: navigation((root / NAV).read_text(encoding="utf-8"))}


def outdated(root: Path) -> list[Path]:
    """Generated files that are missing, differ, or belong to no method any more."""
    wanted = generated(root)
    stray = [file for file in sorted((root / FOLDER).glob("*")) if file not in wanted]
    differing = [
        file for file, text in wanted.items() if not file.is_file() or file.read_text(encoding="utf-8") != text
    ]
    return differing + stray


def main(root: Path = ROOT) -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description="Write the generated pages of the documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is not current")
    check = parser.parse_args().check
    wanted = generated(root)
    for file in outdated(root):
        print(f"{file.relative_to(root)} {'is not current' if check else 'written' if file in wanted else 'removed'}")
        if check:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        if file in wanted:
            file.write_text(wanted[file], encoding="utf-8")
        else:
            file.unlink()
    return int(check and bool(outdated(root)))


if __name__ == "__main__":
    sys.exit(main())
