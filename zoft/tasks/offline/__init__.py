"""The offline tasks: a generated small world that the embedded base half knows.

They need no network and run in seconds on the embedded base (``zoft/assets/base``), whose training
text comes from the same world (:mod:`zoft.tasks.offline.prose`) without any of the tasks' prompts.
"""

from __future__ import annotations

from zoft.tasks.offline.choice import ChoiceCause, ChoiceKind
from zoft.tasks.offline.classification import Headline, Mood, QuestionType, TopicLast
from zoft.tasks.offline.completion import ListItem, QuestionColour, QuestionPlace, RewriteOpposite
from zoft.tasks.offline.family import OfflineTask
from zoft.tasks.offline.pairs import EntailQuantifier, ReviewContrast, ReviewNegation

OFFLINE_TASKS: tuple[type[OfflineTask], ...] = (
    ReviewContrast,
    TopicLast,
    ChoiceCause,
    QuestionPlace,
    RewriteOpposite,
    ReviewNegation,
    QuestionType,
    EntailQuantifier,
    QuestionColour,
    Mood,
    Headline,
    ChoiceKind,
    ListItem,
)

__all__ = ["OFFLINE_TASKS", "OfflineTask"]
