"""Models on the Hub, as a server on this machine answers for it: what is read, what is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.models import header_files, hub_server
from tests.models.hub_server import COMMIT, TOKEN, HubServer, Repository
from tritter_mem.errors import InputError
from tritter_mem.models.gguf import config_keys, read_gguf_model
from tritter_mem.models.hub import HubFiles, HubName, parse_hub_name
from tritter_mem.models.model_files import read_checkpoint, read_model_config

constants: Any = pytest.importorskip("huggingface_hub.constants")

CONFIG = {"model_type": "llama", "auto_map": {"AutoConfig": "configuration_evil.Config"}}
SHARDS = {
    f"model-0000{n}-of-00002.safetensors": header_files.safetensors(
        {f"t{n}": header_files.entry("BF16", [300, 1000], 0, 600_000)}, 600_000
    )
    for n in (1, 2)
}
INDEX = {
    "metadata": {"total_size": 1_200_000},
    "weight_map": {"t1": "model-00001-of-00002.safetensors", "t2": list(SHARDS)[1]},
}
GGUF = header_files.gguf(
    {
        "general.architecture": header_files.string("qwen3"),
        "qwen3.block_count": header_files.u32(28),
    },
    {"a": ("Q4_0", [320, 1000], 180_000)},
)


def encoded(files: dict[str, Any]) -> dict[str, bytes]:
    return {
        name: content if isinstance(content, bytes) else json.dumps(content).encode()
        for name, content in files.items()
    }


MODEL = encoded(
    {
        "config.json": CONFIG,
        "hf_quant_config.json": {"quantization": {"quant_algo": "NVFP4"}},
        "model.safetensors.index.json": INDEX,
        "configuration_evil.py": b"raise SystemExit",
        **SHARDS,
    }
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub that huggingface_hub is set up for, with an empty cache and no token."""
    repositories = {
        "org/name": Repository(dict(MODEL), revisions=("main", "v1/x")),
        "org/quants": Repository({"q4.gguf": GGUF, "sub/q8.gguf": GGUF}),
        "org/gated": Repository(dict(MODEL), gated=True),
        "org/private": Repository(dict(MODEL), private=True),
    }
    with HubServer(repositories) as server:
        hub_server.use(server, monkeypatch, tmp_path)
        yield server


def files(text: str) -> HubFiles:
    name = parse_hub_name(text)
    assert name is not None
    return HubFiles(name)


def cache(name: str, content: dict[str, bytes], absent: tuple[str, ...] = ()) -> Path:
    """Put files into the cache as huggingface_hub does; returns the folder of the commit."""
    place = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    folder = place / "snapshots" / COMMIT
    for file, body in content.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(body)
    for file in absent:
        (place / ".no_exist" / COMMIT).mkdir(parents=True, exist_ok=True)
        (place / ".no_exist" / COMMIT / file).touch()
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(COMMIT)
    return folder


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", HubName("org/name")),
        ("Qwen/Qwen3-8B@main", HubName("Qwen/Qwen3-8B", "main")),
        ("a/b@refs/pr/1", HubName("a/b", "refs/pr/1")),
        ("a/b:c.gguf", HubName("a/b", "main", "c.gguf")),
        ("a/b@v1:sub/c.gguf", HubName("a/b", "v1", "sub/c.gguf")),
        ("7b", None),
        ("./a", None),
        ("/a/b", None),
        ("../b", None),
        ("a/b/c", None),
        ("models/mine.gguf", None),
        ("profiles/7b.yaml", None),
        ("a/b@", None),
        ("a/b:", None),
        ("a/b:../c", None),
        ("a/b@../../c", None),
        ("a/..b", None),
        ("a/b c", None),
        ("a/b\n", None),
        ("https://huggingface.co/a/b", HubName("a/b")),
    ],
)
def test_names_are_those_of_the_hub(text: str, name: HubName | None) -> None:
    assert parse_hub_name(text) == name


def test_configuration_and_headers_are_read_and_nothing_else(hub: HubServer) -> None:
    model = files("org/name")
    found = read_model_config(model)
    assert found.config == CONFIG
    assert found.quantization == {"quantization": {"quant_algo": "NVFP4"}}
    assert model.commit == COMMIT
    checkpoint = read_checkpoint(model)
    assert checkpoint is not None
    assert checkpoint.from_headers
    assert checkpoint.weight_bytes == 1_200_000
    asked = {request.path for request in hub.requests}
    start = f"/org/name/resolve/{COMMIT}"
    assert asked == {
        "/api/models/org/name/revision/main",
        f"{start}/config.json",
        f"{start}/hf_quant_config.json",
        f"{start}/model.safetensors.index.json",
        *(f"{start}/{shard}" for shard in SHARDS),
    }
    ranges = [r.headers["Range"] for r in hub.requests if r.path.endswith(".safetensors")]
    assert ranges == ["bytes=0-131071"] * 2  # of 600,000 bytes of weights each


def test_a_revision_is_asked_for_by_its_name(hub: HubServer) -> None:
    assert read_model_config(files("org/name@v1/x")).config == CONFIG
    assert hub.requests[0].path == "/api/models/org/name/revision/v1%2Fx"


def test_a_gguf_header_is_read_by_range(hub: HubServer) -> None:
    found = read_gguf_model(files("org/quants"), "sub/q8.gguf")
    assert found.weight_bytes == 180_000
    assert config_keys(found)["num_hidden_layers"] == 28
    assert [request.headers["Range"] for request in hub.requests[1:]] == ["bytes=0-131071"]


def test_weights_on_another_server_get_no_token(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer({"c/dn": Repository({"q4.gguf": GGUF})}) as other:
        hub.faults["q4.gguf"] = hub_server.redirect(f"{other.url}/c/dn/resolve/main/q4.gguf")
        assert read_gguf_model(files("org/quants"), "q4.gguf").weight_bytes == 180_000
        assert {r.headers.get("Authorization") for r in hub.requests} == {f"Bearer {TOKEN}"}
        assert [r.headers.get("Authorization") for r in other.requests] == [None]


def test_a_token_opens_what_is_gated_or_private(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert read_model_config(files("org/gated")).config == CONFIG
    assert read_model_config(files("org/private")).config == CONFIG


def read(name: HubName) -> None:
    if name.file:
        read_gguf_model(HubFiles(name), name.file)
    else:
        read_model_config(HubFiles(name))


def refusal(text: str) -> str:
    name = parse_hub_name(text)
    assert name is not None
    with pytest.raises(InputError) as caught:
        read(name)
    assert caught.value.exit_code == 2
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_gated_says_where_to_ask(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = f"org/gated: a gated repository: ask for access at {hub.url}/org/gated, and "
    assert refusal("org/gated") == f"{asked}set HF_TOKEN"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.faults["config.json"] = hub_server.status(403, code="GatedRepo")
    assert refusal("org/gated").startswith(f"{asked}check that HF_TOKEN, or the token of")


def test_missing_or_private_says_both(hub: HubServer) -> None:
    problem = "org/private: no such repository, or a private one: set HF_TOKEN"
    assert refusal("org/private") == problem


@pytest.mark.parametrize(
    ("typed", "meant"), [("org/nmae", "org/name"), ("orgg/quants", "org/quants")]
)
def test_a_mistyped_name_gets_suggestions(hub: HubServer, typed: str, meant: str) -> None:
    assert f"no such repository (did you mean {meant}" in refusal(typed)


def test_a_missing_revision_or_file_is_named(hub: HubServer) -> None:
    assert refusal("org/name@v2") == "org/name: no such revision: v2"
    said = refusal("org/quants:q5.gguf")
    assert said.startswith("org/quants: no such file: q5.gguf; did you mean q4.gguf")
    assert refusal("org/quants").startswith("org/quants: no config.json, but GGUF files; name one")


def test_a_wrong_token_is_named_and_not_shown(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    said = refusal("org/name")
    assert said == "org/name: the Hub does not know the token (HF_TOKEN, or of `hf auth login`)"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (hub_server.status(403), "the Hub refuses access (403): set HF_TOKEN"),
        (hub_server.status(429, Retry_After="7"), "(429): try again in 7 s, or set HF_TOKEN"),
        (hub_server.status(429, Retry_After="soon"), "(429): try again later, or set HF_TOKEN"),
        (hub_server.status(404, code="EntryNotFound"), "no such file: config.json"),
        (hub_server.status(401), "or a private one: set HF_TOKEN"),
        (hub_server.status(404), "or a private one: set HF_TOKEN"),
        (hub_server.status(502), "answered 502, asked for config.json; try again later"),
        (hub_server.half(MODEL["config.json"]), "bytes; try again"),
        (hub_server.endless, "expected at most 16.0 MiB"),
        (lambda handler: handler.send(b"<html>sign in</html>"), "got a web page"),
    ],
)
def test_refusals_and_half_answers_are_named(
    hub: HubServer, fault: hub_server.Fault, message: str
) -> None:
    hub.faults["config.json"] = fault
    assert message in refusal("org/name")


def test_a_proxy_that_answers_for_the_hub_is_named(hub: HubServer) -> None:
    hub.faults["/revision/main"] = lambda handler: handler.send(b"{}")
    assert refusal("org/name") == f"org/name: {hub.url} lists no files; is it a Hub?"


def test_without_a_network_it_says_how_to_go_on(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert refusal("org/name") == (
        "org/name: asked http://127.0.0.1:1 for its list of files, no answer: Connection refused; "
        "without the network, download its config.json and name that folder, or fill the cache "
        "elsewhere and set HF_HUB_OFFLINE=1"
    )


def test_an_endpoint_that_is_no_address_is_named(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "huggingface.co")
    assert "not a web address" in refusal("org/name")


def test_what_the_cache_holds_is_not_asked_for(hub: HubServer) -> None:
    weights = {"model.safetensors": next(iter(SHARDS.values()))}
    absent = ("hf_quant_config.json", "model.safetensors.index.json")
    cache("org/name", {"config.json": MODEL["config.json"], **weights}, absent)
    model = files("org/name")
    assert read_model_config(model).quantization is None
    checkpoint = read_checkpoint(model)
    assert checkpoint is not None
    assert checkpoint.weight_bytes == 600_000
    assert hub.requests == []
    assert model.commit == COMMIT
    assert model.cache_only == ""


def test_what_the_cache_lacks_is_asked_for_at_its_commit(hub: HubServer) -> None:
    cache("org/name", {"config.json": MODEL["config.json"]})
    model = files("org/name")
    assert read_model_config(model).quantization is not None
    assert [request.path for request in hub.requests] == [
        f"/api/models/org/name/revision/{COMMIT}",
        f"/org/name/resolve/{COMMIT}/hf_quant_config.json",
    ]


@pytest.mark.parametrize("offline", [True, False])
def test_the_cache_is_enough_offline_and_without_a_network(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    cached = ("config.json", "model.safetensors.index.json")
    cache("org/name", {name: MODEL[name] for name in cached})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    model = files("org/name")
    assert read_model_config(model).quantization is None
    checkpoint = read_checkpoint(model)
    assert checkpoint is not None
    assert (checkpoint.weight_bytes, checkpoint.from_headers) == (1_200_000, False)
    why = "HF_HUB_OFFLINE is set" if offline else "Connection refused"
    assert model.cache_only == why


def test_offline_with_an_empty_cache_says_so(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = refusal("org/name")
    assert said.startswith("org/name: HF_HUB_OFFLINE is set, and the cache (")
    assert said.endswith("does not hold it at main; download its config.json and name that folder")
    assert hub.requests == []


def test_offline_with_a_cache_of_other_files_says_so(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache("org/name", {"README.md": b""})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = refusal("org/name")
    assert "org/name (the copy in the cache: HF_HUB_OFFLINE is set): no config.json" in said


def test_the_environment_sets_the_endpoint(hub: HubServer, tmp_path: Path) -> None:
    """In a separate process: huggingface_hub reads its variables when it is imported."""
    code = (
        "from tritter_mem.models.hub import *; from tritter_mem.models.model_files import *;"
        "print(read_model_config(HubFiles(HubName('org/private'))).config['model_type'])"
    )
    environment = {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path),
        "HF_TOKEN": TOKEN,
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert (done.stdout, done.stderr) == ("llama\n", "")
    assert hub.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="org/name: the Hub needs huggingface_hub, which is not"):
        HubFiles(HubName("org/name"))
