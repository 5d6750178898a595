"""A folder of a bucket: `s3://bucket/prefix`.

Credentials, region and endpoint are boto3's business: a pod's role, or the AWS_ variables. boto3
lists and signs; the bytes are fetched like all others.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from tgwui_k8s.errors import DownloadError, UsageError
from tgwui_k8s.storage.pull.snapshot import Checksum, Location, RemoteFile, Snapshot

_LIFETIME_SECONDS = 3600
_MD5 = re.compile(r"[0-9a-f]{32}")
_PARTS = re.compile(r"[0-9a-f]{32}-\d+")


class S3Source:
    """All objects below a prefix."""

    def __init__(self, bucket: str, prefix: str) -> None:
        """Raises `UsageError` where boto3 is not installed."""
        try:
            import boto3
            import botocore.config
            import botocore.exceptions
        except ImportError:
            raise UsageError("s3:// needs boto3: pip install 'tgwui-k8s[s3]'") from None
        self._bucket = bucket
        self._prefix = prefix.strip("/")
        self._errors = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
        config = botocore.config.Config(signature_version="s3v4", retries={"max_attempts": 8})
        self._client: Any = boto3.client("s3", config=config)

    @property
    def default_name(self) -> str:
        """The prefix's last part, or the bucket."""
        return self._prefix.rpartition("/")[2] or self._bucket

    def snapshot(self) -> Snapshot:
        """The objects as they are now; their ETags hold the version."""
        start = f"{self._prefix}/" if self._prefix else ""
        try:
            pages = self._client.get_paginator("list_objects_v2")
            listed = [
                entry
                for page in pages.paginate(Bucket=self._bucket, Prefix=start)
                for entry in page.get("Contents", ())
                if not entry["Key"].endswith("/")  # the console's folders
            ]
            files = tuple(self._file(entry, start) for entry in listed)
        except self._errors as error:
            raise DownloadError(f"cannot list s3://{self._bucket}/{start}: {error}") from None
        if not files:
            raise DownloadError(f"s3://{self._bucket}/{start} holds no objects")
        versions = "".join(f"{file.path} {file.etag}\n" for file in files)
        revision = hashlib.sha256(versions.encode()).hexdigest()
        return Snapshot(f"s3://{self._bucket}/{self._prefix}", revision, files)

    def locate(self, file: RemoteFile) -> Location:
        """A signed URL."""
        key = f"{self._prefix}/{file.path}" if self._prefix else file.path
        return Location(
            self._client.generate_presigned_url(
                "get_object",
                Params={"Bucket": self._bucket, "Key": key},
                ExpiresIn=_LIFETIME_SECONDS,
            )
        )

    def _file(self, entry: Any, start: str) -> RemoteFile:
        etag = entry["ETag"]
        path = entry["Key"].removeprefix(start)
        return RemoteFile(path, entry["Size"], self._checksum(entry["Key"], etag.strip('"')), etag)

    def _checksum(self, key: str, etag: str) -> Checksum | None:
        """What the ETag says of the content: nothing where AWS KMS has encrypted it."""
        is_whole = _MD5.fullmatch(etag) is not None
        if not is_whole and not _PARTS.fullmatch(etag):
            return None
        head = self._client.head_object(Bucket=self._bucket, Key=key, PartNumber=1)
        if head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head:
            return None
        return Checksum("md5" if is_whole else "s3-parts", etag, head["ContentLength"])
