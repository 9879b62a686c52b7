# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Files in a bucket of an S3-compatible store, by boto3. An object appears when it is whole; its SHA-256 is in its metadata."""

from __future__ import annotations

import contextlib
import threading
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _serve
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._libraries import need
from ansible_collections.cloudimg.factory.plugins.module_utils._progress import Progress
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

_PART = 32 << 20
_THREADS = 2
"""Parts that are sent at the same time; more only helps where the way is long."""
_ABSENT = ("404", "NoSuchKey", "NotFound")


class S3Store(_serve.Store):
    """The objects of a bucket whose keys begin with ``prefix``.

    :param endpoint: URL of the store; None for that of AWS.
    :param key: access key, secret key, and session token or None; where it is None, boto3 looks for credentials.
    :param ca: a file with the certificates that are trusted.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        key: tuple[str, str, str | None] | None = None,
        ca: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.where = f"s3://{bucket}/{self._prefix}".rstrip("/")
        self._boto3 = need("boto3")
        self._errors = need("botocore.exceptions")
        # Checksums of 2024 and later are unknown to many compatible stores. They all check the SHA-256 of a payload that its
        # signature covers.
        newer = version_key(str(need("botocore").__version__)) >= version_key("1.36")
        sums = ("request_checksum_calculation", "response_checksum_validation") if newer else ()
        config = need("botocore.config").Config(
            connect_timeout=min(timeout, 30),
            read_timeout=timeout,
            retries={"mode": "standard", "max_attempts": 5},
            **dict.fromkeys(sums, "when_required"),
            s3={"payload_signing_enabled": True, "addressing_style": "path" if endpoint else "auto"},
        )
        access, secret, token = key or (None, None, None)
        with self._explained(""):
            session = self._boto3.session.Session(access, secret, token, region)
            self._client = session.client("s3", endpoint_url=endpoint, config=config, verify=ca)

    def size(self, name: str) -> int | None:
        head = self._head(name)
        return int(head["ContentLength"]) if head else None

    def sha256(self, name: str) -> str | None:
        head = self._head(name)
        return str(head["Metadata"].get("sha256", "")) or None if head else None

    def read(self, name: str, limit: int) -> bytes | None:
        with self._explained(name):
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"]
            except self._errors.ClientError as exc:
                if _code(exc) in _ABSENT:
                    return None
                raise
            with contextlib.closing(body):
                return bytes(body.read(limit + 1))

    def put(self, name: str, content: _serve.Content, progress: Progress) -> None:
        key = self._prefix + name
        metadata = {"sha256": content.sha256}
        with self._explained(name):
            if content.path is None:
                self._client.put_object(Bucket=self._bucket, Key=key, Body=content.data, Metadata=metadata)
            else:
                self._abort_former(key)
                transfer = need("boto3.s3.transfer").TransferConfig(
                    multipart_threshold=_PART, multipart_chunksize=_PART, max_concurrency=_THREADS
                )
                self._client.upload_file(
                    str(content.path),
                    self._bucket,
                    key,
                    ExtraArgs={"Metadata": metadata},
                    Config=transfer,
                    Callback=_Meter(progress, content.size),
                )
        self.sent += content.size

    def remove(self, name: str) -> bool:
        # Deleting what is not there is no error for S3, and says nothing.
        there = self._head(name) is not None
        if there:
            with self._explained(name):
                self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)
        return there

    def close(self) -> None:
        self._client.close()

    def _head(self, name: str) -> dict[str, t.Any] | None:
        with self._explained(name):
            try:
                head = dict(self._client.head_object(Bucket=self._bucket, Key=self._prefix + name))
            except self._errors.ClientError as exc:
                if _code(exc) in _ABSENT:
                    return None
                raise
        if "ContentLength" not in head:
            # Python takes a head that breaks off for one that is whole.
            raise _serve.Interrupted("the answer broke off", where=self.at(name), mend=_serve.AGAIN)
        return head

    def _abort_former(self, key: str) -> None:
        """End what killed runs have begun to send of this object: its parts would be kept, and paid for."""
        with contextlib.suppress(self._errors.ClientError):  # not everybody may list them
            begun = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=key).get("Uploads", [])
            for upload in begun:
                if upload["Key"] == key:
                    self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload["UploadId"])

    @contextlib.contextmanager
    def _explained(self, name: str) -> t.Iterator[None]:
        where = self.at(name) if name else self.where
        errors = self._errors
        try:
            yield
        except (errors.ClientError, self._boto3.exceptions.Boto3Error) as exc:
            code = _code(exc) if isinstance(exc, errors.ClientError) else ""
            mend = {
                "NoSuchBucket": "make the bucket, or correct its name",
                "AccessDenied": "let this key read, write and delete there",
                "403": "check the key, and what it may do there",
                "InvalidAccessKeyId": "check the access key",
                "SignatureDoesNotMatch": "check the secret key",
            }.get(code, "check the bucket, the endpoint and the key")
            raise FactoryError(_short(exc), where=where, mend=mend) from None
        except (errors.NoCredentialsError, errors.PartialCredentialsError) as exc:
            mend = "give access_key and secret_key, or what boto3 looks for (AWS_ACCESS_KEY_ID …)"
            raise FactoryError(_short(exc), where=where, mend=mend) from None
        except (errors.HTTPClientError, errors.ResponseStreamingError) as exc:
            raise _serve.Interrupted(f"the connection failed: {_short(exc)}", where=where, mend=_serve.AGAIN) from None
        except (errors.BotoCoreError, ValueError) as exc:
            mend = "check endpoint, region and the name of the bucket"
            raise FactoryError(_short(exc), where=where, mend=mend) from None


class _Meter:
    """Adds up what boto3's threads say they have sent."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, size: int) -> None:
        with self._lock:
            self._done += size
        self._progress.report(done=self._done, total=self._total)


def _code(exc: t.Any) -> str:
    return str(exc.response.get("Error", {}).get("Code", ""))


def _short(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:300]
