"""Builds the Debian packages of one architecture: ``python -m debian.package --arch amd64|arm64``.

The packages are for Debian 12's python3, whatever builds them. Its headers and libraries are fetched with apt into a
directory of our own, so that no foreign architecture is added to this system; the extensions are compiled against them;
the modules that we need are unpacked from wheels of the target's platform, by the hashes of ``requirements.lock``.
Nothing is downloaded on the target.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

from debian import lock, manpages
from debian.tools import DOC, HERE, HOME, PYTHON, ROOT, TARGETS, WORK, CannotPackage, Target, run
from debian.wheels import SOURCE, Imports, Staged, client_imports
from debian.wheels import copy as install

RELEASE = "bookworm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
TESTS_ALONE = frozenset(("maglev._cores",))
"""Extensions that no program imports."""

DAEMON, CLIENT = "vpp-maglev", "vpp-maglev-client"

# Libraries of the system that a shared object may need, and the package of each.
SYSTEM_LIBRARIES = {
    "ld-linux-aarch64.so.1": "libc6",
    "ld-linux-x86-64.so.2": "libc6",
    "libc.so.6": "libc6",
    "libcrypto.so.3": "libssl3",
    "libdl.so.2": "libc6",
    "libgcc_s.so.1": "libgcc-s1",
    "libm.so.6": "libc6",
    "libpthread.so.0": "libc6",
    "librt.so.1": "libc6",
    "libssl.so.3": "libssl3",
    "libstdc++.so.6": "libstdc++6",
    "libz.so.1": "zlib1g",
}
LEAST = {"libc6": "2.36", "libssl3": "3.0.0", "libstdc++6": "12"}


# ------------------------------------------------------------------------------------------------- the target's system


def fetch_system(target: Target, into: Path, mirror: str) -> None:
    """Unpack the target's python3, its headers and libraries, by an apt that knows nothing of this system."""
    packages = ("python3", f"libpython{PYTHON}-dev", "libssl-dev", "libstdc++6", "zlib1g")
    apt = into.with_name("apt")
    for directory in ("state/lists/partial", "cache/archives/partial"):
        (apt / directory).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {RELEASE} main\n")
    settings = {
        "APT::Architecture": target.arch,
        "APT::Architectures": target.arch,
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
    }
    (apt / "apt.conf").write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()))
    env = {"APT_CONFIG": str(apt / "apt.conf"), "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "-q", "update", env=env)
    run("apt-get", "-q", "-y", "install", "--download-only", *packages, env=env)
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for archive in sorted((apt / "cache" / "archives").glob("*.deb")):
        run("dpkg-deb", "--extract", archive, into)


# ---------------------------------------------------------------------------------------------------------- extensions


def generate() -> list[dict[str, Any]]:
    """Make the stubs and the C sources; returns what the extensions are compiled from and with."""
    run(sys.executable, "setup.py", "-q", "build_proto", env={"MAGLEV_EXTENSIONS": "0"})
    setup = run(sys.executable, "setup.py", "-q", "list_extensions", env={"MAGLEV_DEBUG": "0"})
    extensions: list[dict[str, Any]] = json.loads(setup.splitlines()[-1])
    return [extension for extension in extensions if extension["name"] not in TESTS_ALONE]


def compile_extensions(target: Target, system: Path, into: Path, sources: Sequence[dict[str, Any]]) -> None:
    """Compile ours for the target, as setup.py says and as Debian hardens, against the target's headers."""
    host = {"DEB_HOST_ARCH": target.arch, "DEB_BUILD_MAINT_OPTIONS": "hardening=+all"}
    flags = {name: run("dpkg-buildflags", "--get", name, env=host) for name in ("CFLAGS", "CPPFLAGS", "LDFLAGS")}
    compiler = f"{target.triplet}-gcc"
    include = system / "usr" / "include"
    for extension in sources:
        *package, module = extension["name"].split(".")
        output = into.joinpath(*package, f"{module}.cpython-{PYTHON.replace('.', '')}-{target.triplet}.so")
        output.parent.mkdir(parents=True, exist_ok=True)
        macros = [f"-D{name}" if value is None else f"-D{name}={value}" for name, value in extension["define_macros"]]
        run(
            compiler, f"--sysroot={system}", "-shared", "-fPIC",
            *flags["CFLAGS"].split(), *flags["CPPFLAGS"].split(), *extension["extra_compile_args"], "-DNDEBUG",
            *macros, *(f"-I{path}" for path in extension["include_dirs"]),
            f"-I{include / f'python{PYTHON}'}", f"-I{include / target.triplet / f'python{PYTHON}'}",
            *extension["sources"], *flags["LDFLAGS"].split(),
            *(f"-l{library}" for library in extension["libraries"]), "-o", output,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the tree


@dataclass(frozen=True, slots=True)
class Version:
    """One version, as Python, Debian and people write it."""

    python: str
    commit: str

    @classmethod
    def of_tree(cls) -> Version:
        """From git, by the rules of pyproject.toml; VERSION in the environment wins."""
        given = os.environ.get("VERSION", "")
        python = given or run(sys.executable, "-m", "setuptools_scm").strip().splitlines()[-1]
        commit = run("git", "rev-parse", "--short=9", "HEAD").strip()
        return cls(python, f"g{commit}")

    @property
    def debian(self) -> str:
        """As dpkg sorts it: a development version comes before its release."""
        public, plus, local = self.python.partition("+")
        return re.sub(r"\.?(dev|a|b|rc)(\d+)", r"~\1\2", public) + plus + local


def compress(text: str, destination: Path) -> None:
    """Write text as gzip does with -9n."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def install_modules(tree: Path, version: Version, imports: Imports, extensions: Path | None) -> None:
    """Our own modules: the client's share or, with their ``extensions``, the rest."""
    home = tree / HOME / "maglev"
    for path in sorted(SOURCE.rglob("*.py")):
        relative = path.relative_to(SOURCE)
        if relative != Path("_version.py") and (relative in imports.ours) == (extensions is None):
            install(path, home / relative)
    if extensions is None:
        (home / "_version.py").write_text(f'version = "{version.python}"\ncommit_id = "{version.commit}"\n')
    else:
        for path in (extensions / "maglev").iterdir():
            install(path, home / path.name)


def strip(target: Target, tree: Path) -> dict[str, set[str]]:
    """Strip all shared objects; returns what they need of the system, by file."""
    needed: dict[str, set[str]] = {}
    objects = sorted(path for path in tree.rglob("*") if re.search(r"\.so(\.\d+)*$", path.name))
    bundled = {path.name for path in objects}
    for path in objects:
        path.chmod(0o644)
        run(f"{target.triplet}-strip", "--strip-unneeded", "--remove-section=.comment", path)
        headers = run(f"{target.triplet}-objdump", "--private-headers", path)
        if f"elf64-{'x86-64' if target.arch == 'amd64' else 'littleaarch64'}" not in headers:
            raise CannotPackage(f"{path.relative_to(tree)} is not for {target.arch}")
        needed[str(path.relative_to(tree))] = set(re.findall(r"^\s+NEEDED\s+(\S+)$", headers, re.MULTILINE)) - bundled
    return needed


def library_packages(needed: dict[str, set[str]]) -> list[str]:
    """The packages that have the libraries."""
    packages = set()
    for path, libraries in needed.items():
        for library in libraries:
            if library not in SYSTEM_LIBRARIES:
                raise CannotPackage(f"{path} needs {library}, and it is not known which package has that")
            packages.add(SYSTEM_LIBRARIES[library])
    return sorted(f"{name} (>= {LEAST[name]})" if name in LEAST else name for name in packages)


def write_copyright(tree: Path, package: str, modules: dict[str, str]) -> None:
    """The copyright file: ours, and where those of the others are."""
    others = "\n".join(f"  {name} {version}" for name, version in modules.items())
    text = (HERE / "copyright").read_text().replace("@MODULES@", others).replace("@PACKAGE@", package)
    place = tree / DOC / package / "copyright"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)


def write_changelog(tree: Path, package: str, version: Version) -> None:
    """Debian's changelog names the version; ours says what changed."""
    stamp = formatdate(int(run("git", "log", "-1", "--format=%ct").strip() or time.time()))
    entry = f"{source_name()} ({version.debian}) {RELEASE}; urgency=medium\n\n  * Built of {version.commit}.\n\n"
    # The version has no Debian revision, so this is the one changelog by Debian's name for it.
    ours = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    compress(f"{entry} -- {maintainer()}  {stamp}\n", tree / DOC / package / "changelog.gz")
    compress(ours, tree / DOC / package / "CHANGELOG.md.gz")


def manual(tree: Path, version: Version, names: Sequence[str]) -> None:
    """Manual pages, rendered from the code."""
    date = time.strftime("%Y-%m-%d", time.gmtime(int(run("git", "log", "-1", "--format=%ct").strip())))
    pages = manpages.render(version.debian, date)
    for name in names:
        compress(pages[name], tree / "usr/share/man" / f"man{name[-1]}" / f"{name}.gz")


def client_files(tree: Path, version: Version) -> None:
    """Install the files of the client's package beside the modules."""
    install(HERE / "maglevc", tree / "usr/bin/maglevc", 0o755)
    install(HERE / "maglevc.bash-completion", tree / "usr/share/bash-completion/completions/maglevc")
    install(HERE / "maglevc.zsh-completion", tree / "usr/share/zsh/vendor-completions/_maglevc")
    manual(tree, version, ["maglevc.1"])


def daemon_files(tree: Path, version: Version) -> None:
    """Install the files of the daemon's package beside the modules."""
    install(HERE / "maglevd", tree / "usr/sbin/maglevd", 0o755)
    install(HERE / "maglev.yaml", tree / "etc/vpp-maglev/maglev.yaml")
    install(HERE / "vpp-maglev.default", tree / "etc/default/vpp-maglev")
    install(HERE / "vpp-maglevd.service", tree / "lib/systemd/system/vpp-maglevd.service")
    install(HERE / "vpp-maglev.sysctl", tree / "usr/lib/sysctl.d/50-vpp-maglev.conf")
    for example in sorted((HERE / "examples").iterdir()):
        install(example, tree / DOC / DAEMON / "examples" / example.name)
    for path in (ROOT / "docs").iterdir():
        if path.is_file():
            install(path, tree / DOC / DAEMON / path.name)
    install(ROOT / "proto" / "maglev.proto", tree / DOC / DAEMON / "maglev.proto")
    manual(tree, version, ["maglevd.8", "maglev.yaml.5"])


# --------------------------------------------------------------------------------------------------------- the archive


def stanzas() -> list[dict[str, str]]:
    """debian/control: the source's stanza and one for each package, with folded fields as they are written."""
    result = []
    for block in (HERE / "control").read_text().strip().split("\n\n"):
        fields: dict[str, str] = {}
        for line in block.splitlines():
            if line.startswith(" "):
                fields[next(reversed(fields))] += f"\n{line}"
            else:
                key, _, value = line.partition(": ")
                fields[key] = value
        result.append(fields)
    return result


def source_name() -> str:
    """The name of the source."""
    return stanzas()[0]["Source"]


def maintainer() -> str:
    """The packages' maintainer: DEBFULLNAME and DEBEMAIL, as Debian's own tools have it, else debian/control's."""
    name, mail = os.environ.get("DEBFULLNAME"), os.environ.get("DEBEMAIL")
    return f"{name} <{mail}>" if name and mail else stanzas()[0]["Maintainer"]


def write_control(tree: Path, package: str, target: Target, version: Version, libraries: list[str]) -> None:
    """The control information of one package."""
    source, *binaries = stanzas()
    fields = next(fields for fields in binaries if fields["Package"] == package)
    low, high = PYTHON, f"3.{int(PYTHON.partition('.')[2]) + 1}"
    substitutions = {
        "${shlibs:Depends}": ", ".join(libraries),
        "${python3:Depends}": f"python3 (>= {low}), python3 (<< {high})",
        "${binary:Version}": version.debian,
    }
    files = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    size = sum((path.stat().st_size + 1023) // 1024 for path in files)
    head = {
        "Package": package,
        "Source": source["Source"],
        "Version": version.debian,
        "Architecture": target.arch,
        "Maintainer": maintainer(),
        "Installed-Size": str(size),
    }
    lines = [f"{key}: {value}" for key, value in head.items() if key != "Source" or value != package]
    order = [key for key in fields if key not in ("Package", "Architecture", "Description")]
    for key in (*order, "Section", "Priority", "Description"):
        value = fields.get(key, source.get(key, ""))
        for name, meaning in substitutions.items():
            value = value.replace(name, meaning)
        lines.append(f"{key}: {value}")
    control = tree / "DEBIAN"
    control.mkdir()
    (control / "control").write_text("\n".join(lines) + "\n")
    for script in ("postinst", "prerm", "postrm", "triggers"):
        path = HERE / f"{package}.{script}"
        if path.exists():
            install(path, control / script, 0o644 if script == "triggers" else 0o755)
    conffiles = [f"/{path.relative_to(tree)}" for path in files if path.is_relative_to(tree / "etc")]
    if conffiles:
        (control / "conffiles").write_text("\n".join(conffiles) + "\n")
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(tree)}"
        for path in files
        if not path.is_relative_to(tree / "etc")
    ]
    (control / "md5sums").write_text("\n".join(sums) + "\n")


def pack(tree: Path, package: str, target: Target, version: Version) -> Path:
    """The archive in build/."""
    overrides = HERE / f"{package}.lintian-overrides"
    if not overrides.exists():
        raise CannotPackage(f"{overrides} is missing")
    output = ROOT / "build" / f"{package}_{version.debian}_{target.arch}.deb"
    for old in output.parent.glob(f"{package}_*_{target.arch}.deb"):
        old.unlink()
    for path in [tree, *tree.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    stamp = run("git", "log", "-1", "--format=%ct").strip()
    run(
        "dpkg-deb", "--root-owner-group", "-Zxz", "-z6", "--build", tree, output,
        env={"SOURCE_DATE_EPOCH": stamp},
    )  # fmt: skip
    return output


def build(target: Target, mirror: str, version: Version, sources: Sequence[dict[str, Any]]) -> list[Path]:
    """Both packages of an architecture; returns their paths."""
    work = WORK / target.arch
    system, extensions = work / "system", work / "extensions"
    if not (work / "system.stamp").exists():
        fetch_system(target, system, mirror)
        (work / "system.stamp").touch()
    shutil.rmtree(extensions, ignore_errors=True)
    compile_extensions(target, system, extensions, sources)
    staged, imports = Staged.unpack(target, lock.BUNDLED, work / "wheels"), client_imports()
    shared = staged.closure(imports.others)
    results = []
    for package, names in ((CLIENT, shared), (DAEMON, set(staged.versions) - shared)):
        tree = work / package
        shutil.rmtree(tree, ignore_errors=True)
        staged.install(names, tree / HOME, tree / DOC / package / "licenses")
        install_modules(tree, version, imports, extensions if package == DAEMON else None)
        libraries = library_packages(strip(target, tree))
        (daemon_files if package == DAEMON else client_files)(tree, version)
        write_copyright(tree, package, {name: staged.versions[name] for name in sorted(names)})
        write_changelog(tree, package, version)
        install(HERE / f"{package}.lintian-overrides", tree / "usr/share/lintian/overrides" / package)
        write_control(tree, package, target, version, libraries)
        results.append(pack(tree, package, target, version))
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0: the packages are in build/."""
    parser = argparse.ArgumentParser(prog="python -m debian.package", description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", choices=TARGETS, action="append", help="default: all")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="Debian's archive")
    options = parser.parse_args(arguments)
    try:
        version, sources = Version.of_tree(), generate()
        # Compilers, pip and apt are processes of their own: one thread waits for those of each architecture.
        with ThreadPoolExecutor() as pool:
            targets = [TARGETS[arch] for arch in options.arch or TARGETS]
            for paths in pool.map(lambda target: build(target, options.mirror, version, sources), targets):
                for path in paths:
                    print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1e6:.1f} MB", flush=True)
    except CannotPackage as error:
        print(f"package: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
