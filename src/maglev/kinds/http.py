"""HTTP and HTTPS: a request, and a response with an expected status and, if wanted, an expected text in its body."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from maglev.base.states import CheckType
from maglev.kinds.kind import Kind, Presence
from maglev.kinds.params import Params, Site, block, param
from maglev.kinds.tls import TlsParams
from maglev.schema.problems import Path, Report, quote
from maglev.schema.types import BAD, Bad, Choice, Text

Ranges = tuple[tuple[int, int], ...]

_RANGE = re.compile(r"\s*([0-9]{3})(?:\s*-\s*([0-9]{3}))?\s*")


@dataclass(frozen=True, slots=True)
class ResponseCodes:
    """HTTP status codes and ranges of them, separated by commas, within 100..599."""

    def read(self, value: object, path: Path, report: Report) -> Ranges | Bad:
        """Inclusive (low, high) ranges, as written."""
        if not isinstance(value, str):
            report.parse(path, f"expected status codes such as 200-299,304, got {quote(value)}")
            return BAD
        ranges: list[tuple[int, int]] = []
        for part in value.split(",", 600)[:600]:
            match = _RANGE.fullmatch(part)
            if match is None:
                report.parse(path, f"{quote(part)} is no status code or range; write them as 200-299,304")
                return BAD
            low, high = int(match[1]), int(match[2] or match[1])
            if low > high:
                report.semantic(path, f"the range {low}-{high} is empty")
            elif low < 100 or high > 599:
                report.semantic(path, f"the status codes {part.strip()} are not within 100 to 599")
            ranges.append((low, high))
        return tuple(ranges)

    def write(self, value: Ranges) -> str:
        """``value`` as a file has it."""
        return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in value)

    def rule(self) -> str:
        """The permitted values, in words."""
        return "status codes and ranges, such as `200-299,304`"

    def json_schema(self) -> dict[str, object]:
        """The permitted values, as JSON schema."""
        one = r"\s*[1-5][0-9][0-9](?:\s*-\s*[1-5][0-9][0-9])?\s*"
        return {
            "anyOf": [
                {"type": "string", "pattern": f"^{one}(?:,{one})*$"},
                {"type": "integer", "minimum": 100, "maximum": 599},
            ]
        }


CODES = ResponseCodes()


@dataclass(frozen=True, slots=True)
class HttpParams(Params):
    """Parameters of an HTTP or HTTPS check.

    ``response_codes`` are inclusive (low, high) ranges within 100..599; ``host`` None is the backend's address;
    ``response_regexp`` is RE2, searched in the first 64 KiB of the body; ``tls`` is set for HTTPS only.
    """

    path: str = param(
        Text(2048, "/[!-~]*", "a path: printable ASCII without spaces, beginning with /"),
        "What is requested, with its query.",
        default="/",
        example="/healthz",
        label="",
    )
    method: str = param(
        Choice({"GET": "GET", "HEAD": "HEAD"}),
        "Request method. HEAD gets no body, so response-regexp cannot go with it.",
        default="GET",
        example="HEAD",
        label="",
    )
    host: str | None = param(
        Text(259, r"[A-Za-z0-9_.:\[\]-]+", "a host name or address, with a port if need be"),
        "The Host header, sent as written. Default: the backend's address, with a port that is not the scheme's own.",
        default=None,
        example="www.example.org",
        words=lambda host: host or "(the backend's address)",
    )
    response_codes: Ranges = param(
        CODES,
        "Status codes that pass.",
        key="response-code",
        default=((200, 200),),
        example='"200-299,304"',
        words=CODES.write,
    )
    response_regexp: str | None = param(
        Text(1024, None, "a regular expression (RE2)"),
        "Must be found in the first 64 KiB of the body.",
        default=None,
        example='"^ok"',
    )
    tls: TlsParams | None = block(TlsParams)

    def check(self, site: Site) -> None:
        """Report an expression that RE2 does not accept, or that is looked for in an answer without a body."""
        if self.response_regexp is None:
            return
        if self.method == "HEAD":
            site.wrong("response-regexp", "the answer to HEAD has no body; response-regexp needs method GET")
        why = _refused_by_re2(self.response_regexp)
        if why is not None:
            site.wrong("response-regexp", f"not a regular expression of RE2: {why}")

    def shown(self) -> Iterator[tuple[str, str]]:
        """Method and path together, then the rest as for any parameters."""
        yield "request", f"{self.method} {self.path}"
        # Not super(): a dataclass with slots is another class than the one that the compiler put into this function.
        yield from Params.shown(self)


def _refused_by_re2(pattern: str) -> str | None:
    # The command line shows parameters and compiles none: it must not need 10 ms for the import of re2.
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        text = error.args[0] if error.args else error
        return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return None


HTTP = Kind(
    check_type=CheckType.HTTP,
    params=HttpParams,
    message="http",
    article="an",
    blocks={"tls": Presence.NEVER},
    notes=(
        "`response-regexp` is an expression of RE2, which has no look-ahead and no back-references, and takes linear "
        "time whatever\nthe server sends."
    ),
    counters={"sent_http": "Connections begun for HTTP probes, over TLS too."},
)

HTTPS = Kind(
    check_type=CheckType.HTTPS,
    params=HttpParams,
    message="http",
    article="an",
    blocks={"tls": Presence.ALWAYS},
)
