"""The tasks that the literature on zeroth-order fine-tuning reports on, over data sets of the Hub.

Roles: SST-2, COPA and SQuAD are those that the learned optimizer's paper (arXiv 2510.00419) learns on. The
others were divided before zoft used any of them: nothing has been chosen on a development task so far, and
nothing reported on a held-out one.
"""

from __future__ import annotations

from zoft.tasks.published.family import PublishedTask
from zoft.tasks.published.pairs import Cb, Mnli, Rte, Snli
from zoft.tasks.published.reading import BoolQ, Drop, MultiRC, ReCoRD, Squad
from zoft.tasks.published.sentences import Sst2, Sst5, Trec
from zoft.tasks.published.words import Copa, Wic, Wsc

PUBLISHED_TASKS: tuple[type[PublishedTask], ...] = (
    Sst2,
    Sst5,
    Trec,
    Snli,
    Mnli,
    Rte,
    Cb,
    BoolQ,
    Wsc,
    Wic,
    Copa,
    MultiRC,
    ReCoRD,
    Squad,
    Drop,
)

__all__ = ["PUBLISHED_TASKS", "PublishedTask"]
