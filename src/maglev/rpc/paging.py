"""Pages of long lists: where one ends and the next begins, whatever a reload does in between.

A token holds the position and the name of the last item of its page. The next page begins behind that name; where the
name went away meanwhile, at the position. Tokens are not secret and not signed: a forged one shows another part of
what the caller may see anyway.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from maglev.base.errors import BadValue
from maglev.config.model import Config

DEFAULT_SIZE = 1_000
MAX_SIZE = 5_000


def page_size(asked: int) -> int:
    """Items on a page: 0 means ``DEFAULT_SIZE``, more than ``MAX_SIZE`` means that."""
    return min(asked, MAX_SIZE) if asked > 0 else DEFAULT_SIZE


def make_token(position: int, name: str) -> str:
    """Token for what follows the item ``name`` at ``position``."""
    return base64.urlsafe_b64encode(f"{position}:{name}".encode()).decode().rstrip("=")


def parse_token(token: str) -> tuple[int, str]:
    """The position and the name in a token. Raises ``BadValue`` for anything that ``make_token`` did not make."""
    try:
        # 63 characters of a name, three names in an override's key, a position: 400 are plenty.
        if len(token) > 400:
            raise ValueError(token[:20])
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode()
        position, separator, name = text.partition(":")
        if not separator or not position.isascii() or not position.isdecimal() or len(position) > 9:
            raise ValueError(text)
        return int(position), name
    except (binascii.Error, ValueError):
        raise BadValue("the page token is not one of ours") from None


class Order:
    """The names of one list, in order, with their positions; made once for each configuration."""

    __slots__ = ("_index", "names")

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._index: Mapping[str, int] = {name: at for at, name in enumerate(names)}

    def start(self, token: str) -> int:
        """Position where the page behind ``token`` begins; 0 for no token. Raises ``BadValue``."""
        if not token:
            return 0
        position, name = parse_token(token)
        at = self._index.get(name)
        # The name is gone, so the names after it have moved up by one.
        return min(position, len(self.names)) if at is None else at + 1


class Orders:
    """The order of each list of a configuration, made when it is first asked for; a new configuration, new orders."""

    def __init__(self) -> None:
        self._config: Config | None = None
        self._orders: dict[str, Order] = {}

    def of(self, config: Config, what: Literal["frontends", "backends", "healthchecks"]) -> Order:
        """The names of ``what`` in the order of the file."""
        if config is not self._config:
            self._config, self._orders = config, {}
        if what not in self._orders:
            lists: dict[str, Iterable[str]] = {
                "frontends": config.frontends,
                "backends": config.backends,
                "healthchecks": config.healthchecks,
            }
            self._orders[what] = Order(tuple(lists[what]))
        return self._orders[what]
