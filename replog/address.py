"""Where something listens or is reached: a host and a port, written ``host:port``.

A host is a name, an IPv4 address, or an IPv6 address in brackets: ``db1.example:7001``,
``10.0.0.1:7001``, ``[::1]:7001``.  Names are kept in lower case and IPv6 addresses in their
shortest form, so that two spellings of one address are equal.  Nothing is looked up here.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from replog.errors import AddressError
from replog.types import record

PORT_MAX: Final = 65_535

_HOST_CHARACTERS_MAX: Final = 253
# The underscore is no letter of a host name by the book, but container networks use it.
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_PORT: Final = re.compile(r"[0-9]{1,5}")


@record
class Address:
    """A host and a port."""

    host: str
    """A name in lower case or an IP address, without brackets."""
    port: int
    """1 to 65535; 0 asks the system for any free port, and only a program may do so."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address that ``text`` writes; raises :class:`~replog.errors.AddressError`."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or host.endswith(":"):
            raise AddressError(f"'{text}' is not an address; write it as host:port")
        if not _PORT.fullmatch(port) or not 1 <= int(port) <= PORT_MAX:
            raise AddressError(f"'{text}' has no port between 1 and {PORT_MAX} behind its colon")
        if host.startswith("[") and host.endswith("]"):
            return cls(_ipv6(text, host[1:-1]), int(port))
        if ":" in host:
            raise AddressError(f"'{text}' has an IPv6 address without brackets; write [host]:port")
        return cls(_name_or_ipv4(text, host), int(port))

    def __str__(self) -> str:
        """The address as :meth:`parse` reads it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every interface: one can listen on it, never connect to it."""
        return self.host in ("0.0.0.0", "::")

    @property
    def is_loopback(self) -> bool:
        """Whether it is reached from its own machine only."""
        return self.host in ("localhost", "::1") or (
            self.host.startswith("127.") and self.host.replace(".", "").isdigit()
        )


def _ipv6(text: str, host: str) -> str:
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError:
        raise AddressError(f"'{text}' has no IPv6 address between its brackets") from None


def _name_or_ipv4(text: str, host: str) -> str:
    name = host.lower().removesuffix(".")
    labels = name.split(".")
    if labels[-1].isdigit():
        # No top-level domain is a number: this was meant as an IPv4 address.
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            raise AddressError(f"'{text}' has a malformed IPv4 address") from None
    if len(name) > _HOST_CHARACTERS_MAX or not all(map(_LABEL.fullmatch, labels)):
        raise AddressError(
            f"'{text}' has a malformed host name; it takes letters, digits, hyphens and dots"
        )
    return name
