"""Process group: collectives, partition of work, devices."""

import pickle
from contextlib import suppress
from functools import partial

import pytest
import torch

from nrt.distributed import SINGLE_PROCESS, ProcessGroup, process_group
from nrt.errors import InputError, Interrupted
from nrt.rollout import HFSampler, Request
from nrt.types import TokenScores
from tests.tiny import PAD, tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("costs", "shares"),
    [
        # the costliest item for one process; the others cost as much together
        ([5, 1, 1, 1, 2], [[0], [1, 2, 3, 4]]),
        ([3, 3, 3], [[0, 2], [1]]),
        ([7], [[0], []]),
        ([], [[], []]),
    ],
)
def test_partition_balances_costs(costs, shares):
    assert ProcessGroup(0, 2).partition(costs) == shares
    assert SINGLE_PROCESS.partition(costs) == [list(range(len(costs)))]


def use_collectives():
    with process_group(CPU) as processes:
        tensors = [torch.full((3,), 1.0 + processes.rank), torch.tensor(2.0, dtype=torch.float64)]
        processes.all_reduce(tensors)
        from_main = torch.tensor([float(processes.rank + 5)])
        processes.broadcast([from_main])
        return [
            processes.is_main,
            tensors[0].tolist(),
            tensors[1].item(),
            from_main.item(),
            [processes.any(False), processes.any(processes.rank == 1)],
            processes.map(lambda item: (item, processes.rank), ["a", "b", "c"]),
            processes.all_gather(processes.rank),
        ]


def test_collectives(gang):
    expected = [[3.0, 3.0, 3.0], 4.0, 5.0, [False, True], [("a", 0), ("b", 1), ("c", 0)], [0, 1]]
    assert gang(use_collectives) == [[True, *expected], [False, *expected]]


def list_and_touch(folder):
    with process_group(CPU) as processes:
        with processes.main_process_first():
            names = sorted(path.name for path in folder.iterdir())
            (folder / str(processes.rank)).touch()
        return names


def test_the_main_process_runs_first(gang, tmp_path):
    assert gang(list_and_touch, tmp_path) == [[], ["0"]]


def test_without_torchrun_there_is_one_process():
    with process_group(CPU) as processes:
        assert (processes.rank, processes.size) == (0, 1)
        assert processes.all_gather("x") == ["x"]
        assert processes.map(str, [1, 2]) == ["1", "2"]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("mps", "cannot share one mps device; set device=cpu"),
        ("cuda:1", "set device=cuda to give each"),
    ],
)
def test_devices_that_processes_cannot_share(device, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=message), process_group(torch.device(device)):
        pass


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(InputError, match="and this node has 1 GPUs; set --nproc_per_node 1"),
        process_group(torch.device("cuda")),
    ):
        pass


@pytest.mark.parametrize("seed", [7, (1, 2, 3, 4, 5)])
def test_samples_of_a_prompt_do_not_depend_on_the_share(seed):
    """A prompt gets the same samples, whatever other prompts its process samples for."""
    sampler = HFSampler(tiny_model(), PAD)
    settings = {
        "prompts": [(3, 4), (5,), (6, 7, 8), (9,), (3, 3)],
        "n": 3,
        "stop_ids": frozenset({2}),
        "cap": 8,
        "seed": seed,
    }
    all_groups = sampler.sample(Request(**settings))
    ids = [[sample.ids for sample in group] for group in all_groups]
    for only in (range(0, 5, 2), range(1, 5, 2), (4, 0)):
        groups = sampler.sample(Request(**settings, only=only))
        assert [[sample.ids for sample in group] for group in groups] == [ids[b] for b in only]


def test_a_single_process_closes_what_it_opened_also_after_an_error():
    """In a notebook, the next run needs the memory of this one's sampler."""
    closed = []
    with suppress(InputError), process_group(CPU) as processes:
        processes.at_end(lambda: closed.append("sampler"))
        raise InputError("wrong")
    assert closed == ["sampler"]


class RecordedCalls:
    """Stands in for torch.distributed, whose NCCL needs GPUs."""

    def __init__(self, monkeypatch):
        self.names = []
        for name in ("init_process_group", "new_group", "destroy_process_group"):
            monkeypatch.setattr(torch.distributed, name, partial(self.call, name))
        monkeypatch.setattr(torch.distributed, "is_initialized", self.is_initialized)
        monkeypatch.setattr("nrt.distributed.rank_and_world_size", lambda: (0, 2))

    def call(self, name, *_, **__):
        assert name == "init_process_group" or self.is_initialized()
        self.names.append(name)

    def is_initialized(self):
        return "init_process_group" in self.names and "destroy_process_group" not in self.names


@pytest.mark.parametrize("error", [None, InputError("wrong"), Interrupted("stopped")])
def test_one_of_several_processes_does_not_wait_for_the_others_after_an_error(monkeypatch, error):
    """Destroying an NCCL group waits for all of its processes, and they wait for this one. A signal
    interrupts all of them together.
    """
    calls = RecordedCalls(monkeypatch)
    with suppress(InputError, Interrupted), process_group(CPU) as processes:
        processes.at_end(lambda: calls.names.append("close"))
        if error:
            raise error
    begun = ["init_process_group", "new_group"]
    ended = [] if isinstance(error, InputError) else ["close", "destroy_process_group"]
    assert calls.names == begun + ended


def test_groups_that_the_sampler_destroyed_are_not_destroyed_again(monkeypatch):
    """As vLLM does when it stops under torchrun."""
    calls = RecordedCalls(monkeypatch)
    with process_group(CPU) as processes:
        processes.at_end(torch.distributed.destroy_process_group)
    assert calls.names == ["init_process_group", "new_group", "destroy_process_group"]


def test_a_row_of_scores_is_sent_without_the_others():
    """Pickling a view writes its whole storage."""
    scores = TokenScores(torch.zeros(10_000), torch.zeros(10_000), (10,) * 1_000)
    assert len(pickle.dumps(scores.rows()[3])) < 2_000
