"""The offline tasks: a generated small world that the embedded base half knows.

They need no network and run in seconds on the embedded base (``zoft/assets/base``), whose training
text comes from the same world (:mod:`zoft.tasks.offline.prose`) without any of the tasks' prompts.
"""

from __future__ import annotations

from zoft.tasks.offline.choice import ChoiceCause, ChoiceKind
from zoft.tasks.offline.classification import (
    EntailKind,
    EntailOpposite,
    EntailPlace,
    Headline,
    Mood,
    QuestionType,
    ReviewContrast,
    ReviewNegation,
    TopicMixed,
)
from zoft.tasks.offline.completion import (
    ListItem,
    QuestionColour,
    QuestionOwner,
    QuestionPlace,
    RewriteOpposite,
)
from zoft.tasks.offline.family import OfflineTask

OFFLINE_TASKS: tuple[type[OfflineTask], ...] = (
    ReviewContrast,
    TopicMixed,
    EntailKind,
    ChoiceCause,
    QuestionOwner,
    RewriteOpposite,
    ReviewNegation,
    QuestionType,
    EntailOpposite,
    QuestionPlace,
    Mood,
    Headline,
    EntailPlace,
    ChoiceKind,
    QuestionColour,
    ListItem,
)

__all__ = ["OFFLINE_TASKS", "OfflineTask"]
