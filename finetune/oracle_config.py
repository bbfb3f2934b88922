"""What an oracle search is: tasks, budget, seeds. Importing this module needs no torch."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from finetune.compare_config import SELECTION_OFFSET
from zoft.config import Config

#: Learning rates that a search on the √2 grid evaluates, as a rule: five a factor of 2 apart, two more where the
#: best lies near an edge, and its two neighbours.
GRID_POINTS = 9


class OracleConfig(Config):
    """A search for the best static scales and one learning rate over development tasks."""

    base: str = Field("zoft-base", description="Base model: an alias, a ./folder, or user/repo on the Hub.")
    tasks: list[str] = Field([], description="Tasks, never held-out ones; by default all development tasks.")
    search: str = Field("scales", description="The search space: scales, or share (of the tuner's structured part).")
    tuner: str | None = Field(None, description="The tuner that a search space starts from, where it needs one.")
    forwards: int = Field(600, ge=2, description="Forward passes of every run.")
    batch_size: int = Field(16, ge=1, description="Examples a step.")
    epsilon: float = Field(1e-3, gt=0, description="Perturbation scale ε.")
    population: int = Field(8, ge=4, description="Candidates of a generation of CMA-ES.")
    generations: int = Field(15, ge=1, description="Generations of CMA-ES.")
    candidate_seeds: int = Field(1, ge=1, description="Runs of a candidate on each task.")
    fresh_seeds: bool = Field(
        True,
        description="Take other seeds in every generation, the same for all of its candidates; otherwise the same in "
        "all generations, which a search of many generations fits itself to.",
    )
    finalists: int = Field(
        4, ge=1, description="Candidates that are run again on other seeds in the end: the search's mean, and the best."
    )
    final_seeds: int = Field(4, ge=1, description="Those seeds' number.")
    lr_start: float = Field(5e-4, gt=0, description="Where the learning rate's search begins, MeZO's likewise.")
    lr_reach: int = Field(20, ge=4, description="MeZO's grid reaches so many factors of √2 to either side of lr_start.")
    seeds: int = Field(10, ge=2, le=SELECTION_OFFSET, description="Number of other seeds, which are reported.")
    seed: int = Field(0, ge=0, description="The first reported seed, and the seed of CMA-ES.")
    validation_examples: int | None = Field(None, ge=1, description="Validation examples used; by default all.")
    test_examples: int | None = Field(None, ge=1, description="Test examples used; by default all.")
    noise: str = Field("gaussian-table", description="Kind of noise.")
    workers: int | None = Field(None, ge=1, description="Processes; by default one a core (one on an accelerator).")
    threads: int = Field(1, ge=1, description="Threads of every process.")
    device: str = Field("cpu", description="Device.")
    dtype: str | None = Field(None, description="dtype of the weights; by default the checkpoint's.")
    data_dir: str | None = Field(None, description="Folder with local copies of the published tasks' data sets.")
    keep_bytes: int = Field(1 << 26, ge=0, description="Bytes in which a step's noise is kept for its next use.")
    cache_bytes: int | None = Field(None, ge=0, description="As in a comparison.")
    output_dir: str = Field("runs/oracle", description="Folder of the results; a rerun goes on from what is there.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError("a task is given twice")
        return self

    @property
    def reported_seeds(self) -> list[int]:
        """The seeds whose results are reported; nothing is chosen on them."""
        return list(range(self.seed, self.seed + self.seeds))

    def generation_seeds(self, generation: int) -> list[int]:
        """The seeds of a generation's candidates."""
        first = self.seed + SELECTION_OFFSET
        first += generation * self.candidate_seeds if self.fresh_seeds else 0
        return list(range(first, first + self.candidate_seeds))

    @property
    def finalists_seeds(self) -> list[int]:
        """The seeds that the finalists are judged on: no generation had them."""
        first = self.generation_seeds(self.generations)[0] + (0 if self.fresh_seeds else self.candidate_seeds)
        return list(range(first, first + self.final_seeds))

    @property
    def searching_runs(self) -> int:
        """Runs on one task until the choice is made."""
        return self.generations * self.population * self.candidate_seeds + self.finalists * self.final_seeds

    @property
    def mezo_seeds(self) -> list[int]:
        """The seeds of every learning rate of MeZO: so many that its search has as many runs as the other."""
        first = self.seed + SELECTION_OFFSET
        return list(range(first, first + max(1, self.searching_runs // GRID_POINTS)))
