"""References of the container images; every pipeline, job and manifest takes repository and tag from here.

Committed pipelines and manifests carry the release's tag, `0.2.0`, so that they stay the same from one commit to the
next. Pipelines and images that are compiled, submitted or built carry the tag of its content (`hanflow.version.image_tag`), so that no node
takes an older image for it, nor Kubeflow an older result. `--image-repository` and `--image-tag` name images pushed
elsewhere (`add_options`, `from_options`). A step that creates jobs gets the same images from `images_of_this_step`.
"""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass

from hanflow.errors import UserError
from hanflow.version import __version__, image_tag

REPOSITORY = "ghcr.io/hanflow"
TAG = __version__
"""The release's."""

REPOSITORY_VARIABLE = "HANFLOW_IMAGE_REPOSITORY"
TAG_VARIABLE = "HANFLOW_IMAGE_TAG"
"""A pipeline sets both variables in the train step's environment."""

# The grammar of https://github.com/distribution/reference, with the host in lower case.
_PATH_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]+)?"
_REPOSITORY = re.compile(rf"(?:{_HOST}/)?{_PATH_PART}(?:/{_PATH_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class Images:
    """Where the images are: `<repository>/hanflow-{cpu,gpu,tpu,demo}:<tag>`.

    Raises:
        UserError: a repository or tag that no registry accepts.
    """

    repository: str = REPOSITORY
    """Registry and folder, e.g. `europe-docker.pkg.dev/my-project/hanflow`."""
    tag: str = TAG

    def __post_init__(self) -> None:
        if not _REPOSITORY.fullmatch(self.repository):
            raise UserError(
                f"image repository {self.repository!r}: expected a registry and a path in lower case without a tag, "
                "e.g. europe-docker.pkg.dev/my-project/hanflow"
            )
        if not _TAG.fullmatch(self.tag):
            raise UserError(
                f"image tag {self.tag!r}: expected at most 128 letters, digits, '_', '.' and '-', not beginning with '.' or '-'"
            )

    @property
    def cpu(self) -> str:
        """Image of all KFP steps, and of the workers of jobs without GPUs."""
        return self._of("cpu")

    @property
    def gpu(self) -> str:
        """Image of the workers of jobs with GPUs."""
        return self._of("gpu")

    @property
    def tpu(self) -> str:
        """Image of the workers of jobs on TPU slices."""
        return self._of("tpu")

    @property
    def demo(self) -> str:
        """Image of the page of `hanflow demo`: the cpu image and Streamlit."""
        return self._of("demo")

    def _of(self, kind: str) -> str:
        return f"{self.repository}/hanflow-{kind}:{self.tag}"


DEFAULT = Images()
CPU = DEFAULT.cpu


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--image-repository` and `--image-tag` to a command."""
    group = parser.add_argument_group("images")
    group.add_argument(
        "--image-repository",
        default=REPOSITORY,
        metavar="NAME",
        help="registry and folder of hanflow's images (default: %(default)s)",
    )
    group.add_argument(
        "--image-tag",
        metavar="TAG",
        help=f"their tag (default: {TAG} and a digest of hanflow's files and constraints.txt, as `make images` sets it)",
    )


def from_options(options: argparse.Namespace, *, tag: str = "") -> Images:
    """The images that the options of `add_options` name; `tag` is the default tag, empty: that of hanflow's content."""
    return Images(options.image_repository, options.image_tag or tag or image_tag())


def images_of_this_step() -> Images:
    """The images that its pipeline passed to the running step, else the default ones."""
    return Images(os.environ.get(REPOSITORY_VARIABLE) or REPOSITORY, os.environ.get(TAG_VARIABLE) or TAG)
