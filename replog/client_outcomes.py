"""What a command ends with when no answer to it comes: how much is known, in a sentence.

A command that may have arrived is *unknown*; what changes nothing that anybody needs to know of, as
a query, is merely not answered.
"""

from __future__ import annotations

from typing import Final, TypeVar

from replog.client_actions import Command, Line
from replog.client_questions import no_answer
from replog.errors import NotDone, OutcomeUnknown, ReplogError, TermChanged, Unavailable

W = TypeVar("W")

_REMEDY: Final = "it may or may not be done: look, or repeat it only if repeating does no harm"


def of_closing(command: Command[W], *, may_have_arrived: bool) -> ReplogError:
    """The client was closed."""
    if command.route is not None or command.is_harmless:
        return Unavailable("the client was closed before a node answered")
    if may_have_arrived or command.may_be_done:
        return OutcomeUnknown(f"the client was closed before the command was answered; {_REMEDY}")
    return Unavailable("the client was closed before the command was sent")


def of_loss(line: Line[W], reason: str) -> OutcomeUnknown:
    """The connection ended after the command had left, and it is sent no second time."""
    return OutcomeUnknown(
        f"the connection to {line.name} was lost before the command was answered ({reason}); "
        f"{_REMEDY}"
    )


def of_vain_copies(failure: NotDone) -> OutcomeUnknown:
    """The last copy of a command was refused, and an earlier one may be done."""
    return OutcomeUnknown(
        f"the command was sent and not answered, and then sent again in vain ({failure}); {_REMEDY}"
    )


def is_final(failure: NotDone) -> bool:
    """Whether a refusal says of every copy of a command that it was not done, nor will be."""
    return isinstance(failure, TermChanged) and failure.is_final


def of_deadline(command: Command[W], leading: Line[W] | None, reasons: str) -> ReplogError:
    """The deadline has passed; ``reasons``: why no address leads to the leader."""
    seconds = f"{command.seconds:g} s"
    if command.route is not None:
        return no_answer(command, command.route)
    if command.line is not None:
        name = command.line.name
        if command.is_harmless:
            return Unavailable(f"{name} did not answer within {seconds}; ask again")
        return OutcomeUnknown(f"{name} did not answer within {seconds}; {_REMEDY}")
    if command.may_be_done:
        return OutcomeUnknown(
            f"the command was sent, and nobody answered within {seconds} ({reasons}); {_REMEDY}"
        )
    if command.failure is not None:
        assert isinstance(command.failure, NotDone), "what a busy leader said"
        return command.failure
    what = "query" if command.is_query else "command"
    if leading is not None and not leading.is_retired and leading.core.open_count:
        return Unavailable(
            f"the {what} was not sent within {seconds}, because {leading.name} leaves "
            f"{leading.core.open_count} others unanswered; send fewer at once"
        )
    return Unavailable(
        f"no leader took the {what} within {seconds} and it was not done ({reasons}); see that "
        "enough of the nodes run to elect a leader, and check the client's addresses"
    )
