"""A traced model that runs other operations in training than at inference."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from typing import Any

from torch import fx, nn

SOURCE = """\
def forward(self, {arguments}):
    if self.training:
        return self.forward_in_training({arguments})
    return self.forward_at_inference({arguments})
"""


class ByMode(nn.Module):
    """Runs one graph in ``train()`` and another in ``eval()``, over the same modules, parameters and buffers.

    Made by `by_mode`, each of a class of its own, since the forward has the arguments of the model that was traced.
    """

    def __init__(self, body: nn.Module, at_inference: fx.Graph, in_training: fx.Graph) -> None:
        super().__init__()
        vars(self).update(vars(body))
        self.at_inference, self.in_training = at_inference, in_training

    def __reduce__(self) -> tuple[Any, ...]:
        # A graph is copied and pickled as part of a GraphModule. What the two share stays shared.
        body = nn.Module()
        vars(body).update({k: v for k, v in vars(self).items() if k not in ("at_inference", "in_training")})
        graphs = fx.GraphModule(self, self.at_inference), fx.GraphModule(self, self.in_training)
        return by_mode, (type(self).__name__, body, *graphs)


def by_mode(name: str, body: nn.Module, at_inference: fx.GraphModule, in_training: fx.GraphModule) -> ByMode:
    """What `body` holds, run by the graph of the one or the other; `name` is that of the class."""
    arguments = ", ".join(str(n.target) for n in at_inference.graph.nodes if n.op == "placeholder")
    methods = {
        "forward": _compiled(SOURCE.format(arguments=arguments)),
        "forward_in_training": type(in_training).forward,
        "forward_at_inference": type(at_inference).forward,
    }
    for method, function in methods.items():
        function.__name__ = method  # by which torch.jit.script tells them apart
    kind: type[ByMode] = type(name, (ByMode,), {"__module__": __name__, "__doc__": ByMode.__doc__, **methods})
    return kind(body, at_inference.graph, in_training.graph)


def _compiled(source: str) -> Callable[..., Any]:
    """The function `forward` of this source, which torch.jit.script finds under the file's name."""
    file = f"<bridge.prepare.by_mode {source.partition(':')[0]}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names: dict[str, Any] = {}
    exec(compile(source, file, "exec"), names)
    forward: Callable[..., Any] = names["forward"]
    return forward
