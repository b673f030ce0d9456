"""The client of the service: timeouts, retries, and its errors as messages that say what to do."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from typing import Any

import requests
from google.api_core import exceptions
from google.auth import exceptions as auth
from google.cloud.storage import Client
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY

from hanflow.errors import UserError

SCHEME = "gs://"

WORKERS = 8
"""Concurrent requests; below the ten connections that a client's session keeps."""

PART = 32 << 20
"""Bytes: larger files are transferred in parts of this size, in parallel."""

RETRY_SECONDS = 300.0
"""How long a request is retried while the service is unreachable or busy."""

RETRY_DELAY = 0.5
"""Seconds before the first retry, about; doubled for each further one."""

TIMEOUT = (15.0, 120.0)
"""Seconds to connect, and between two bytes of a response."""

ATTEMPTS = 4
"""Transfers of a file until it arrives undamaged."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")


def split(uri: str) -> tuple[str, str]:
    """`gs://bucket/a/b/` → ("bucket", "a/b").

    Raises:
        UserError: it has no valid bucket name.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UserError(f"{uri}: names no bucket; write gs://bucket/folder")
    return bucket, key.rstrip("/")


def join(uri: str, name: str) -> str:
    """The URI of something inside a folder."""
    return f"{uri.rstrip('/')}/{name}"


def client() -> Client:
    """This process's client: a forked one must not share connections with its parent."""
    return _client_of(os.getpid())


@functools.cache
def _client_of(_: int) -> Client:
    # No project: buckets are only read and written, never created.
    return Client(project=None)


def retry() -> Any:
    """How a request is retried."""
    return DEFAULT_RETRY.with_timeout(RETRY_SECONDS).with_delay(initial=RETRY_DELAY, maximum=16.0)


def bucket(uri: str) -> Any:
    """The client library's handle of the bucket in a URI; no request is made."""
    return client().bucket(split(uri)[0])


def blob(uri: str) -> Any:
    """The client library's handle of the object at a URI; no request is made."""
    return bucket(uri).blob(split(uri)[1])


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn errors of the service into a UserError that says what to do."""
    name = split(uri)[0]
    try:
        yield
    except auth.DefaultCredentialsError:
        raise UserError(
            f"{uri}: no Google Cloud credentials were found; run `gcloud auth application-default login`, set "
            "GOOGLE_APPLICATION_CREDENTIALS to a key file, or in a cluster bind the pod's service account (Workload Identity)"
        ) from None
    except auth.RefreshError as error:
        raise UserError(
            f"{uri}: the Google Cloud credentials are not accepted ({_reason(error)}); log in again with `gcloud auth "
            "application-default login`, or fix the pod's service account"
        ) from None
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise UserError(
            f"{uri}: no permission ({_reason(error)}); give the account roles/storage.objectUser on gs://{name} "
            "(roles/storage.objectViewer is enough to read)"
        ) from None
    except exceptions.NotFound as error:
        raise UserError(
            f"{uri}: not found ({_reason(error)}); check that the bucket gs://{name} exists and is spelt correctly, and that "
            "no other process removes or replaces what is being read"
        ) from None
    except (
        exceptions.GoogleAPIError,
        auth.GoogleAuthError,
        InvalidResponse,
        DataCorruption,
        requests.RequestException,
    ) as error:
        raise UserError(
            f"{uri}: Google Cloud Storage cannot be used ({_reason(error)}); check network and bucket, then start the "
            "same command again"
        ) from error


def _reason(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    return " ".join((str(cause) or type(cause).__name__).split())[:300]
