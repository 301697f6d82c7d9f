"""Builds the Cython extensions of ``ext/`` into ``maglev._*`` and the gRPC stubs of ``proto/`` into ``maglev.pb``.

``MAGLEV_DEBUG=1`` makes the debug build: bounds checks, assertions, no optimisation.
``MAGLEV_EXTENSIONS=0`` leaves the extensions out: the Makefile compiles them on its own, incrementally.
``MAGLEV_CFLAGS`` and ``MAGLEV_LDFLAGS`` are appended to the compiler's and linker's flags (sanitizers).
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import ClassVar

from Cython.Build import cythonize
from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
DEBUG = os.environ.get("MAGLEV_DEBUG") == "1"
WITH_EXTENSIONS = os.environ.get("MAGLEV_EXTENSIONS") != "0"

# The one list of compiled modules: module name -> its .pyx. Cython itself finds the files that a .pyx includes.
MODULES = {
    "maglev._health": "ext/health.pyx",
    "maglev._weights": "ext/weights.pyx",
    "maglev._flowtable": "ext/flowtable.pyx",
    "maglev._flowhash": "ext/flowhash.pyx",
    "maglev._probecore": "ext/probe/core.pyx",
    "maglev._probe": "ext/probe/engine.pyx",
    "maglev._cores": "ext/probe/cores.pyx",
}

# Libraries that a module needs beside pthread.
LIBRARIES = {
    "maglev._probe": ["ssl", "crypto"],
    "maglev._probecore": ["ssl", "crypto"],
}

# Modules that are mostly calls of the interpreter, which no optimisation makes faster. At -O3 with all debugging
# information the compiler would take four times as long for them as for the native core.
GLUE = frozenset({"maglev._probe", "maglev._cores"})

# No line tracing, in the debug build either: traced functions take the interpreter's lock, ``nogil`` or not, and the
# probe engine's thread would wait whenever Python is busy.
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "embedsignature": True,
}


def optimisation(name: str) -> list[str]:
    """The flags that say how much the compiler does for a module."""
    if DEBUG:
        return ["-O0", "-g", "-UNDEBUG"]
    return ["-O1", "-g1"] if name in GLUE else ["-O3", "-g"]


def extensions() -> list[Extension]:
    """The Extension objects of all modules whose source is in the tree."""
    flags = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unused-function", "-Wno-sign-compare"]
    macros: list[tuple[str, str | None]] = [("_GNU_SOURCE", None)]
    return [
        Extension(
            name,
            [source],
            include_dirs=["ext"],
            extra_compile_args=[*optimisation(name), *flags, *shlex.split(os.environ.get("MAGLEV_CFLAGS", ""))],
            extra_link_args=shlex.split(os.environ.get("MAGLEV_LDFLAGS", "")),
            define_macros=macros,
            libraries=["pthread", *LIBRARIES.get(name, [])],
        )
        for name, source in MODULES.items()
        if WITH_EXTENSIONS and (ROOT / source).exists()
    ]


def generate_stubs() -> None:
    """Compile proto/maglev.proto into src/maglev/pb: messages, service and their type stubs."""
    proto = ROOT / "proto" / "maglev.proto"
    if not proto.exists():
        return
    out = ROOT / "src" / "maglev" / "pb" / "maglev_pb2_grpc.py"
    if out.exists() and out.stat().st_mtime >= proto.stat().st_mtime:
        return
    import grpc_tools
    from grpc_tools import protoc

    well_known = Path(grpc_tools.__file__).parent / "_proto"
    # The plugins of mypy-protobuf are scripts beside the interpreter that runs this build.
    scripts = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ["PATH"] = scripts
    status = protoc.main(
        [
            "protoc",
            f"--proto_path=maglev/pb={proto.parent}",
            f"--proto_path={well_known}",
            f"--python_out={ROOT / 'src'}",
            f"--grpc_python_out={ROOT / 'src'}",
            f"--mypy_out={ROOT / 'src'}",
            f"--mypy_grpc_out={ROOT / 'src'}",
            "maglev/pb/maglev.proto",
        ]
    )
    if status != 0:
        raise SystemExit(f"protoc could not compile {proto} (status {status})")


class BuildPy(build_py):
    """build_py that makes the stubs first, so that they are packaged."""

    def run(self) -> None:
        generate_stubs()
        super().run()


class BuildExt(build_ext):
    """build_ext that makes the stubs too: an in-place build needs both."""

    def run(self) -> None:
        generate_stubs()
        super().run()


class BuildProto(Command):
    """The stubs alone."""

    description = "compile proto/maglev.proto into src/maglev/pb"
    user_options: ClassVar[list[tuple[str, str | None, str | None]]] = []

    def initialize_options(self) -> None:
        """No options."""

    def finalize_options(self) -> None:
        """No options."""

    def run(self) -> None:
        generate_stubs()


class ListExtensions(Command):
    """Sources and flags of the extensions as JSON: for compilers of other machines."""

    description = "print the extensions as JSON"
    user_options: ClassVar[list[tuple[str, str | None, str | None]]] = []

    def initialize_options(self) -> None:
        """No options."""

    def finalize_options(self) -> None:
        """No options."""

    def run(self) -> None:
        fields = ("name", "sources", "include_dirs", "define_macros", "libraries", "extra_compile_args")
        found = self.distribution.ext_modules or []
        print(json.dumps([{field: getattr(extension, field) for field in fields} for extension in found]))


setup(
    ext_modules=cythonize(
        extensions(),
        include_path=["ext"],
        compiler_directives=DIRECTIVES,
        build_dir="build/cython-debug" if DEBUG else "build/cython",
        # The debug build's lines are those of the .pyx: gdb shows them, and stops at them.
        emit_linenums=DEBUG,
        nthreads=0,
    ),
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt, "build_proto": BuildProto, "list_extensions": ListExtensions},
)
