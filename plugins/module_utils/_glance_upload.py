# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Bring the data of an image into Glance: nothing half-made is ever seen, whatever breaks.

An image is made private, hidden and marked as incoming, under an id that we choose. It gets its data; when they are all there
and have the checksum of the build, they stay, else the image goes. What a killed run has left is found by its mark.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import uuid
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils._digest import ALGORITHMS, cached_digests
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._glance_api import (
    BUSY,
    DONE,
    Answered,
    Glance,
    Image,
    Unknown,
)
from ansible_collections.cloudimg.factory.plugins.module_utils._glance_properties import (
    INCOMING,
    PUBLISHER,
    SHA512,
    STATE,
    Wanted,
)

ATTEMPTS = 3
"""How often data are sent in one run where connections break."""

SETTLE = 15.0
"""Seconds in which a server notices that a connection has gone."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the data come from.

    :param path: the artifact; it has been held against its descriptor.
    :param checksums: ``{algorithm: lower-case hex}`` of it.
    :param method: C(put), C(glance-direct) or C(web-download).
    :param uri: where the server fetches it, for C(web-download).
    :param patience: seconds that the server has for an import.
    """

    path: Path
    size: int
    checksums: dict[str, str]
    method: str = "put"
    uri: str | None = None
    patience: float = 1800.0


def publisher() -> str:
    """Who we are among those that publish at the same time: this machine and user."""
    parts = []
    for path in ("/etc/machine-id", "/proc/sys/kernel/hostname"):
        with contextlib.suppress(OSError):
            parts.append(Path(path).read_text(encoding="utf-8").strip())
    parts.append(str(Path.home()))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def same_data(image: Image, source: Source) -> bool:
    """Whether an image has the data of the artifact, by the server's own checksum of them.

    A server that converts what it imports has another checksum; then what was sent counts.
    """
    algorithm, value = image.get("os_hash_algo"), image.get("os_hash_value")
    if not algorithm or not value:
        return image.get("checksum") == source.checksums["md5"]
    return value == _digest(source, algorithm) or _converted(image, source)


def _digest(source: Source, algorithm: str) -> str:
    if algorithm not in source.checksums:
        if algorithm not in hashlib.algorithms_available:
            raise FactoryError(
                f"has checksums by {algorithm}, which is not known here",
                where="Glance",
                mend="have hashing_algorithm set to sha512 there",
            )
        source.checksums.update(cached_digests(source.path, [*ALGORITHMS, algorithm]))
    return source.checksums[algorithm]


def _converted(image: Image, source: Source) -> bool:
    sent = image.get("cloudimg_disk_format")
    return bool(sent and sent != image["disk_format"] and image.get(SHA512) == source.checksums["sha512"])


def bring(glance: Glance, wanted: Wanted, source: Source) -> Image:
    """A complete image with these data: private, hidden, and marked as incoming.

    :raises FactoryError: it cannot be; then there is none, unless the server could not be told to remove it.
    """
    check_method(glance, source)
    left = ATTEMPTS
    while True:
        left -= 1
        image = str(uuid.uuid4())
        glance.create(
            {
                **wanted.document(),
                "id": image,
                "visibility": "private",
                "os_hidden": True,
                STATE: INCOMING,
                PUBLISHER: publisher(),
                "cloudimg_disk_format": wanted.base["disk_format"],
            }
        )
        try:
            try:
                _send(glance, image, source)
            except Unknown:
                found = glance.wait(image, SETTLE)
                if found is None or found["status"] not in DONE:
                    if not left:
                        raise
                    glance.delete(image)
                    continue
            return _verified(glance, image, source)
        except BaseException:
            # Also where it is cancelled. What cannot be removed now is hidden, and goes with the next run.
            with contextlib.suppress(FactoryError):
                glance.delete(image)
            raise


def check_method(glance: Glance, source: Source) -> None:
    """Raise FactoryError where the server does not import in that way."""
    if source.method != "put":
        known = glance.import_methods()
        if source.method not in known:
            raise FactoryError(
                f"imports by {', '.join(known) or 'no method'} only",
                where=glance.where,
                key="method",
                mend="use another method, such as put",
            )


def _send(glance: Glance, image: str, source: Source) -> None:
    """Have the data arrive; returns when the server says that it has them."""
    if source.method == "put":
        glance.upload(image, source.path, stage=False)
        return
    if source.method == "glance-direct":
        glance.upload(image, source.path, stage=True)
    try:
        glance.begin_import(image, source.method, source.uri)
    except Unknown:
        # It has begun, or the image is as it was; then it may be begun once more.
        found = glance.get(image)
        if found and found["status"] in ("queued", "uploading") and not found.get("os_glance_importing_to_stores"):
            glance.begin_import(image, source.method, source.uri)
    first = "uploading" if source.method == "glance-direct" else "queued"
    _wait_import(glance, image, source, first)


def _wait_import(glance: Glance, image: str, source: Source, first: str) -> None:
    """Wait until it has ended. A failed import has the status that it had before, and tells its stores."""
    waited = 0.0
    while waited < source.patience:
        found = glance.get(image)
        if found is None:
            raise FactoryError("was removed while it was imported", where=f"image {image}", mend="run this again")
        if found["status"] in DONE:
            return
        failed = found.get("os_glance_failed_import")
        said = glance.why_not(image) if failed or (found["status"] == first and waited) else "it does not say why"
        if failed or said != "it does not say why":
            raise FactoryError(
                f"the server could not import it by {source.method}: {said}",
                where=source.uri or f"image {image}",
                mend="check that URL and the server's limits for imports, or use the method put",
            )
        pause = 0.5 if waited < 5 else 5.0
        glance.http.pause(pause)
        waited += pause
    raise FactoryError(
        f"the server has not imported it within {source.patience:g} s",
        where=source.uri or f"image {image}",
        key="timeout",
        mend="raise timeout, or ask the server's administrator",
    )


def _verified(glance: Glance, image: str, source: Source) -> Image:
    found = glance.wait(image, SETTLE)
    if found is None or found["status"] in BUSY or found["status"] not in DONE:
        raise FactoryError(
            f"the server has it as {found['status'] if found else 'removed'} after all data were sent",
            where=f"image {image}",
            mend="ask the server's administrator, then run this again",
        )
    if not same_data(found, source) or (found["size"] != source.size and not _converted(found, source)):
        algorithm = found.get("os_hash_algo") or "md5"
        value = str(found.get("os_hash_value") or found.get("checksum"))
        raise FactoryError(
            f"arrived as something else: {algorithm} is {value[:16]}…, not {_digest(source, algorithm)[:16]}…",
            where=source.uri or f"image {image}",
            mend="check what is at that URL" if source.uri else "run this again",
        )
    return found


__all__ = ["Answered", "Source", "bring", "check_method", "publisher", "same_data"]
