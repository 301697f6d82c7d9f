"""Health checker and control plane for the Maglev load balancer in FD.io VPP."""

import sys
from importlib.abc import MetaPathFinder

_EXTENSIONS = frozenset(
    f"maglev.{name}" for name in ("_cores", "_flowhash", "_flowtable", "_health", "_probe", "_probecore", "_weights")
)


class _Unbuilt(MetaPathFinder):
    """Asked last: says what to do where an extension was never built."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in _EXTENSIONS:
            raise ModuleNotFoundError(f"{name} is not built: run 'make' in the checkout, or 'pip install .'", name=name)


sys.meta_path.append(_Unbuilt())
