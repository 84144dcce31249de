"""``replog kv``: put, get, delete, range, compare-and-set and watch from the command line.

Keys and values are texts.  A value that is not UTF-8 is shown with escapes; with ``--base64``
values are given and shown in base64, which loses nothing.  In JSON every value stands beside its
``encoding``, ``utf-8`` or ``base64``.

Nothing is loaded that the help does not need: the client comes with the first command that runs.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, cast

from replog.cli import (
    add_cluster_options,
    add_json_option,
    complain,
    examples,
    print_json,
    printable,
    run_with_client,
)
from replog.errors import BadCommand
from replog_kv.machine import RANGE_ITEMS_MAX, ItemRange, Kv

if TYPE_CHECKING:
    from replog.client import Client
    from replog.statemachine import Call
    from replog.types import Applied, Change

_EXAMPLES: Final = """
replog kv put colour green --connect 127.0.0.1:8001
replog kv get colour --config cluster.toml
replog kv put photo --stdin --config cluster.toml < photo.jpeg
replog kv cas colour red --expected green --config cluster.toml
replog kv range a c --limit 10 --json --config cluster.toml
replog kv watch user/ --from 1200 --config cluster.toml
"""

_EXIT_NOT_SO: Final = 1
"""There is no such key, or its value is another than expected."""

LIMIT_DEFAULT: Final = 100


class KvCommand:
    """The word ``kv`` of the command line."""

    name = "kv"
    title = "put, get, delete, list and watch keys of the replicated key-value store"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments behind the word."""
        parser.description = (
            "Work with the replicated key-value store.  Whatever changes it goes through the log;\n"
            "get, range and watch are read linearizably, and make no entry.\n"
            "Exit code 1: there is no such key, the value was not the expected one, what is to be\n"
            "watched is not remembered any more, or the cluster did not answer."
        )
        parser.epilog = examples(_EXAMPLES)
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
        for name, (title, example, _) in _ACTIONS.items():
            action = actions.add_parser(
                name,
                help=title,
                description=f"{title[0].upper()}{title[1:]}.",
                epilog=examples(f"replog kv {example} --config cluster.toml"),
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
            )
            _add_positions(name, action)
            action.add_argument(
                "--base64", action="store_true", help="values are given and shown in base64"
            )
            add_json_option(action)
            add_cluster_options(action)

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it and return the process's exit code."""
        _, _, act = _ACTIONS[arguments.action]
        return act(arguments)


def _add_positions(name: str, action: argparse.ArgumentParser) -> None:
    if name == "range":
        action.add_argument("start", metavar="START", nargs="?", default="", help="from this key")
        action.add_argument("end", metavar="END", nargs="?", help="to the key before this one")
        action.add_argument(
            "--limit",
            metavar="N",
            type=int,
            default=LIMIT_DEFAULT,
            help=f"at most so many items, 1 to {RANGE_ITEMS_MAX} (default: %(default)s)",
        )
        return
    if name == "watch":
        _add_watch_options(action)
        return
    action.add_argument("key", metavar="KEY")
    if name in ("put", "cas"):
        action.add_argument("value", metavar="VALUE", nargs="?")
        action.add_argument(
            "--stdin", action="store_true", help="read the value from standard input"
        )
    if name == "cas":
        action.add_argument(
            "--expected", metavar="VALUE", help="what the key must hold; without it: nothing"
        )


def _add_watch_options(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "prefix", metavar="PREFIX", nargs="?", default="", help="of keys that begin so; all keys"
    )
    action.add_argument("--key", action="store_true", help="of the key PREFIX alone")
    action.add_argument(
        "--from",
        dest="from_index",
        metavar="INDEX",
        type=int,
        help="the first index; without it: what is changed from now on",
    )
    action.add_argument("--node", metavar="ID", type=int, help="watch at this node")


def _put(arguments: argparse.Namespace) -> int:
    value = _new_value(arguments)
    applied = _propose(arguments, Kv.put.encode(arguments.key, value))
    if arguments.json:
        print_json({"key": arguments.key, "index": applied.index})
    return 0


def _get(arguments: argparse.Namespace) -> int:
    applied = _query(arguments, Kv.get, arguments.key)
    value = cast("bytes | None", applied.result)
    if arguments.json:
        shown = _value_document(arguments, value)
        print_json({"key": arguments.key, "found": value is not None, **shown})
    elif value is not None:
        _print_value(arguments, value)
    else:
        complain(f"there is no key '{arguments.key}'")
    return 0 if value is not None else _EXIT_NOT_SO


def _delete(arguments: argparse.Namespace) -> int:
    applied = _propose(arguments, Kv.delete.encode(arguments.key))
    deleted = applied.result is True
    if arguments.json:
        print_json({"key": arguments.key, "deleted": deleted, "index": applied.index})
    elif not deleted:
        complain(f"there was no key '{arguments.key}'")
    return 0 if deleted else _EXIT_NOT_SO


def _cas(arguments: argparse.Namespace) -> int:
    expected = None
    if arguments.expected is not None:
        expected = _value_bytes(arguments, arguments.expected)
    value = _new_value(arguments)
    payload = Kv.compare_and_set.encode(arguments.key, expected, value)
    applied = _propose(arguments, payload)
    done = applied.result is True
    if arguments.json:
        print_json({"key": arguments.key, "set": done, "index": applied.index})
    elif not done:
        wanted = "nothing" if arguments.expected is None else f"'{arguments.expected}'"
        complain(f"the key '{arguments.key}' does not hold {wanted}; it was left as it is")
    return 0 if done else _EXIT_NOT_SO


def _range(arguments: argparse.Namespace) -> int:
    applied = _query(arguments, Kv.range, arguments.start, arguments.end, arguments.limit)
    found = cast("ItemRange", applied.result)
    if arguments.json:
        items = [
            {
                "key": item["key"],
                **_value_document(arguments, item["value"]),
                "index": item["index"],
            }
            for item in found["items"]
        ]
        print_json({"items": items, "more": found["more"]})
        return 0
    for item in found["items"]:
        # Escaped without exception: a line is one item, and a tab ends its key.
        print(f"{printable(item['key'])}\t{printable(_value_text(arguments, item['value']))}")
    if found["more"]:
        complain(
            f"there are more items; go on from the last key, or raise --limit above "
            f"{arguments.limit}"
        )
    return 0


def _watch(arguments: argparse.Namespace) -> int:
    first: int | None = arguments.from_index
    if first is not None and first < 1:
        raise BadCommand(f"--from names an index, and the first one is 1, not {first}")
    if arguments.key and not arguments.prefix:
        raise BadCommand("--key watches one key, and no key is given")

    async def watch(client: Client) -> None:
        after = None if first is None else first - 1
        changes = client.watch(
            Kv.changes, arguments.prefix, arguments.key, after=after, node=arguments.node
        )
        async for change in changes:
            print(_shown_change(arguments, change), flush=True)

    run_with_client(arguments, watch)
    return 0


def _shown_change(arguments: argparse.Namespace, change: Change) -> str:
    """A change as a line: in JSON, or its index, what was done, the key and the value."""
    if arguments.json:
        shown = _value_document(arguments, change.value)
        return json.dumps({"index": change.index, "key": change.key, **shown})
    key = printable(change.key)
    if change.value is None:
        return f"{change.index}\tgone\t{key}"
    return f"{change.index}\tset\t{key}\t{printable(_value_text(arguments, change.value))}"


def _propose(arguments: argparse.Namespace, payload: bytes) -> Applied:
    return run_with_client(arguments, lambda client: client.propose(payload))


def _query(arguments: argparse.Namespace, call: Call[..., object], *values: object) -> Applied:
    return run_with_client(arguments, lambda client: client.query(call, *values))


def _new_value(arguments: argparse.Namespace) -> bytes:
    """The value to set: from the command line, or all of standard input."""
    if arguments.stdin == (arguments.value is not None):
        raise BadCommand("give the value either on the command line or by --stdin")
    if arguments.value is not None:
        return _value_bytes(arguments, arguments.value)
    data = sys.stdin.buffer.read()
    return _decoded(data) if arguments.base64 else data


def _value_bytes(arguments: argparse.Namespace, text: str) -> bytes:
    """The bytes of a value of the command line."""
    if not arguments.base64:
        # The very bytes that the shell handed over, UTF-8 or not.
        return os.fsencode(text)
    return _decoded(os.fsencode(text))


def _decoded(data: bytes) -> bytes:
    try:
        return base64.b64decode(data.strip(), validate=True)
    except binascii.Error as error:
        raise BadCommand(f"the value is not base64, as --base64 says that it is: {error}") from None


def _value_text(arguments: argparse.Namespace, value: bytes) -> str:
    if arguments.base64:
        return base64.b64encode(value).decode()
    return value.decode(errors="backslashreplace")


def _value_document(arguments: argparse.Namespace, value: bytes | None) -> Mapping[str, str | None]:
    """A value as it stands in JSON: a text, and how the text encodes the bytes."""
    if value is None:
        return {"value": None, "encoding": None}
    if not arguments.base64:
        try:
            return {"value": value.decode(), "encoding": "utf-8"}
        except UnicodeDecodeError:
            pass
    return {"value": base64.b64encode(value).decode(), "encoding": "base64"}


def _print_value(arguments: argparse.Namespace, value: bytes) -> None:
    text = _value_text(arguments, value)
    # What a stranger stored must not steer the terminal; a pipe gets the text as it is.
    print("\n".join(map(printable, text.split("\n"))) if sys.stdout.isatty() else text)


_ACTIONS: Final[Mapping[str, tuple[str, str, Callable[[argparse.Namespace], int]]]] = {
    "put": ("set a key to a value", "put colour green", _put),
    "get": ("print the value of a key", "get colour", _get),
    "delete": ("remove a key", "delete colour", _delete),
    "range": ("list keys and values in the order of the keys", "range a c --limit 10", _range),
    "cas": (
        "set a key only if it holds the expected value, or nothing",
        "cas colour red --expected green",
        _cas,
    ),
    "watch": (
        "print each change of some keys, one in a line, without end",
        "watch user/ --from 1200",
        _watch,
    ),
}
"""What can be done: its title, an example, and the function that does it."""

COMMAND: Final = KvCommand()
