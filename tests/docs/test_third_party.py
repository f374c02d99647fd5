"""The page on third-party code says what the program does."""

import re
from pathlib import Path

from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models.user_code import ModuleCase
from tritter_mem.simulation.user_module import simulate_module

PAGE = (Path(__file__).parents[2] / "docs" / "third-party.md").read_text()


def test_first_example_runs(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code is not None
    path = tmp_path / "page.py"
    model = (
        "import torch\nfrom torch import nn\n\n"
        "def MyModel(layers):\n"
        "    return nn.Sequential(*(nn.Linear(512, 512) for _ in range(layers)))\n\n"
    )
    path.write_text(model + code[1])
    found = simulate_module(
        ModuleCase(path=str(path), function="build", arguments={"layers": 2}),
        find_gpu("rtx-4090"),
    )
    assert [phase.name for phase in found.phases] == ["load", "forward", "backward", "optimizer"]


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((examples/[^)]+)\)", PAGE)
    assert len(links) == 2
    for link in links:
        assert (Path(__file__).parents[2] / "docs" / link).is_file()
