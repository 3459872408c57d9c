"""An apt of our own beside the machine's: it looks packages up and downloads them, and installs nothing.

It reads the machine's keyrings, proxies and list of installed packages, and keeps its sources, lists and cache in a
directory of its own. It can look into another Debian release than the machine's, as on a machine that has nothing
installed. Works without root.
"""

from __future__ import annotations

import platform
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deploy.setup.apt_sources import AptSource, of_release, parse_deb822, parse_list, with_backports
from deploy.setup.errors import SetupFailed

_INSTALL = re.compile(r"^Inst (?P<name>\S+) (?:\[\S+\] )?\((?P<version>\S+) ", re.MULTILINE)


class PrivateApt:
    """The packages of a Debian release and of its backports: this machine's release unless another is named."""

    def __init__(self, directory: Path, etc: Path = Path("/etc/apt"), *, codename: str = "", is_apart: bool = False) -> None:
        self.codename = codename or self.machine_codename()
        self._is_apart = is_apart
        self._directory = directory.absolute()
        self._etc = etc
        self._complaint = ""

    @staticmethod
    def machine_codename() -> str:
        """Return the name of this machine's Debian release; empty when it has none."""
        return platform.freedesktop_os_release().get("VERSION_CODENAME", "")

    def update(self) -> None:
        """Write the sources and fetch their package lists.

        A list that cannot be had is no error here: it may not be needed. What apt said is part of a later error.

        Raises:
            SetupFailed: no source of the machine has its release.
        """
        machine = self.machine_codename()
        sources = with_backports(self._machine_sources(), machine)
        if not sources:
            raise SetupFailed(f"{self._etc}: no source with the suite {machine!r} and the component main")
        for name in ("lists/partial", "cache/archives/partial"):
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        text = "\n".join(source.to_stanza() for source in of_release(sources, machine, self.codename))
        (self._directory / "ferry.sources").write_text(text, encoding="utf-8")
        self._complaint = self._run("apt-get", "update", "--quiet", check=False).stderr.strip()

    def dependency(self, package: str, pattern: str) -> str:
        """Return the first package that `package` depends on and whose whole name matches.

        Raises:
            SetupFailed: the package is not to be had, or depends on none such.
        """
        output = self._run("apt-cache", "depends", "--important", package).stdout
        found = re.search(rf"^\s*Depends: ({pattern})$", output, re.MULTILINE)
        if found is None:
            raise SetupFailed(f"{package}: depends on nothing like {pattern}")
        return found[1]

    def missing_for(self, package: str, suite: str) -> dict[str, str]:
        """Return what an installation from `suite` would unpack: versions by name, the package itself included.

        Raises:
            SetupFailed: the package is not to be had.
        """
        # fmt: off
        output = self._run(
            "apt-get", "install", "--simulate", "--no-install-recommends",
            "--target-release", suite,
            package,
        ).stdout
        # fmt: on
        return {match["name"]: match["version"] for match in _INSTALL.finditer(output)}

    def unpack(self, packages: Sequence[str], root: Path) -> None:
        """Download packages, given as `name` or `name=version`, and unpack them below `root`.

        Raises:
            SetupFailed: one could not be had; `root` may hold a part of the others.
        """
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._directory) as scratch:
            self._run("apt-get", "download", *packages, directory=Path(scratch))
            for archive in sorted(Path(scratch).glob("*.deb")):
                self._run("dpkg-deb", "--extract", str(archive), str(root.absolute()))

    def _machine_sources(self) -> list[AptSource]:
        sources: list[AptSource] = []
        for path in (self._etc / "sources.list", *sorted((self._etc / "sources.list.d").glob("*"))):
            if path.suffix in {".list", ".sources"} and path.is_file():
                parse = parse_deb822 if path.suffix == ".sources" else parse_list
                sources += parse(path.read_text(encoding="utf-8"))
        return sources

    def _run(
        self, program: str, *arguments: str, directory: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        options = self._options() if program.startswith("apt") else ()
        command = (program, *options, *arguments)
        result = subprocess.run(command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if check and result.returncode != 0:
            said = "\n".join(filter(None, (self._complaint, result.stderr.strip())))
            raise SetupFailed(f"{program} {arguments[0]}: exit status {result.returncode}\n{said}")
        return result

    def _options(self) -> tuple[str, ...]:
        settings = {
            "Dir::Etc::SourceList": self._directory / "ferry.sources",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State::Lists": self._directory / "lists",
            "Dir::Cache": self._directory / "cache",
            **({"Dir::State::Status": "/dev/null"} if self._is_apart else {}),
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Acquire::http::Timeout": "60",
            "Acquire::https::Timeout": "60",
        }
        return tuple(part for name, value in settings.items() for part in ("-o", f"{name}={value}"))
