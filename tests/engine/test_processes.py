"""What processes tell one another, and how work is shared out."""

import pytest
import torch

from nrt.engine.processes import ALONE, Processes, processes_of
from nrt.errors import InputError
from nrt.rollout import HFSampler, Request
from tests.tiny import PAD, tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("costs", "shares"),
    [
        ([5, 1, 1, 1, 2], [[0], [1, 2, 3, 4]]),  # the costliest alone; the others together as much
        ([3, 3, 3], [[0, 2], [1]]),
        ([7], [[0], []]),
        ([], [[], []]),
    ],
)
def test_work_is_shared_out_by_cost(costs, shares):
    assert Processes(0, 2).share(costs) == shares
    assert ALONE.share(costs) == [list(range(len(costs)))]


def talk():
    with processes_of(CPU) as processes:
        tensors = [torch.full((3,), 1.0 + processes.rank), torch.tensor(2.0, dtype=torch.float64)]
        processes.add(tensors)
        copied = torch.tensor([float(processes.rank + 5)])
        processes.copy_main([copied])
        flags = [processes.any(False), processes.any(processes.rank == 1)]
        found = processes.map(lambda item: (item, processes.rank), ["a", "b", "c"])
        return [processes.main, tensors[0].tolist(), tensors[1].item(), copied.item(), flags, found, processes.gather(processes.rank)]


def test_they_talk(gang):
    expected = [[3.0, 3.0, 3.0], 4.0, 5.0, [False, True], [("a", 0), ("b", 1), ("c", 0)], [0, 1]]
    assert gang(talk) == [[True, *expected], [False, *expected]]


def take_turns(folder):
    with processes_of(CPU) as processes:
        with processes.main_first():
            seen = sorted(path.name for path in folder.iterdir())
            (folder / str(processes.rank)).touch()
        return seen


def test_the_main_one_goes_first(gang, tmp_path):
    assert gang(take_turns, tmp_path) == [[], ["0"]]


def test_without_torchrun_there_is_one():
    with processes_of(CPU) as processes:
        assert processes is ALONE
        assert processes.gather("x") == ["x"]
        assert processes.map(str, [1, 2]) == ["1", "2"]


@pytest.mark.parametrize(("device", "message"), [("mps", "cannot share one mps device; set device=cpu"), ("cuda:1", "set device=cuda,")])
def test_devices_that_several_cannot_have(device, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=message), processes_of(torch.device(device)):
        pass


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(InputError, match=r"2 processes were started, and this node has 1 GPUs; set --nproc_per_node 1"),
        processes_of(torch.device("cuda")),
    ):
        pass


@pytest.mark.parametrize("seed", [7, (1, 2, 3, 4, 5)])
def test_a_prompt_is_sampled_as_it_would_be_among_all(seed):
    """Whoever samples which of them."""
    sampler = HFSampler(tiny_model(), PAD)
    asked = {"prompts": [(3, 4), (5,), (6, 7, 8), (9,), (3, 3)], "n": 3, "stop_ids": frozenset({2}), "cap": 8, "seed": seed}
    whole = sampler.sample(Request(**asked))
    ids = [[sample.ids for sample in group] for group in whole]
    for only in (range(0, 5, 2), range(1, 5, 2), (4, 0)):
        part = sampler.sample(Request(**asked, only=only))
        assert [[sample.ids for sample in group] for group in part] == [ids[b] for b in only]
