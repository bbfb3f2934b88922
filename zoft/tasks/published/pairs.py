"""Does one text follow from another? SNLI, MNLI, RTE, CB."""

from __future__ import annotations

from typing import ClassVar

from zoft.tasks.base import Example
from zoft.tasks.published.family import PublishedTask, class_of, pair_cloze
from zoft.tasks.published.tables import Hub
from zoft.tasks.rows import Row

SUPERGLUE = ("aps/super_glue", "3de24cf8022e94f4ee4b9d55a6f539891524d646")


class Entailment(PublishedTask):
    """What the tasks of textual entailment share: two texts, and a class for each of ``words``.

    Prompts: MeZO, table 14 (RTE, CB), and table 13 for masked models. Note: the table has a question mark
    more after CB's hypothesis, which the paper's repository has not. The paper has no prompt of SNLI and
    MNLI for causal models; CB's is used, whose three classes are the same.
    """

    kind: ClassVar[str] = "classification"
    columns: ClassVar[tuple[str, ...]] = ("premise", "hypothesis", "label")
    prompt: ClassVar[str] = 'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n'
    words: ClassVar[tuple[str, ...]]

    def example(self, row: Row) -> Example:
        premise, hypothesis = row.values["premise"].strip(), row.values["hypothesis"].strip()
        label = class_of(row, "label", len(self.words))
        cloze = pair_cloze(premise, hypothesis, tuple(f" {word}" for word in self.words))
        passage = premise.rstrip(".,;:!? ")  # as it stands in both prompt and cloze
        prompt = self.prompt.format(premise=premise, hypothesis=hypothesis)
        return Example(prompt, self.words, label, passage=passage, cloze=cloze)


class Snli(Entailment):
    """Entailment between captions of pictures (Bowman et al., 2015); rows without a consensus are left out."""

    name: ClassVar[str] = "snli"
    role: ClassVar[str] = "held-out"
    hub: ClassVar[Hub] = Hub("stanfordnlp/snli", "cdb5c3d5eed6ead6e5a341c8e56e669bb666725b", "plain_text")
    test_rows: ClassVar[str] = "test"
    words: ClassVar[tuple[str, ...]] = ("Yes", "Maybe", "No")


class Mnli(Entailment):
    """Entailment in many genres (Williams et al., 2018), tested on the matched ones."""

    name: ClassVar[str] = "mnli"
    role: ClassVar[str] = "held-out"
    hub: ClassVar[Hub] = Hub("nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c", "mnli")
    test_rows: ClassVar[str] = "validation_matched"
    words: ClassVar[tuple[str, ...]] = ("Yes", "Maybe", "No")


class Rte(Entailment):
    """Entailment between sentences of the news, in two classes (Dagan et al., 2005; SuperGLUE's RTE)."""

    name: ClassVar[str] = "rte"
    role: ClassVar[str] = "development"
    hub: ClassVar[Hub] = Hub(*SUPERGLUE, "rte")
    prompt: ClassVar[str] = '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n'
    words: ClassVar[tuple[str, ...]] = ("Yes", "No")


class Cb(Entailment):
    """Is an embedded clause what its author holds to be true? (de Marneffe et al., 2019; SuperGLUE's CB.)"""

    name: ClassVar[str] = "cb"
    role: ClassVar[str] = "held-out"
    hub: ClassVar[Hub] = Hub(*SUPERGLUE, "cb")
    words: ClassVar[tuple[str, ...]] = ("Yes", "No", "Maybe")
