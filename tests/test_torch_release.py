"""What PyTorch's releases do differently, as their CUDA builds were seen to do."""

from types import SimpleNamespace

import pytest
import torch

from tritter_mem import torch_release
from tritter_mem.torch_release import CUBLAS_BYTES as SMALL
from tritter_mem.torch_release import CUBLAS_BYTES_WIDE as WIDE
from tritter_mem.torch_release import CUBLASLT_BYTES, Release

CAPABILITIES = ((8, 0), (9, 0), (10, 0), (12, 0))
RECORDED = {
    (2, 11): ((SMALL, WIDE, SMALL, SMALL), CUBLASLT_BYTES, True, 16),
    (2, 12): ((SMALL, WIDE, WIDE, WIDE), 0, True, 16),
    (2, 13): ((SMALL, WIDE, WIDE, WIDE), 0, True, 16),
    (2, 14): ((SMALL, WIDE, WIDE, WIDE), 0, True, 0),
    (2, 15): ((SMALL, WIDE, WIDE, WIDE), CUBLASLT_BYTES, False, 0),
}
"""Of each CUDA build, without a GPU: workspaces by capability, of cuBLASLt, kept, a graph's own."""


@pytest.mark.parametrize("release", RECORDED)
def test_each_release_does_what_its_cuda_build_did(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_release, "release", lambda: release)
    found = (
        tuple(map(torch_release.cublas_workspace_bytes, CAPABILITIES)),
        torch_release.cublaslt_workspace_bytes(),
        torch_release.keeps_workspaces(),
        torch_release.random_state_bytes(),
    )
    assert found == RECORDED[release]


def test_the_release_is_the_installed_one() -> None:
    major, minor, *_ = torch.__version__.split(".")
    assert torch_release.release() == (int(major), int(minor))


@pytest.mark.parametrize(
    ("version", "release"),
    [("2.14.1+cu130", (2, 14)), ("2.16.0a0+gitabc", (2, 16)), ("own", torch_release.LATEST)],
)
def test_releases_are_read_from_their_versions(
    version: str, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch_release, "version_module", lambda: SimpleNamespace(__version__=version)
    )
    assert torch_release.release.__wrapped__() == release


def test_without_pytorch_the_latest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_release, "version_module", lambda: None)
    assert torch_release.release.__wrapped__() == torch_release.LATEST
