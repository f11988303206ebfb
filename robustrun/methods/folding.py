"""Batch normalisation folded into the convolutions before it: the same function in evaluation mode, in fewer passes."""

import copy

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
PIXELS = 16 * 32 * 32  # in a pass, for each thread of a CPU: what lies between two layers then stays in its cache


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy of a network for inference, its convolutions scaled by the running statistics that follow them.

    Differs from `model` in evaluation mode by rounding alone. A network that torch.fx cannot trace (its control flow
    depends on values) comes back as it is, in evaluation mode.
    """
    model = model.eval()
    try:
        traced = fx.symbolic_trace(copy.deepcopy(model))
    except Exception:  # what tracing raises depends on what the network does
        return model
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        norm = modules.get(node.target) if node.op == "call_module" else None
        before = node.args[0] if isinstance(norm, _NORMS) and len(node.args) == 1 else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution = modules[before.target]
        used = sum(other.target == before.target for other in traced.graph.nodes)
        if not isinstance(convolution, _CONVOLUTIONS) or norm.running_mean is None or used > 1:
            continue
        folded = fuse_conv_bn_eval(convolution, norm)
        _replace(traced, before.target, folded)
        modules[before.target] = folded
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval().requires_grad_(False)


def _replace(root: nn.Module, target: str, module: nn.Module) -> None:
    parent, _, name = target.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


class InferenceCopy(nn.Module):
    """A network for many passes over images: folded, channels_last, in the arithmetic `dtype`.

    On a CPU a large batch goes through it in parts of `PIXELS` pixels a thread: more would leave the cache, and ask the
    system for fresh memory in every layer.

    In bfloat16 a network that torch.fx can trace has its weights converted once, but for normalisation that is left;
    any other runs under autocast. Takes float32 and answers in whatever type the network ends with.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.network, self.dtype = fold_batch_norm(model), dtype
        traced = self.network is not model
        if traced:
            self.network.to(memory_format=torch.channels_last)
        single = all(p.dtype == torch.float32 for p in self.network.parameters())
        self.converted = traced and single and dtype == torch.bfloat16
        if self.converted:
            self.network.to(dtype)
            for module in self.network.modules():
                if isinstance(module, _NORMS):
                    module.float()

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            if inputs.device.type == "cpu":
                several = max(1, PIXELS * torch.get_num_threads() // inputs.shape[2:].numel())
                return torch.cat([self._pass(part) for part in inputs.split(several)])
        return self._pass(inputs)

    def _pass(self, inputs: Tensor) -> Tensor:
        if self.converted:
            return self.network(inputs.to(self.dtype))
        with torch.autocast(inputs.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            return self.network(inputs)
