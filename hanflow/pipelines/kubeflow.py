"""Runs on a Kubeflow Pipelines server: start, follow, end and retry them, through kfp's own client."""

from __future__ import annotations

import contextlib
import io
import json
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hanflow.errors import UserError

FINISHED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
"""Final states of a run."""

PATIENCE_SECONDS = 300.0
"""How long `follow` waits for a server that does not answer."""


@dataclass(frozen=True)
class Step:
    """One step of a run."""

    id: str
    """Unlike names, ids are unique: members of an ensemble share a name."""
    name: str
    state: str
    """PENDING, RUNNING, SUCCEEDED, SKIPPED, FAILED, CANCELING, CANCELED or PAUSED."""
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Run:
    """A run as the server reports it."""

    id: str
    state: str
    """As of a step; empty until the server has scheduled the run."""
    steps: tuple[Step, ...] = ()
    error: str = ""

    @property
    def finished(self) -> bool:
        return self.state in FINISHED


class Server:
    """A Kubeflow Pipelines server.

    Args:
        endpoint: its URL, e.g. `http://localhost:8080` behind a port-forward, or `https://HOST/pipeline`.
        namespace: Kubeflow profile of a multi-user installation; empty: the server has none.
        token_file: file with a bearer token, read anew for every request; empty: none is sent.
        ca_file: certificates to trust, PEM; empty: the system's.

    Raises:
        UserError: a file that cannot be read. By every method: no such run, or the server refuses or does not answer.
    """

    def __init__(self, endpoint: str, namespace: str = "", token_file: str = "", ca_file: str = ""):
        for option, path in (("--token-file", token_file), ("--ca-file", ca_file)):
            if path and not Path(path).is_file():
                raise UserError(f"{option}: {path}: no such file; check the path")
        if token_file and not Path(token_file).read_text(encoding="utf-8").strip():
            raise UserError(f"--token-file: {token_file}: is empty; write the bearer token into it")
        if not endpoint.startswith(("http://", "https://")):
            raise UserError(
                f"--endpoint: {endpoint}: is not a URL; write http://… or https://…, e.g. http://localhost:8080"
            )
        self.endpoint = endpoint.rstrip("/")
        self._namespace = namespace or None
        from kfp import client

        class Client(client.Client):
            def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
                """One request: kfp's own method makes five, even where a token is wrong, and logs tracebacks."""
                return self._healthz_api.healthz_service_get_healthz()

        credentials = client.ServiceAccountTokenVolumeCredentials(path=token_file) if token_file else None
        with self._translated():
            self._client = Client(host=self.endpoint, credentials=credentials, ssl_ca_cert=ca_file or None)

    def submit(
        self,
        package: Path,
        arguments: Mapping[str, Any],
        *,
        name: str,
        group: str,
        root: str = "",
        service_account: str = "",
    ) -> str:
        """Start a run; returns its id.

        Args:
            package: the compiled pipeline.
            arguments: parameter → value.
            name: of the run, for people.
            group: Kubeflow's "experiment" that lists the run; created if there is none of that name.
            root: URI below which artifacts are written; empty: the server's own.
            service_account: of the steps' pods; empty: the server's own.
        """
        with self._translated():
            made = self._client.create_run_from_pipeline_package(
                str(package),
                arguments=dict(arguments),
                run_name=name,
                experiment_name=group,
                namespace=self._namespace,
                pipeline_root=root or None,
                service_account=service_account or None,
            )
            return self._checked(made.run_id)

    def get(self, run: str) -> Run:
        """The run as it is now."""
        with self._translated(run):
            found = self._client.get_run(run)
            self._checked(found.run_id)
            return _run(found)

    def terminate(self, run: str) -> None:
        """Request the end of a run."""
        with self._translated(run):
            self._client.terminate_run(run)

    def retry(self, run: str) -> None:
        """Continue a failed run from the steps that failed; finished steps are kept."""
        with self._translated(run):
            self._client._run_api.run_service_retry_run(run)

    def link(self, run: str) -> str:
        """The run's page, for a browser."""
        return f"{self.endpoint}/#/runs/details/{run}"

    def follow(self, run: str, every: float, report: Callable[[str], None]) -> Iterator[Run]:
        """The run every few seconds until it has finished; the last one is final.

        Args:
            run: its id.
            every: seconds between two requests.
            report: takes a line when the server stops answering and when it answers again.

        Raises:
            UserError: there is no such run, or the server did not answer for PATIENCE_SECONDS.
        """
        seen = self.get(run)
        answered, silent = time.monotonic(), False
        yield seen
        while not seen.finished:
            time.sleep(every)
            try:
                seen = self.get(run)
            except Unanswered as error:
                if time.monotonic() - answered > PATIENCE_SECONDS:
                    raise
                if not silent:
                    report(f"{error}; trying again every {every:g} s")
                silent = True
                continue
            if silent:
                report("the server answers again")
            answered, silent = time.monotonic(), False
            yield seen

    @contextlib.contextmanager
    def _translated(self, run: str = "") -> Iterator[None]:
        """Turn errors of kfp's client into UserErrors; its output is dropped."""
        import urllib3
        from kfp_server_api import ApiException

        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except ApiException as error:
            raise self._error_of(error, run) from None
        except (urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
            raise Unanswered(
                f"{self.endpoint}: does not answer ({_reason(error)}); check the URL, and that the port-forward runs: "
                "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
            ) from None
        except UserError:
            raise
        except (AttributeError, TypeError, ValueError) as error:
            raise self._not_kubeflow(_reason(error)) from None

    def _checked(self, run: str | None) -> str:
        """The id of a run in a response; of an HTML page kfp's client makes an object without one."""
        if not run:
            raise self._not_kubeflow("no run in the response")
        return run

    def _not_kubeflow(self, reason: str) -> UserError:
        return UserError(
            f"{self.endpoint}: does not respond as Kubeflow Pipelines does ({reason}); is it a login page? Give the URL of the "
            "API (with /pipeline on a full Kubeflow) and --token-file"
        )

    def _error_of(self, error: Any, run: str) -> UserError:
        status, detail = int(error.status or 0), _detail(error)
        if status in (401, 403):
            return Refused(
                f"{self.endpoint}: access refused ({status} {error.reason}{detail}); give a token with the right to do this with --token-file, "
                "and on a multi-user Kubeflow your profile with --namespace"
            )
        if status == 404 and run:
            return UserError(f"{run}: no such run on {self.endpoint}{detail}; take the id from the run's page")
        if status in (0, 429) or status >= 500:
            return Unanswered(f"{self.endpoint}: the server failed ({status} {str(error.reason).strip()}{detail})")
        return UserError(f"{self.endpoint}: the request was refused ({status} {error.reason}{detail})")


class Unanswered(UserError):
    """The server did not answer, or is not able to at the moment."""


class Refused(Unanswered):
    """The server does not accept the credentials; while a run is followed the token file may be renewed."""


def _detail(error: Any) -> str:
    """The message in the body of an error response, on one line, as ": …"; empty without one."""
    try:
        body = json.loads(error.body or "")
    except ValueError:
        return ""
    message = body.get("message") or body.get("error") or "" if isinstance(body, dict) else ""
    return f": {' '.join(str(message).split())}" if message else ""


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None)  # urllib3 wraps the cause
    text = " ".join(str(inner or error).split())
    return text.rsplit(">: ", 1)[-1].rsplit("object at", 1)[-1].rsplit(": ", 1)[-1] or type(error).__name__


def _run(found: Any) -> Run:
    details = found.run_details.task_details if found.run_details else None
    steps = [
        Step(
            task.task_id or task.display_name,
            task.display_name,
            task.state or "PENDING",
            (task.end_time - task.start_time).total_seconds() if task.end_time and task.start_time else 0.0,
            _message(task.error),
        )
        for task in sorted(details or (), key=lambda task: str(task.create_time or ""))
        if not NOT_A_STEP.fullmatch(task.display_name or "")
    ]
    return Run(found.run_id, found.state or "", tuple(steps), _message(found.error))


NOT_A_STEP = re.compile(
    r"|root|executor(\(\d+\))?|.*-driver(\(\d+\))?|(exit-handler|condition|condition-branches|for-loop)-\d+"
)
"""Tasks that are not steps: the server also lists groups, drivers and containers."""


def _message(error: Any) -> str:
    return " ".join((error.message or "").split()) if error else ""
