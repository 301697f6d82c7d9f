"""Builds the Debian packages of one architecture: ``python -m debian.package --arch amd64|arm64``.

The packages are for Debian 12's python3, whatever builds them. Its headers and libraries are fetched with apt into a
directory of our own, so that no foreign architecture is added to this system; the extensions are compiled against them;
the modules that we need are unpacked from wheels of the target's platform, in the versions that the tests here run
with. Nothing is downloaded on the target.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from packaging.requirements import Requirement

from debian import manpages

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent
WORK = ROOT / "build" / "pkg"
RELEASE = "bookworm"
PYTHON = "3.11"
"""Debian 12's."""

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
HOME = "usr/lib/vpp-maglev"
DOC = "usr/share/doc"

# The client's share of our modules: what `maglev.cli` imports.
CLIENT_MODULES = ("__init__.py", "_version.py", "version.py", "cli", "pb")

# What a shared object may need of the system, and the package that has it.
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


@dataclass(frozen=True, slots=True)
class Target:
    """An architecture as Debian, the compilers and the wheels call it."""

    arch: str
    triplet: str
    machine: str

    @property
    def platforms(self) -> tuple[str, ...]:
        """Tags of the wheels that Debian 12 (glibc 2.36) can use."""
        newest = tuple(f"manylinux_2_{minor}_{self.machine}" for minor in range(36, 16, -1))
        return (*newest, f"manylinux2014_{self.machine}")


TARGETS = {
    "amd64": Target("amd64", "x86_64-linux-gnu", "x86_64"),
    "arm64": Target("arm64", "aarch64-linux-gnu", "aarch64"),
}


class CannotPackage(Exception):
    """Why there is no package."""


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    """Run a command; returns its output. CannotPackage, with all that it said, if it fails."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise CannotPackage(f"{words[0]} is not installed: make pkg-deps") from None
    if done.returncode:
        raise CannotPackage(f"{' '.join(words[:4])} ...: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


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


def compile_extensions(target: Target, system: Path, into: Path) -> None:
    """Compile ours for the target, as setup.py says and as Debian hardens, against the target's headers."""
    setup = run(sys.executable, "setup.py", "-q", "list_extensions", env={"MAGLEV_DEBUG": "0"})
    host = {"DEB_HOST_ARCH": target.arch, "DEB_BUILD_MAINT_OPTIONS": "hardening=+all"}
    flags = {name: run("dpkg-buildflags", "--get", name, env=host) for name in ("CFLAGS", "CPPFLAGS", "LDFLAGS")}
    compiler = f"{target.triplet}-gcc"
    include = system / "usr" / "include"
    for extension in json.loads(setup.splitlines()[-1]):
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


# ------------------------------------------------------------------------------------------------------- what we need


def requirements(names: Iterable[str]) -> dict[str, str]:
    """The distributions that ``names`` need, all the way down, with the versions that are installed here."""
    found: dict[str, str] = {}
    waiting = list(names)
    environment = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "sys_platform": "linux", "extra": ""}
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        distribution = importlib.metadata.distribution(name)
        found[name] = distribution.version
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                waiting.append(requirement.name)
    return dict(sorted(found.items()))


def our_requirements() -> list[str]:
    """What pyproject.toml asks for."""
    import tomllib

    with (ROOT / "pyproject.toml").open("rb") as file:
        return [Requirement(line).name for line in tomllib.load(file)["project"]["dependencies"]]


def client_requirements() -> list[str]:
    """What the client's share of our modules imports. CannotPackage: it imports more of ours than it has."""
    source = ROOT / "src" / "maglev"
    ours = {name.removesuffix(".py") for name in CLIENT_MODULES}
    imported: set[str] = set()
    for path in sorted(source.rglob("*.py")):
        if path.relative_to(source).parts[0] not in CLIENT_MODULES:
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = [f"{module}.{name}" for name in names] if module in ("maglev", "google") else [module]
            for name in names:
                top, _, rest = name.partition(".")
                if top == "maglev" and rest and rest.partition(".")[0] not in ours:
                    raise CannotPackage(f"{path.relative_to(ROOT)} imports {name}, which the client does not have")
                # `google` is a name that many share.
                imported.add("google.protobuf" if name.startswith("google.protobuf") else top)
    wanted = {"protobuf"} if "google.protobuf" in imported else set()
    distributions = importlib.metadata.packages_distributions()
    for name in imported - sys.stdlib_module_names - {"maglev", "google.protobuf", "__future__", ""}:
        wanted.update(distributions[name])
    return sorted(wanted)


def install_wheels(target: Target, wanted: dict[str, str], into: Path) -> None:
    """Unpack wheels of the target's platform into a directory."""
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile",
        "--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}",
        *(f"--abi={abi}" for abi in (f"cp{PYTHON.replace('.', '')}", "abi3", "none")),
        *(f"--platform={platform}" for platform in target.platforms),
        f"--target={into}", *(f"{name}=={version}" for name, version in wanted.items()),
    )  # fmt: skip
    # What only a compiler, a type checker or an entry point needs.
    shutil.rmtree(into / "bin", ignore_errors=True)
    for pattern in ("*.pyx", "*.pxd", "*.pxi", "*.c", "*.h", "*.pyi", "py.typed", "RECORD", "INSTALLER", "REQUESTED"):
        for path in into.rglob(pattern):
            path.unlink()
    for name in ("tests", "testdata", "__pycache__"):
        for path in into.rglob(name):
            shutil.rmtree(path)
    for path in into.rglob("*"):
        if path.is_file():
            path.chmod(0o644)


def move_licences(modules: Path, into: Path) -> None:
    """Take the licences of all distributions to where Debian has them; nothing may come without one."""
    for information in sorted(modules.glob("*.dist-info")):
        name = information.name.partition("-")[0]
        texts = [
            path
            for path in information.rglob("*")
            if path.is_file() and re.match(r"(?i)(licen[cs]e|copying|notice|authors)", path.name)
        ]
        if not texts:
            raise CannotPackage(f"{name} comes without a licence")
        for path in texts:
            place = into / name / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, place)
        shutil.rmtree(information / "licenses", ignore_errors=True)


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


def install(source: Path, destination: Path, mode: int = 0o644) -> None:
    """Copy a file."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, destination)
    destination.chmod(mode)


def compress(text: str, destination: Path) -> None:
    """Write text as gzip does with -9n."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def install_modules(tree: Path, version: Version, extensions: Path | None) -> None:
    """Our own modules: all with their ``extensions``, or the client's share."""
    source, home = ROOT / "src" / "maglev", tree / HOME / "maglev"
    for path in sorted(source.rglob("*.py")):
        relative = path.relative_to(source)
        if extensions is not None or relative.parts[0] in CLIENT_MODULES:
            install(path, home / relative)
    (home / "_version.py").write_text(f'version = "{version.python}"\ncommit_id = "{version.commit}"\n')
    if extensions is not None:
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


def write_copyright(tree: Path, package: str, wanted: dict[str, str]) -> None:
    """The copyright file: ours, and where those of the others are."""
    others = "\n".join(f"  {name} {version}" for name, version in wanted.items())
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


def common_files(tree: Path, package: str, version: Version, wanted: dict[str, str]) -> None:
    """What both packages have."""
    install(HERE / "maglevc", tree / "usr/bin/maglevc", 0o755)
    install(HERE / "maglevc.bash-completion", tree / "usr/share/bash-completion/completions/maglevc")
    install(HERE / "maglevc.zsh-completion", tree / "usr/share/zsh/vendor-completions/_maglevc")
    date = time.strftime("%Y-%m-%d", time.gmtime(int(run("git", "log", "-1", "--format=%ct").strip())))
    pages = manpages.render(version.debian, date)
    compress(pages["maglevc.1"], tree / "usr/share/man/man1/maglevc.1.gz")
    move_licences(tree / HOME, tree / DOC / package / "licenses")
    write_copyright(tree, package, wanted)
    write_changelog(tree, package, version)
    if package == "vpp-maglev":
        compress(pages["maglevd.8"], tree / "usr/share/man/man8/maglevd.8.gz")
        compress(pages["maglev.yaml.5"], tree / "usr/share/man/man5/maglev.yaml.5.gz")


def daemon_files(tree: Path) -> None:
    """What the daemon's package has beside."""
    install(HERE / "maglevd", tree / "usr/sbin/maglevd", 0o755)
    install(HERE / "maglev.yaml", tree / "etc/vpp-maglev/maglev.yaml")
    install(HERE / "vpp-maglev.default", tree / "etc/default/vpp-maglev")
    install(HERE / "vpp-maglevd.service", tree / "lib/systemd/system/vpp-maglevd.service")
    install(HERE / "vpp-maglev.sysctl", tree / "usr/lib/sysctl.d/50-vpp-maglev.conf")
    install(HERE / "netns.conf", tree / DOC / "vpp-maglev/examples/netns.conf")
    for path in (ROOT / "docs").iterdir():
        if path.is_file():
            install(path, tree / DOC / "vpp-maglev" / path.name)
    install(ROOT / "proto" / "maglev.proto", tree / DOC / "vpp-maglev/maglev.proto")


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
    """Who answers for the packages: DEBFULLNAME and DEBEMAIL, as Debian's own tools have it, else debian/control's."""
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


def build(target: Target, mirror: str) -> list[Path]:
    """Both packages of an architecture; returns their paths."""
    version = Version.of_tree()
    work = WORK / target.arch
    system, extensions = work / "system", work / "extensions"
    if not (work / "system.stamp").exists():
        fetch_system(target, system, mirror)
        (work / "system.stamp").touch()
    shutil.rmtree(extensions, ignore_errors=True)
    compile_extensions(target, system, extensions)
    results = []
    for package, names in (("vpp-maglev", our_requirements()), ("vpp-maglev-client", client_requirements())):
        tree = work / package
        shutil.rmtree(tree, ignore_errors=True)
        wanted = requirements(names)
        install_wheels(target, wanted, tree / HOME)
        daemon = package == "vpp-maglev"
        install_modules(tree, version, extensions if daemon else None)
        libraries = library_packages(strip(target, tree))
        common_files(tree, package, version, wanted)
        if daemon:
            daemon_files(tree)
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
        # Compilers, pip and apt are processes of their own: one thread waits for those of each architecture.
        with ThreadPoolExecutor() as pool:
            targets = [TARGETS[arch] for arch in options.arch or TARGETS]
            for paths in pool.map(lambda target: build(target, options.mirror), targets):
                for path in paths:
                    print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1e6:.1f} MB", flush=True)
    except CannotPackage as error:
        print(f"package: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
