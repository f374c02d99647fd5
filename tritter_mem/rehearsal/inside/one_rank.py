"""One rank of many, alone: the process group is PyTorch's fake one, whatever the script asks for.

Collectives return at once and carry nothing, so that what they would bring is not known.
"""

import os
import sys
from typing import Any

ALONE = "STANDIN_WORLD_SIZE"


def stand_alone(torch: Any) -> None:
    """Let the script's own calls make a fake process group of this rank's size."""
    if not os.environ.get(ALONE):
        return
    import torch.distributed.distributed_c10d as c10d

    rank, size = int(os.environ["STANDIN_RANK"]), int(os.environ[ALONE])
    begin, split = c10d.init_process_group, c10d.new_group

    def init_process_group(backend: Any = None, *args: Any, **kwargs: Any) -> None:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        begin(backend="fake", store=FakeStore(), rank=rank, world_size=size)

    def new_group(ranks: Any = None, *args: Any, **kwargs: Any) -> Any:
        return split(ranks, backend="fake")

    def all_gather_object(object_list: list[Any], obj: Any, group: Any = None) -> None:
        object_list[:] = [obj] * len(object_list)

    def gather_object(obj: Any, object_gather_list: Any = None, *args: Any, **kwargs: Any) -> None:
        if object_gather_list:
            object_gather_list[:] = [obj] * len(object_gather_list)

    def broadcast_object_list(object_list: list[Any], *args: Any, **kwargs: Any) -> None:
        """What this rank has stays."""

    own = (init_process_group, new_group, all_gather_object, gather_object, broadcast_object_list)
    for replaced in own:
        _replace(getattr(c10d, replaced.__name__), replaced)


def _replace(function: Any, by: Any) -> None:
    """In every module of torch.distributed that has it under its name."""
    for name, module in list(sys.modules.items()):
        if name.startswith("torch.distributed") and getattr(module, by.__name__, None) is function:
            setattr(module, by.__name__, by)
