"""Which version this is; written by the build from the git tag (setuptools-scm)."""

from __future__ import annotations


def version() -> str:
    """The version, with the commit where it is not a release's: ``0.1.1.dev10+g051e89d``."""
    try:
        from maglev import _version
    except ImportError:
        return "0+unknown"
    return str(_version.version)
