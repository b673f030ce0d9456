"""What the client makes of the API server's answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes.client.exceptions import ApiException

from hanflow.cluster.client import (
    Cluster,
    ClusterError,
    Conflict,
    NotFound,
    lines_of,
    refusal,
    retry_after,
    warnings_in,
)
from tests.support.fuzz import cases


def broken_off(*chunks: bytes) -> Iterator[bytes]:
    yield from chunks
    raise ConnectionResetError("reset by peer")


@pytest.mark.fuzz
@settings(max_examples=cases(30, 2000), deadline=None)
@given(st.lists(st.binary(max_size=5).map(lambda line: line.replace(b"\n", b" ")), max_size=6), st.data())
def test_lines_are_whole_however_they_arrive(lines: list[bytes], data: st.DataObject) -> None:
    text, pieces = b"".join(line + b"\n" for line in lines), []
    while text:
        size = data.draw(st.integers(1, len(text)))
        pieces.append(text[:size])
        text = text[size:]
    assert list(lines_of(pieces)) == lines


def test_a_last_line_without_an_end_counts_and_a_broken_connection_is_an_error() -> None:
    assert list(lines_of([b"one\ntw", b"o"])) == [b"one", b"two"]
    read = lines_of(broken_off(b"one\ntw"))
    assert next(read) == b"one"
    with pytest.raises(ClusterError, match="the connection broke: ConnectionResetError"):
        next(read)


@pytest.mark.parametrize(
    ("header", "texts"),
    [
        ("", []),
        ('299 - "spec.x is deprecated"', ["spec.x is deprecated"]),
        ('299 - "one, two", 299 kube "a \\"quoted\\" name"', ["one, two", 'a "quoted" name']),
        ('299 - "a \\\\ and an end"', ["a \\ and an end"]),
        ('110 - "Response is Stale", 299 - "mine" "Wed, 21 Oct 2015 07:28:00 GMT"', ["mine"]),
    ],
)
def test_warnings_of_the_api_server(header: str, texts: list[str]) -> None:
    assert warnings_in({"Warning": header}) == texts


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({}, 0.0), ({"Retry-After": "3"}, 3.0), ({"Retry-After": "86400"}, 30.0), ({"Retry-After": "soon"}, 0.0)],
)
def test_how_long_an_overloaded_server_is_left_alone(headers: Mapping[str, str], seconds: float) -> None:
    assert retry_after(headers) == seconds


@pytest.mark.parametrize(
    ("status", "message", "kind", "hint"),
    [
        (404, "pods x not found", NotFound, ""),
        (409, "already exists", Conflict, ""),
        (403, "pods is forbidden", ClusterError, "the service account lacks a permission: apply manifests/"),
        (403, 'admission webhook "v" denied the request: no', ClusterError, ""),
        (400, 'strict decoding error: unknown field "spec.a"', ClusterError, "update its operator"),
        (422, "spec.x: must be 1", ClusterError, ""),
    ],
)
def test_a_refusal_says_what_to_do(status: int, message: str, kind: type[ClusterError], hint: str) -> None:
    error = ApiException(status=status, reason="Reason")
    error.body = json.dumps({"message": message})
    said = refusal("POST", "/path", error)
    assert type(said) is kind
    text = f"the cluster refuses POST /path ({status}): {message}"
    assert str(said).startswith(text) and str(said).endswith(hint or message)


@pytest.mark.parametrize("body", [None, "", "<html>", "[]", '{"code": 502}'])
def test_a_refusal_that_is_not_the_api_servers(body: str | None) -> None:
    error = ApiException(status=403, reason="Blocked")
    error.body = body
    assert "the cluster refuses GET /path (403): Blocked" in str(refusal("GET", "/path", error))


def test_a_missing_cluster_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match="no Kubernetes cluster.*set KUBECONFIG"):
        Cluster()
