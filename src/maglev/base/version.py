"""Which version this is; written by the build from the git tag (setuptools-scm)."""

from __future__ import annotations

HOMEPAGE = "https://vpp-maglev.invalid/"
"""Where people whose servers are probed can read what this is."""


def user_agent() -> str:
    """The ``User-Agent`` of HTTP checks."""
    return f"vpp-maglev/{version()} (+{HOMEPAGE})"


def version() -> str:
    """The version with its commit: ``0.1.1.dev10+g051e89d``, ``0.2.0+gb479433``; ``0+unknown`` in an unbuilt tree."""
    try:
        from maglev import _version
    except ImportError:
        return "0+unknown"
    told = str(_version.version)
    commit = getattr(_version, "commit_id", None)
    return f"{told}+{commit}" if commit and "+" not in told else told
