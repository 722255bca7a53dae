"""The calls of ReLU and maximum pooling in a traced module, and the module that has modules in place of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import fx, nn

from bridge.prepare.by_mode import by_mode
from bridge.prepare.call_sites import REGISTERS, Site, Trace
from bridge.prepare.qcfs import QCFS
from bridge.prepare.replaceable import average, in_place, pool_call, relu_call


class _Place(NamedTuple):
    """What a call is known by, in two traces: whether it is ReLU, where it is called, what its input is computed by."""

    relu: bool
    site: Site
    sources: frozenset[str]

    def keys(self) -> tuple[Hashable, ...]:
        """The most particular first: code can be there twice, for training and for inference, and be called twice."""
        owner, inside, *_ = self.site
        return (self.relu, self.site), (self.relu, owner, inside), (self.relu, owner, self.sources)


class TracedCalls:
    """The calls to be replaced in one traced `module`, which is not changed before `build`.

    ``made`` holds by name the modules that take their place, ``graphs`` the operations at inference and in training,
    ``constants`` the tensors that forward makes; ``rewired`` is whether modules that work in place are seen to.
    """

    def __init__(
        self,
        module: nn.Module,
        modules: Mapping[nn.Module, nn.Module],
        activation: Callable[[], nn.Module],
        pools: bool,
    ) -> None:
        self.module = module
        self.modules = modules
        self.activation = activation
        self.pools = pools
        self.made: dict[str, nn.Module] = {}
        self.graphs: list[fx.Graph] = []
        self.constants: dict[str, torch.Tensor] = {}
        self.rewired = False
        self._places: list[dict[str, _Place]] = []

    def rewrite(self, trace: Trace) -> None:
        """Put calls of modules in place of calls of functions: first at inference, then in training.

        In training a call gets the module that stands in its place at inference, so that this learns.
        """
        new, places = {}, {}
        for node in _on_data(trace.graph):
            module = self._module_for(node)
            if module is not None:
                new[node] = module
                places[node] = _Place(relu_call(node), trace.sites[node], _sources(node))
        names = _matched(places, self._places[0]) if self._places else {}
        for node, module in new.items():
            if node not in names:
                names[node] = self._free_name(f"{node.name}_replaced")
                self.made[names[node]] = module.train(self.module.training)
        self._places.append({names[node]: place for node, place in places.items()})
        order = {node: number for number, node in enumerate(trace.graph.nodes)}
        for node in order:
            if node in names:
                with trace.graph.inserting_before(node):
                    call = trace.graph.call_module(names[node], (node.all_input_nodes[0],))
                self._rewire(node, call, relu_call(node) and in_place(node, None), order)
                node.replace_all_uses_with(call)
                trace.graph.erase_node(node)
            elif node.op == "call_module" and (old := self.module.get_submodule(str(node.target))) in self.modules:
                self._rewire(node, node, in_place(node, old), order)
        self.graphs.append(trace.graph)

    def at_inference_only(self) -> list[str]:
        """Names of the activations that nothing in training calls."""
        if len(self._places) < 2:
            return []
        return [name for name in self._places[0] if name not in self._places[1] and isinstance(self.made[name], QCFS)]

    def _module_for(self, node: fx.Node) -> nn.Module | None:
        if relu_call(node):
            return self.activation()
        pool = pool_call(node) if self.pools else None
        return None if pool is None else average(pool, node.name)

    def _free_name(self, base: str) -> str:
        name, count = base, 1
        while name in self.made or hasattr(self.module, name):
            name, count = f"{base}_{count}", count + 1
        return name

    def _rewire(self, node: fx.Node, call: fx.Node, changes_input: bool, order: Mapping[fx.Node, int]) -> None:
        """Have `call` read where the input of `node` is, after `node` has changed it."""
        source = node.all_input_nodes[0]
        later = [user for user in source.users if order.get(user, -1) > order[node]]
        if changes_input and later:
            self.rewired = True
            for user in later:
                user.replace_input_with(source, call)

    def gone(self) -> list[nn.Module]:
        """The modules whose methods no longer run; they are there as names of what they held, if at all."""
        if not self._same():
            return [self.module]
        called = {str(n.target) for n in self.graphs[0].nodes if n.op == "call_module"} - self.made.keys()
        stay = {inner for path in called for inner in self.module.get_submodule(path).modules()}
        return [inner for inner in self.module.modules() if inner not in stay]

    def _same(self) -> bool:
        """Whether the operations are the same in training."""
        written = [[f"{n.op} {n.name} {n.target} {n.args} {n.kwargs}" for n in graph.nodes] for graph in self.graphs]
        return all(each == written[0] for each in written)

    def build(self) -> nn.Module:
        """The module to use instead."""
        body = nn.Module()
        vars(body).update(vars(self.module))
        for register in REGISTERS:
            vars(body)[register] = vars(self.module)[register].copy()
        for name, new in self.made.items():
            body.add_module(name, new)
        for name, value in self.constants.items():
            body.register_buffer(name, value)
        traced = [fx.GraphModule(body, graph) for graph in self.graphs]
        if not self._same():
            return by_mode(type(self.module).__name__, body, *traced)
        for name, new in self.made.items():  # last, so that parameters have one order, whatever that of the calls is
            delattr(traced[0], name)
            traced[0].add_submodule(name, new)
        return traced[0].train(self.module.training)


def _on_data(graph: fx.Graph) -> Iterable[fx.Node]:
    """The nodes that depend on the input: a parameter may be clamped too, and that is no activation."""
    data: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or not data.isdisjoint(node.all_input_nodes):
            data.add(node)
            yield node


def _sources(node: fx.Node) -> frozenset[str]:
    """The modules, parameters and inputs that the input of `node` is computed by, the last ones before it."""
    found: set[str] = set()
    waiting, seen = list(node.all_input_nodes), set()
    while waiting:
        source = waiting.pop()
        if source.op in ("call_module", "get_attr", "placeholder"):
            found.add(str(source.target))
        elif source not in seen:
            seen.add(source)
            waiting += source.all_input_nodes
    return frozenset(found)


def _matched(places: Mapping[fx.Node, _Place], known: Mapping[str, _Place]) -> dict[fx.Node, str]:
    """For the nodes that are called in a known place, its name.

    Where several are alike they are taken in order, in the end even if they are more or fewer than those known.
    """
    names: dict[fx.Node, str] = {}
    for kind, as_many in ((0, True), (1, True), (2, True), (1, False)):
        here: defaultdict[Hashable, list[fx.Node]] = defaultdict(list)
        there: defaultdict[Hashable, list[str]] = defaultdict(list)
        for node, place in places.items():
            if node not in names:
                here[place.keys()[kind]].append(node)
        for name, place in known.items():
            if name not in names.values():
                there[place.keys()[kind]].append(name)
        for key, nodes in here.items():
            if len(nodes) == len(there[key]) or not as_many:
                names |= zip(nodes, there[key], strict=False)
    return names
