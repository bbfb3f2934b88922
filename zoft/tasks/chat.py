"""Chat messages as a completion: the last answer of the assistant, given everything before it.

The text is what the tokenizer's own chat template makes of the messages, special tokens and all, so that a
model is trained on what it will see.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from zoft.config import unknown
from zoft.errors import UsageError
from zoft.tasks.base import Example

#: Who may speak in a chat. A template may know fewer, and then says so.
CHAT_ROLES = ("system", "developer", "user", "assistant", "tool")


def check_template(tokenizer: Any, where: str) -> None:
    """Raise a UsageError where there is no tokenizer, or none with a chat template."""
    if tokenizer is None:
        raise UsageError(f"{where}: chat messages need a tokenizer", "Give the model's as tokenizer=.")
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            f"{where}: the data is chat messages, and the model's tokenizer has no chat template",
            "Use an instruction-tuned model, or give prompt and completion columns.",
        )


def chat_example(value: Any, tokenizer: Any, where: str) -> Example:
    """The example of one conversation.

    Args:
        value: a list of ``{"role": ..., "content": ...}``, or its JSON text; the last message is the
            assistant's, and is what is learned. Its references are its content.

    Raises:
        UsageError: messages that are no conversation, an unknown role, or a template that refuses them;
            begins with ``where``.
    """
    messages = _messages(value, where)
    try:
        whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
        prompt = str(tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template raises whatever its author wrote
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{where}: the chat template refuses the messages: {reason}", "Correct the row.") from error
    answer = messages[-1]["content"].strip()
    if not whole.startswith(prompt) or answer not in whole[len(prompt) :]:
        # The template marks the turn that is to be generated differently; the answer itself is still found.
        prompt, found, _ = whole.rpartition(answer)
        if not found:
            raise UsageError(f"{where}: the chat template leaves the answer out", "Use another chat template.")
    completion = whole[len(prompt) :].rstrip()
    return Example(prompt, (completion,), 0, (answer,))


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    """The messages, checked."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise UsageError(f"{where}: the messages are not valid JSON", "Write a JSON list of messages.") from None
    if not isinstance(value, Sequence) or len(value) < 2:
        raise UsageError(f"{where}: not a list of two or more messages", "Give at least a question and its answer.")
    for number, message in enumerate(value, start=1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise UsageError(
                f"{where}: message {number} has no role and content", 'Write {"role": ..., "content": ...}.'
            )
        if message["role"] not in CHAT_ROLES:
            cause = unknown("role", str(message["role"]), CHAT_ROLES)
            raise UsageError(f"{where}, message {number}: {cause}", f"Use one of {', '.join(CHAT_ROLES)}.")
        if not isinstance(message["content"], str) or not message["content"].strip():
            raise UsageError(f"{where}: message {number} has no text", "Complete the row or remove it.")
    if value[-1]["role"] != "assistant":
        raise UsageError(f"{where}: the last message is the {value[-1]['role']}'s", "End with the assistant's answer.")
    return [{"role": message["role"], "content": message["content"]} for message in value]
