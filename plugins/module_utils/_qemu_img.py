# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""qemu-img with types. It is always told the formats, never left to guess them.

The functions take files of our own, whose format is known. A file from outside goes through :func:`safe_info` first.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import tempfile
import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _cli
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._foreign import identify

MINIMUM = (5, 1)
"""zstd-compressed qcow2 and the refusal of backing files without a format came with QEMU 5.1."""

COMPRESSIONS = ("zstd", "zlib")
_TOOL = "qemu-img"
_SHORT = 120.0
_PERCENT = re.compile(r"\((\d+(?:\.\d+)?)/100%\)")
_MENDS = (
    ("No space left on device", "free some space there, or set image_workspace to a larger file system"),
    ("Disk quota exceeded", "free some of the quota there, or set image_workspace to another file system"),
    ("Permission denied", "give this user the right to it"),
    ("Is another process using", "wait until the process that uses it has ended, then run this again"),
    ("Could not open backing file", "the layer below is gone: remove this layer, so that both are made again"),
)

Tick = t.Callable[[float], None]
"""Called about once a second with the percentage done; what it raises ends the tool."""


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """What qemu-img knows about a disk. Sizes are in bytes; ``chain`` holds the images below it, nearest first."""

    path: Path
    format: str
    virtual_size: int
    actual_size: int
    cluster_size: int | None = None
    compression: str | None = None
    backing: Path | None = None
    backing_format: str | None = None
    data_file: str | None = None
    encrypted: bool = False
    dirty: bool = False
    chain: tuple[ImageInfo, ...] = ()

    @classmethod
    def load(cls, answer: t.Mapping[str, t.Any]) -> ImageInfo:
        """From one image of C(qemu-img info --output=json)."""
        special = answer.get("format-specific", {}).get("data", {})
        below = answer.get("full-backing-filename") or answer.get("backing-filename")
        return cls(
            path=Path(answer["filename"]),
            format=answer["format"],
            virtual_size=int(answer["virtual-size"]),
            actual_size=int(answer.get("actual-size", 0)),
            cluster_size=answer.get("cluster-size"),
            compression=special.get("compression-type"),
            backing=Path(below) if below else None,
            backing_format=answer.get("backing-filename-format"),
            data_file=special.get("data-file"),
            encrypted=bool(answer.get("encrypted") or special.get("encrypt")),
            dirty=bool(answer.get("dirty-flag")),
        )


@functools.lru_cache(maxsize=4)
def _checked(path: str | None) -> str:
    # Keyed by where the tool is, so that its version is asked once and yet a changed PATH is noticed.
    return _cli.require_version(path or _TOOL, MINIMUM, package="qemu-utils")


def tool() -> str:
    """The full path of a qemu-img that is new enough; raises FactoryError where there is none."""
    return _checked(_cli.which(_TOOL))


def version() -> str:
    """The builder's QEMU version, as C(7.2.22)."""
    return ".".join(map(str, _cli.version_of(tool())))


def _name(path: Path) -> str:
    # Absolute: a relative name with a colon in it ("nbd:…", "json:…") would be read as a protocol.
    return str(path.absolute())


def _failed(exc: _cli.ToolError, path: Path) -> FactoryError:
    said = re.sub(r"\b(qemu-img: )+", "", _cli.tail(exc.completed.stderr or exc.completed.stdout))
    said = said.rstrip(". ") or f"qemu-img {exc.completed.argv[1]} ended with {exc.completed.rc} and said nothing"
    mend = next((mend for sign, mend in _MENDS if sign in said), None)
    return FactoryError(f"qemu-img {exc.completed.argv[1]}: {said}", where=str(path), mend=mend, details=exc.details)


def _run(path: Path, *args: str, ok: t.Container[int] = (0,), tick: Tick | None = None) -> _cli.Completed:
    """Run qemu-img on ``path``; return codes not in ``ok`` raise FactoryError. Without ``tick`` it must be quick."""
    done = _cli.run(
        [tool(), *args],
        timeout=None if tick else _SHORT,
        check=False,
        tick=_percent_reader(tick) if tick else None,
    )
    if done.rc not in ok:
        raise _failed(_cli.ToolError(done), path)
    return done


def _percent_reader(tick: Tick) -> t.Callable[[str], None]:
    last = 0.0

    def read(line: str) -> None:
        nonlocal last
        found = _PERCENT.search(line)
        last = float(found.group(1)) if found else last
        tick(last)

    return read


def _quiet(_percent: float) -> None:
    """The tick of who wants none; it also lifts the time limit."""


def _options(options: t.Mapping[str, str]) -> list[str]:
    pairs = [f"{key}={value.replace(',', ',,')}" for key, value in options.items()]
    return ["-o", ",".join(pairs)] if pairs else []


def create(
    path: Path,
    size: int | None,
    fmt: str = "qcow2",
    *,
    backing: Path | None = None,
    backing_fmt: str = "qcow2",
    options: t.Mapping[str, str] | None = None,
) -> None:
    """Make an empty disk of ``size`` bytes, or an overlay on ``backing`` (``size`` None: as large as that).

    :raises FactoryError: ``path`` exists already, or qemu-img cannot; then no file is left.
    """
    if path.exists() or path.is_symlink():
        raise FactoryError("exists already", where=str(path), mend="remove it first")
    below = ["-b", _name(backing), "-F", backing_fmt] if backing else []
    end = [] if size is None else [str(size)]
    try:
        slow = _quiet if (options or {}).get("preallocation") else None
        _run(path, "create", "-q", "-f", fmt, *below, *_options(options or {}), _name(path), *end, tick=slow)
    except FactoryError:
        path.unlink(missing_ok=True)
        raise


def resize(path: Path, size: int, fmt: str = "qcow2", *, shrink: bool = False) -> None:
    """Give a disk of our own another virtual size in bytes; ``shrink`` must be said where that is less than it has."""
    smaller = ["--shrink"] if shrink else []
    _run(path, "resize", "-q", "-f", fmt, *smaller, _name(path), str(size), tick=_quiet)


def rebase(path: Path, backing: Path, backing_fmt: str, *, unsafe: bool = False) -> None:
    """Have a qcow2 stand on another disk with what it holds unchanged; with ``unsafe`` only the name is changed."""
    how = ["-u"] if unsafe else ["-p"]
    _run(path, "rebase", "-f", "qcow2", *how, "-b", _name(backing), "-F", backing_fmt, _name(path), tick=_quiet)


def measure(path: Path, fmt: str = "qcow2") -> int:
    """How many bytes the content of a disk takes in a raw file with holes."""
    answer = _run(path, "measure", "--output=json", "-O", "raw", "-f", fmt, _name(path), tick=_quiet).json()
    return int(answer["required"])


def info(path: Path, fmt: str = "qcow2", *, chain: bool = False) -> ImageInfo:
    """What a disk of our own is; with ``chain`` also the images below it (which must all be there)."""
    follow = ["--backing-chain"] if chain else []
    answer = _run(path, "info", "--output=json", *follow, "-f", fmt, _name(path)).json()
    images = [ImageInfo.load(image) for image in (answer if chain else [answer])]
    return dataclasses.replace(images[0], chain=tuple(images[1:]))


def safe_info(path: Path) -> ImageInfo:
    """What a file from outside is: its format is told by its own magic.

    :raises FactoryError: it is no disk, or it refers to other files (backing file, data file), or it is encrypted.
    """
    found = info(path, identify(path))
    for wrong, why in (
        (found.backing, f"needs another file below it ({found.backing})"),
        (found.data_file, f"keeps its data in another file ({found.data_file})"),
        (found.encrypted, "is encrypted"),
    ):
        if wrong:
            raise FactoryError(why, where=str(path), mend="flatten it into one plain file where it comes from")
    return found


def check(path: Path, fmt: str = "qcow2") -> None:
    """Raise FactoryError where a disk's metadata is corrupted. Leaked clusters only waste space, and pass."""
    if fmt == "raw":
        return  # nothing in it to check
    done = _run(path, "check", "--output=json", "-f", fmt, _name(path), ok=(0, 2, 3, 63), tick=_quiet)
    if done.rc == 2:
        count = done.json().get("corruptions", "some")
        raise FactoryError(
            f"is corrupted ({count} errors)", where=str(path), mend="remove it, so that it is made again"
        )


def examine(path: Path, fmt: str = "qcow2", repair: str | None = None) -> dict[str, int]:
    """What C(qemu-img check) counts: C(corruptions), C(leaks) and others; {} for a format that has nothing to check.

    :param repair: C(leaks), or C(all) to have what is damaged made consistent too, which may cost data.
    """
    wanted = ["-r", repair] if repair else []
    done = _run(path, "check", "--output=json", "-f", fmt, *wanted, _name(path), ok=(0, 2, 3, 63), tick=_quiet)
    if done.rc == 63:
        return {}
    counted = done.json()
    found = {key.replace("-", "_"): value for key, value in counted.items() if isinstance(value, int)}
    return {"corruptions": 0, "leaks": 0, "check_errors": 0, **found}


def convert(
    source: Path,
    target: Path,
    *,
    source_fmt: str,
    target_fmt: str,
    compressed: str | None = None,
    cluster_size: int | None = None,
    coroutines: int | None = None,
    out_of_order: bool = False,
    options: t.Mapping[str, str] | None = None,
    tick: Tick | None = None,
) -> None:
    """Copy a disk with all that is below it into one flat file of another format.

    :param compressed: C(zstd) or C(zlib); both only into qcow2.
    :param cluster_size: of the qcow2, in bytes.
    :param coroutines: reads at the same time.
    :param out_of_order: faster on more than one core, but the bytes differ from run to run.
    :param options: more of the target's format, as C(qemu-img convert -o) takes them.
    :raises FactoryError: it cannot; then no target is left.
    """
    args = ["convert", "-p", "-f", source_fmt, "-O", target_fmt]
    values = dict(options or {})
    if compressed:
        args.append("-c")
        values["compression_type"] = compressed
    if cluster_size:
        values["cluster_size"] = str(cluster_size)
    if coroutines:
        args += ["-m", str(coroutines)]
    if out_of_order:
        args.append("-W")
    try:
        _run(source, *args, *_options(values), _name(source), _name(target), tick=tick or _quiet)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def compare(a: Path, a_fmt: str, b: Path, b_fmt: str, *, tick: Tick | None = None) -> bool:
    """Whether a guest would read the same from both disks; where one is longer, the rest must be zeros."""
    done = _run(a, "compare", "-p", "-f", a_fmt, "-F", b_fmt, _name(a), _name(b), ok=(0, 1), tick=tick or _quiet)
    return done.rc == 0


def copy_head(path: Path, fmt: str, target: Path, size: int) -> None:
    """Write the first ``size`` bytes (whole MiB) of a disk to a raw file."""
    block = 1 << 20
    places = (f"bs={block}", f"count={size // block}", f"if={_name(path)}", f"of={_name(target)}")
    _run(path, "dd", "-f", fmt, "-O", "raw", *places)


def write(path: Path, fmt: str, offset: int, data: bytes | int) -> None:
    """Write into a disk as a guest would; a number is so many zeros. Both are in whole sectors."""
    with tempfile.TemporaryDirectory(prefix="cloudimg-", dir="/var/tmp") as folder:
        source = Path(folder, "data")
        if isinstance(data, bytes):
            source.write_bytes(data)
            request = f"write -q -s {source} {offset} {len(data)}"
        else:
            request = f"write -q -z {offset} {data}"
        done = _cli.run(["qemu-io", "-f", fmt, "-c", request, _name(path)], timeout=_SHORT, check=False)
    # It ends with 0 also where a request has failed.
    if done.rc or done.stdout.strip() or done.stderr.strip():
        said = _cli.tail(done.stderr or done.stdout, 1)
        raise FactoryError(f"cannot be written to: {said}", where=str(path), mend="check the disk it is on")


def disk_map(path: Path, fmt: str = "qcow2") -> list[dict[str, t.Any]]:
    """The ranges of a disk: ``[{start, length, depth, present, zero, data, …}]``."""
    return list(_run(path, "map", "--output=json", "-f", fmt, _name(path), tick=_quiet).json())
