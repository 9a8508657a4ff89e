"""A network rewritten for attacks, which need the gradient of the input and of nothing else.

The graph is traced once; the weights are copied from the live network each time that an attack starts, in bf16, so
that no pass casts them again.  In eval mode each batch norm that follows a convolution is folded into it:
`w' = w * gamma / sqrt(var + eps)`, `b' = beta + (b - mean) * gamma / sqrt(var + eps)`.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from common import winograd
from common.capture import Regions
from common.compiled import Compiled

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Tracer(fx.Tracer):
    """A batch norm is one call whatever class of ours it has."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, NORMS) or super().is_leaf_module(module, name)


def traced(network: nn.Module) -> fx.GraphModule:
    """The network as a graph of calls of its modules."""
    return fx.GraphModule(network, Tracer().trace(network))


def cannot_view(network: nn.Module) -> str | None:
    """Why the network cannot be rewritten (it is then attacked as it is), or None."""
    try:
        traced(network)
    except (fx.proxy.TraceError, TypeError, RuntimeError, NotImplementedError) as error:
        return f"the network cannot be traced ({' '.join(str(error).split())[:120]})"
    return None


class AttackView(nn.Module):
    """x (B,C,H,W) float32 in [0,1] -> logits (B,K) float32, with the live network's weights as of `refresh`.

    In train mode the batch norms are the network's own modules, so their statistics move.
    regions: where a GPU records whole attacks (common.capture); compiled: the graph through torch.compile.
    """

    regions: Regions | None = None
    compiled: Compiled | None = None

    def __init__(self, network: nn.Module, training: bool, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        # Not a submodule: the view must not own the live network's parameters.
        object.__setattr__(self, "live", network)
        twin = copy.deepcopy(network).train(training).requires_grad_(False)
        self.graph = traced(twin)
        self.folded = {} if training else fold_batch_norms(self.graph)
        shared = {}
        if training:
            shared = {name: module for name, module in network.named_modules() if isinstance(module, NORMS)}
            for name, module in shared.items():
                parent, _, leaf = name.rpartition(".")
                setattr(self.graph.get_submodule(parent), leaf, module)
        self.copied = []
        for name, target in self.graph.named_modules():
            if name in shared or not own_tensors(target):
                continue
            # Batch norms keep float32 weights and statistics, as under autocast.
            if not isinstance(target, NORMS):
                is_image = isinstance(target, nn.Conv2d)
                target.to(dtype=dtype, memory_format=torch.channels_last if is_image else torch.preserve_format)
            self.copied.append((name, target))

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the live network's weights and statistics."""
        if self.regions is None:
            self._take_over()
        else:
            self.regions.run("refresh", self._take_over)

    def _take_over(self) -> tuple[()]:
        for name, target in self.copied:
            source = self.live.get_submodule(name)
            if name in self.folded:
                weight, bias = folded_weights(source, self.live.get_submodule(self.folded[name]))
                target.weight.copy_(weight)
                target.bias.copy_(bias)
                continue
            # By name: the traced module holds only what the forward pass reads.
            theirs = own_tensors(source)
            for key, ours in own_tensors(target).items():
                ours.copy_(theirs[key])
        return ()

    def forward(self, x: Tensor) -> Tensor:
        return (self.compiled or self.graph)(x.to(dtype=self.dtype, memory_format=torch.channels_last)).float()


class SearchView(AttackView):
    """The view of a boundary search: eval mode, float32, wide 3x3 convolutions by `common.winograd` on a CPU."""

    def __init__(self, network: nn.Module):
        super().__init__(network, training=False, dtype=torch.float32)
        self.wide = winograd.replace(self.graph)

    @contextmanager
    def held(self) -> Iterator[None]:
        """While it lasts, the wide convolutions have their filters as of `refresh`, four times the weights' memory."""
        try:
            for convolution in self.wide:
                convolution.take()
            yield
        finally:
            for convolution in self.wide:
                convolution.drop()


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the module itself, not of its children, by name."""
    return {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}


def folded_weights(convolution: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what `norm(convolution(x))` does in eval mode."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    bias = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
    bias = bias * scale if norm.bias is None else norm.bias + bias * scale
    return convolution.weight * scale.view(-1, 1, 1, 1), bias


def fold_batch_norms(graph: fx.GraphModule) -> dict[str, str]:
    """Take out each batch norm that alone follows a convolution; return convolution name -> batch norm name."""
    calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    folded = {}
    for node in list(graph.graph.nodes):
        if node.op != "call_module" or not isinstance(graph.get_submodule(node.target), nn.BatchNorm2d):
            continue
        before = node.args[0]
        follows = (isinstance(before, fx.Node) and before.op == "call_module"
                   and isinstance(graph.get_submodule(before.target), nn.Conv2d) and len(before.users) == 1
                   and calls.count(before.target) == 1 and calls.count(node.target) == 1
                   and graph.get_submodule(node.target).running_mean is not None)
        if not follows:
            continue
        convolution = graph.get_submodule(before.target)
        if convolution.bias is None:
            convolution.bias = nn.Parameter(torch.zeros(convolution.out_channels, device=convolution.weight.device),
                                            requires_grad=False)
        folded[before.target] = node.target
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return folded
