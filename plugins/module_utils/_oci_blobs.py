# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""The bytes of an OCI registry's blobs: sent in chunks that can be resumed, fetched in ranges, both in bounded memory.

After each failure the registry is asked how much it has; nothing is sent that it has already. An upload that was cut short is
noted beside the file (C(.<name>.upload.json)), so that the next run goes on with it.

docker-registry 2.8, and with it Harbor, signs the length into the upload's URL. When a chunk comes there in part, it forgets the
upload («upload resumed at wrong offset»), and all is sent anew; between two chunks it can be gone on with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import typing as t
from pathlib import Path
from urllib.parse import urlencode, urljoin, urlsplit

from ansible_collections.cloudimg.factory.plugins.module_utils import _http
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Answered, File, Reply, Unknown, Unreachable
from ansible_collections.cloudimg.factory.plugins.module_utils._oci_registry import Repository
from ansible_collections.cloudimg.factory.plugins.module_utils._state import explain_os_errors, write_text

CHUNK = 256 << 20
"""Bytes that one request has at most; they are read from the file while they are sent."""
PIECE = 8 << 20
"""Bytes that are fetched at a time."""
_LEAST = 1 << 20
_DELAYS = (0.2, 1.0, 2.0, 4.0, 8.0)
_LONGEST = 60.0
_RANGE = re.compile(r"(?:bytes=)?0-(\d+)")
_PASSING = (408, 425, 429, 500, 502, 503, 504)


class _Gone(Exception):
    """The registry does not know this upload any more."""


class Upload:
    """Has a file as a blob of a repository.

    :param digest: C(sha256:<hex>) of the whole file, which the registry verifies.
    :param mount_from: repositories of the same registry that may have it already.
    :ivar sent: bytes that were sent, including those that were lost on the way.
    """

    def __init__(
        self,
        repository: Repository,
        path: Path,
        digest: str,
        size: int,
        *,
        mount_from: t.Sequence[str] = (),
        chunk: int = CHUNK,
        delays: t.Sequence[float] = _DELAYS,
    ) -> None:
        self.repository = repository
        self.path = path
        self.digest = digest
        self.size = size
        self.sent = 0
        self._mount_from = mount_from
        self._chunk = chunk
        self._delays = delays
        self._note = path.with_name(f".{path.name}.upload.json")
        self._location = ""
        self._failed: FactoryError | None = None

    def run(self) -> None:
        """Send what is missing; raises FactoryError, after which a further run goes on where this one ended."""
        left = list(self._delays)
        offset = self._recall()
        whole = False
        while True:
            try:
                if not self._location:
                    if self._begin():
                        return self._forget()
                    offset = 0
                if offset is None:
                    offset = self._offset()
                while offset < self.size:
                    before, offset = offset, self._send(offset)
                    if offset > before:
                        left = list(self._delays)
                if self._finish():
                    return self._forget()
            except _Gone as exc:
                self._forget()
                if not left:
                    raise self._failed or FactoryError(
                        f"loses uploads: {exc}", where=self.repository.where, mend="run this again later"
                    ) from None
                self.repository.http.pause(left.pop(0))
            except Answered as exc:
                offset = None
                if exc.reply.status == 413 and self._chunk > _LEAST:
                    self._chunk = max(_LEAST, min(self._chunk, self.size) // 4)
                elif exc.reply.status in (400, 416) and "DIGEST_INVALID" in exc.reply.text and not whole:
                    # Two connections may have written at the same time; begun anew, it is right or the file is another one.
                    whole = True
                    self._cancel()
                elif exc.reply.status == 416 and left:
                    self.repository.http.pause(left.pop(0))
                elif exc.reply.status in _PASSING and left:
                    wait = _http.retry_after(exc.reply.headers.get("Retry-After", ""))
                    self.repository.http.pause(max(left.pop(0), min(wait, _LONGEST)))
                else:
                    if "DIGEST_INVALID" in exc.reply.text:
                        self._cancel()
                    raise
                self._failed = exc
            except (Unknown, Unreachable) as exc:
                offset = None
                if not left or (isinstance(exc, Unreachable) and not exc.passing):
                    raise
                self._failed = exc
                self.repository.http.pause(left.pop(0))

    def _begin(self) -> bool:
        """Begin an upload; whether the blob is there by a mount already. A begun one that is lost costs nothing."""
        for other in self._mount_from:
            query = urlencode({"mount": self.digest, "from": other})
            try:
                reply = self._post(f"blobs/uploads/?{query}")
            except Answered as exc:
                if exc.reply.status not in (400, 401, 403, 404, 405):
                    raise
                continue
            if reply.status == 201:
                return True
            self._went(reply)
            return False
        self._went(self._post("blobs/uploads/"))
        return False

    def _post(self, url: str) -> Reply:
        return self.repository.request("POST", url, body=b"", once=True, repeat=True, accept=(201, 202))

    def _send(self, offset: int) -> int:
        """Send the next chunk; returns how much the registry has then."""
        size = min(self._chunk, self.size - offset)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{offset}-{offset + size - 1}",
        }
        self.sent += size
        body = File(self.path, offset, size)
        try:
            # «repeat» says only that a failure may be followed by another attempt, which comes after a look at the upload.
            reply = self.repository.request(
                "PATCH", self._location, body=body, headers=headers, once=True, repeat=True, accept=(201, 202, 204)
            )
        except Answered as exc:
            if exc.reply.status not in (404, 410):
                raise
            self._failed = exc
            raise _Gone(exc.problem) from None
        self._went(reply)
        return offset + size

    def _offset(self) -> int:
        """How many bytes the registry has; raises _Gone where it does not know the upload."""
        try:
            reply = self.repository.request("GET", self._location, accept=(200, 202, 204))
        except Answered as exc:
            # Another secret after a restart makes it refuse the state in its own URL.
            if exc.reply.status in (400, 404, 405, 410):
                raise _Gone(exc.problem) from None
            raise
        self._went(reply)
        found = _RANGE.fullmatch(reply.headers.get("Range", "").strip())
        # «0-0» is what registries say of nothing, too.
        offset = int(found[1]) + 1 if found and int(found[1]) else 0
        if offset > self.size:
            self._cancel()
            raise _Gone("it has more than was sent")
        return offset

    def _finish(self) -> bool:
        """Close the upload; the registry verifies the digest."""
        joint = "&" if urlsplit(self._location).query else "?"
        url = f"{self._location}{joint}{urlencode({'digest': self.digest})}"
        try:
            self.repository.request("PUT", url, body=b"", once=True, repeat=True, accept=(201, 204))
        except (Unknown, Answered) as exc:
            if isinstance(exc, Answered) and exc.reply.status not in (404, *_PASSING):
                raise
            if self.repository.has(self.digest, self.size):
                return True
            if isinstance(exc, Answered) and exc.reply.status == 404:
                raise _Gone(exc.problem) from None
            raise
        return True

    def _cancel(self) -> None:
        with contextlib.suppress(FactoryError):
            self.repository.request("DELETE", self._location, once=True, accept=(200, 202, 204, 404))
        self._forget()

    def _went(self, reply: Reply) -> None:
        place = reply.headers.get("Location", "")
        if not place:
            if not self._location:
                raise FactoryError(
                    "names no place to upload to", where=reply.where, mend="give the URL of an OCI registry"
                )
            return
        base = urlsplit(self.repository.base)
        parts = urlsplit(urljoin(self.repository.base, place))
        if parts.scheme == "http" and base.scheme == "https" and parts.hostname == base.hostname:
            # A registry behind a proxy that does TLS for it.
            parts = parts._replace(scheme=base.scheme, netloc=base.netloc)
        self._location = parts.geturl()
        about = {"repository": self.repository.where, "digest": self.digest, "location": self._location}
        if os.access(self.path.parent, os.W_OK):
            write_text(self._note, json.dumps(about), mode=0o600)

    def _recall(self) -> int | None:
        """Go on with the upload that is noted, if it is this one: returns None, for the registry knows how far it came."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            known = note["repository"] == self.repository.where and note["digest"] == self.digest
            location = str(note["location"])
            same = urlsplit(location)[:2] == urlsplit(self.repository.base)[:2]
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        self._location = location if known and same else ""
        return None

    def _forget(self) -> None:
        self._location = ""
        with contextlib.suppress(OSError):
            self._note.unlink()


def fetch(repository: Repository, digest: str, size: int, path: Path) -> None:
    """Fetch a blob into a file, going on after what is there of it; the digest is verified at the end.

    Each piece is a GET of its own with a range, so that memory is bounded and a broken connection costs one piece.

    :raises FactoryError: the blob is another one than its digest says (then the file is removed), or cannot be fetched.
    """
    hasher = hashlib.sha256()
    with explain_os_errors(path), path.open("a+b") as stream:
        stream.seek(0)
        done = 0
        while chunk := stream.read(PIECE):
            hasher.update(chunk)
            done += len(chunk)
        while done < size:
            last = min(done + PIECE, size) - 1
            reply = repository.request(
                "GET", f"blobs/{digest}", headers={"Range": f"bytes={done}-{last}"}, accept=(200, 206)
            )
            data = reply.body
            if reply.status == 200:
                data = data[done:]
            elif not reply.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                raise FactoryError("gave another part than was asked for", where=reply.where, mend="check the registry")
            if not data:
                raise FactoryError("gave less than its manifest says", where=reply.where, mend="publish it again")
            stream.write(data)
            hasher.update(data)
            done += len(data)
            repository.progress.report(done=done, total=size)
    found = "sha256:" + hasher.hexdigest()
    if done != size or found != digest:
        path.unlink()
        raise FactoryError(
            f"{digest[:23]}… came as {found[:23]}…, {done} of {size} bytes",
            where=repository.where,
            mend="run this again; when it stays so, publish the image again",
        )
