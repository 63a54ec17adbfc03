"""A local S3 server, moto's, and what a bucket of it holds. The programs under test speak the real protocol with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

SECRET = "the-secret-of-the-tests"


@dataclass(frozen=True)
class Bucket:
    """A bucket."""

    name: str
    fs: Any
    """fsspec's file system for it."""

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def put(self, name: str, content: bytes) -> None:
        self.fs.pipe_file(f"{self.name}/{name}", content)

    def get(self, name: str) -> bytes:
        content: bytes = self.fs.cat_file(f"{self.name}/{name}")
        return content

    def names(self, folder: str) -> list[str]:
        """The names in a folder, without the lock, the record and the list."""
        hidden = (".lock", ".infer.json", "results.jsonl")
        listed = self.fs.ls(f"{self.name}/{folder}", detail=False, refresh=True)
        return sorted(name for path in listed if (name := path.rpartition("/")[2]) not in hidden)

    def forbid(self, *actions: str) -> None:
        """Nobody may do these any more, such as s3:PutObject; none allows everything again."""
        policy = {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Deny", "Principal": "*", "Action": action, "Resource": f"arn:aws:s3:::{self.name}/*"}
                for action in actions
            ],
        }
        if actions:
            self.fs.call_s3("put_bucket_policy", Bucket=self.name, Policy=json.dumps(policy))
        else:
            self.fs.call_s3("delete_bucket_policy", Bucket=self.name)


@contextmanager
def s3_server() -> Iterator[Bucket]:
    """A server with a bucket, which everything in this process and its children finds by the usual variables."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.config.conf.clear()
        fsspec.filesystem("s3").clear_instance_cache()
        fs = fsspec.filesystem("s3", use_listings_cache=False)
        fs.mkdir("maps")
        yield Bucket("maps", fs)
        fs.clear_instance_cache()
    server.stop()
