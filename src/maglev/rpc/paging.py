"""Pages of long lists: where one ends and the next begins, whatever a reload does in between.

A token holds the position and the name of the last item of its page. The next page begins behind that name; where the
name went away meanwhile, at the position. Tokens are not secret and not signed: a forged one shows another part of
what the caller may see anyway.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence

from maglev.base.errors import BadValue

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
        # The name went away: what stood behind it has moved up into its place.
        return min(position, len(self.names)) if at is None else at + 1
