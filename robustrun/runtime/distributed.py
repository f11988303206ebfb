"""Several processes, one job: torch.distributed started by torchrun or by SLURM's srun.

Every rank sees the same seeds. What is random about a step is drawn for the joined batch on every rank and
sliced (`local`), so that n processes train to the same result as one process on the joined batch.
"""

import atexit
import os
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustrun.errors import JobFailed


@dataclass(frozen=True)
class Distributed:
    """This process among those of the job; alone, every method is the identity and costs nothing."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, tensor: Tensor, source: int = 0) -> Tensor:
        """The tensor of rank `source`, in place."""
        if self.world_size > 1:
            dist.broadcast(tensor, source)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Every rank must call it."""
        return self.agree(flag)[0]

    def agree(self, *flags: bool) -> list[bool]:
        """Each flag, or-ed over the ranks in one exchange between CPUs (no device is waited for)."""
        if self.world_size == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return [bool(vote) for vote in votes.tolist()]

    def on_main(self, action: Callable[[], Any]) -> None:
        """Do it on rank 0 while the others wait; if it fails there, every rank raises the error."""
        failure: list[Exception | None] = [None]
        if self.is_main:
            try:
                action()
            except Exception as error:
                failure[0] = error
        if self.world_size > 1:
            dist.broadcast_object_list(failure, 0, device=torch.device("cpu"))
        if failure[0] is not None:
            raise failure[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.any(False)

    def slice(self, n: int) -> slice:
        """This rank's part of `n` examples: contiguous, sizes differing by one at most."""
        each, rest = divmod(n, self.world_size)
        start = self.rank * each + min(self.rank, rest)
        return slice(start, start + each + (self.rank < rest))

    def local(self, joined: Tensor) -> Tensor:
        """This rank's part of a tensor drawn for the joined batch."""
        return joined[self.slice(len(joined))]

    def prepare(self, model: nn.Module) -> nn.Module:
        """Give every rank rank 0's weights; on GPUs batch statistics are taken over the joined batch.

        Elsewhere each rank normalises by its own (see `share_statistics`).

        The parameters stay the same objects, so an optimizer made before stays valid.
        """
        if self.world_size == 1:
            return model
        tensors = [*model.parameters(), *model.buffers()]
        with torch.no_grad():
            for tensor in tensors:
                dist.broadcast(tensor, 0)
        if tensors and tensors[0].is_cuda:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model

    def share_statistics(self, model: nn.Module) -> None:
        """Give every rank the running batch statistics of rank 0, where they are not taken jointly."""
        if self.world_size == 1 or not isinstance(model, nn.Module):
            return
        for module in model.modules():
            if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
                for buffer in module.buffers():
                    dist.broadcast(buffer, 0)

    def average_gradients(self, parameters: Iterable[nn.Parameter], weight: float) -> None:
        """Replace each gradient by its average over ranks, weighted by the size of the rank's slice.

        One flat exchange for each dtype, so a ragged last batch is averaged exactly. A parameter without a
        gradient counts as zero where another rank has one.
        """
        if self.world_size == 1:
            return
        parameters = [p for p in parameters if p.requires_grad]
        if not parameters:
            return
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        groups: dict[tuple, list[nn.Parameter]] = {}
        for parameter, in_use in zip(parameters, used.tolist(), strict=True):
            if in_use:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                groups.setdefault((parameter.grad.dtype, parameter.grad.device), []).append(parameter)
        for group in groups.values():
            grads = [p.grad for p in group]
            flat = torch.cat([g.reshape(-1) for g in grads] + [grads[0].new_ones(1)])
            # An empty slice has the mean of nothing (NaN) as its gradient: it must not count.
            flat = flat * weight if weight else torch.zeros_like(flat)
            dist.all_reduce(flat)
            flat /= flat[-1].clone()
            for grad, mean in zip(grads, flat[:-1].split([g.numel() for g in grads]), strict=True):
                grad.copy_(mean.view_as(grad))


def start(timeout_minutes: float = 30.0) -> Distributed:
    """Join the processes that torchrun or srun started; alone if neither did.

    The process group lives until the process ends: the jobs of a sweep share it.

    Raises:
        JobFailed: the other processes do not answer.
    """
    place = _torchrun() or _slurm()
    if place is None:
        return Distributed()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
        try:
            dist.init_process_group(
                backend,
                rank=place.rank,
                world_size=place.world_size,
                timeout=timedelta(minutes=timeout_minutes),
            )
        except (RuntimeError, ValueError) as error:
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise JobFailed(
                f"rank {place.rank} of {place.world_size} cannot meet the others at {address}: {error}"
            ) from error
        atexit.register(_finish)
    return place


def _finish() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _torchrun() -> Distributed | None:
    env = os.environ
    if "RANK" not in env or int(env.get("WORLD_SIZE", "1")) <= 1:
        return None
    return Distributed(int(env["RANK"]), int(env.get("LOCAL_RANK", "0")), int(env["WORLD_SIZE"]))


def _slurm() -> Distributed | None:
    # The step's variables, not the job's: a batch script has SLURM_NTASKS too, but is alone.
    env = os.environ
    if "SLURM_PROCID" not in env or int(env.get("SLURM_STEP_NUM_TASKS", "1")) <= 1:
        return None
    if "MASTER_ADDR" not in env:
        env["MASTER_ADDR"] = _first_host()
    if "MASTER_PORT" not in env:
        number = int(env.get("SLURM_JOB_ID", "0")) * 7 + int(env.get("SLURM_STEP_ID", "0"))
        env["MASTER_PORT"] = str(20000 + number % 20000)
    return Distributed(int(env["SLURM_PROCID"]), int(env.get("SLURM_LOCALID", "0")), int(env["SLURM_STEP_NUM_TASKS"]))


def _first_host() -> str:
    env = os.environ
    if env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", "1")) == "1":
        return "127.0.0.1"
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    try:
        answer = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True, timeout=60
        )
        return answer.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise JobFailed(
            f"cannot tell the first host of '{nodes}' (scontrol: {error}): set MASTER_ADDR and MASTER_PORT"
        ) from error
