"""Every public name says what it is, what it raises, and where an example of it is."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import pytest

import bridge
from bridge import errors, registry
from exporters.base import Backend

DOCS = Path(__file__).parents[2] / "docs"


def names() -> Iterator[tuple[str, object]]:
    """All of ``bridge.__all__`` and of the modules in it, but exceptions: examples are of what raises them."""
    rooms = (value for name in bridge.__all__ if inspect.ismodule(value := getattr(bridge, name)))
    for module in (bridge, *rooms):
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if not (isinstance(value, type) and issubclass(value, Exception)):
                yield f"{module.__name__}.{name}", value


def methods(cls: type) -> dict[str, Callable[..., object]]:
    """The public methods that `cls` brings; those it overrides are described where they come from, such as torch."""
    foreign = [base for base in cls.__mro__ if not base.__module__.startswith(("bridge", "exporters"))]
    own = {name: value for base in reversed(cls.__mro__) if base not in foreign for name, value in vars(base).items()}
    unwrapped = {n: getattr(v, "__func__", v) for n, v in own.items() if not n.startswith("_")}
    return {n: v for n, v in unwrapped.items() if inspect.isfunction(v) and not any(hasattr(f, n) for f in foreign)}


PUBLIC = dict(names())
CLASSES = {name: value for name, value in PUBLIC.items() if isinstance(value, type)}
FUNCTIONS: dict[str, tuple[Callable[..., object], type | None]] = {
    **{name: (value, None) for name, value in PUBLIC.items() if inspect.isfunction(value)},
    **{f"{name}.{key}": (m, cls) for name, cls in CLASSES.items() for key, m in methods(cls).items()},
}
"""Methods, too, each with its class."""
BACKENDS = {point.name: point.load() for point in entry_points(group=registry.GROUP)}


def doc(thing: object) -> str:
    return inspect.cleandoc(getattr(thing, "__doc__", None) or "")


@cache
def source(thing: object) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(thing)))  # type: ignore[arg-type]


def raised(function: Callable[..., object], owner: object, seen: set[str]) -> set[str]:
    """Exceptions that `function` raises itself, or a private helper of its module or of the class `owner` for it."""
    found: set[str] = set()
    for node in ast.walk(source(function)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            found.add(node.exc.func.id)
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "self":
            name, helper = called.attr, getattr(owner, called.attr, None)
        elif isinstance(called, ast.Name):
            name, helper = called.id, function.__globals__.get(called.id)  # type: ignore[attr-defined]
        else:
            continue
        private = name.startswith("_") and not name.startswith("__")
        if private and name not in seen and inspect.isfunction(helper):
            found |= raised(helper, owner, seen | {name})
    return found


def is_meant(name: str) -> bool:
    """Whether an exception of this name is one for the caller: of this package, or Python's for a wrong value."""
    kind = getattr(errors, name, None) or getattr(builtins, name, None)
    return isinstance(kind, type) and issubclass(kind, errors.BridgeError | ValueError | TypeError | AssertionError)


def blocks(text: str) -> list[str]:
    """Python in `text`: fenced blocks, titled ones too, and lines after ``>>>``."""
    fenced = re.findall(r"^```python[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [*fenced, *re.findall(r"^\s*(?:>>>|\.\.\.) (.*)$", text, re.MULTILINE)]


def examples(text: str) -> list[str]:
    """The examples in a docstring, and on the pages in docs/ that it names, which the tests run."""
    pages = [DOCS / page for page in re.findall(r"\bdocs/(\w+\.md)\b", text)]
    return [*blocks(text), *(block for page in pages for block in blocks(page.read_text(encoding="utf-8")))]


def misses(name: str, function: Callable[..., object], owner: type | None, text: str) -> list[str]:
    """What the docstring `text` of `function` lacks."""
    kinds = sorted(kind for kind in raised(function, owner, set()) if is_meant(kind))
    return [f"{name} raises {kind}, and does not say so" for kind in kinds if kind not in text]


@pytest.mark.parametrize("name", PUBLIC)
def test_says_what_it_is(name):
    assert doc(PUBLIC[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_raises_and_has_an_example(name):
    function, owner = FUNCTIONS[name]
    text = doc(function)
    assert text, f"{name} has no docstring"
    assert not misses(name, function, owner, text)
    short = name.rpartition(".")[2]
    found = [*examples(text), *(examples(doc(owner)) if owner else ())]
    assert any(re.search(rf"\b{short}\(", block) for block in found), f"{name}: no example calls {short}(…)"


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_says_what_it_raises_and_has_an_example(name):
    cls = CLASSES[name]
    text = doc(cls)
    for maker in ("__init__", "__post_init__"):
        own = vars(cls).get(maker)
        if inspect.isfunction(own) and own.__code__.co_filename != "<string>":  # as a dataclass makes it
            assert not misses(name, own, cls, f"{text}\n{doc(own)}")
    assert examples(text), f"{name}: no example, and no page in docs/ that has one"


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_says_what_it_raises_and_has_an_example(name):
    cls = BACKENDS[name]
    text = doc(cls)
    assert text
    for method in ("available", "export", "run"):
        function = getattr(cls, method)
        promised = doc(function) or doc(getattr(Backend, method))
        assert not misses(f"{name}.{method}", function, cls, f"{text}\n{promised}")
    wanted = re.compile(rf"\b{cls.__name__}\(|[\"']{re.escape(name)}[\"']")
    assert any(wanted.search(block) for block in examples(text)), f"{name}: no example uses it"


def test_these_tests_can_fail():
    def careless(x):
        """Nothing said, nothing shown; docs/neuron.md has no block."""
        raise ValueError("x")

    module = importlib.import_module(__name__)
    assert isinstance(module, ModuleType)
    assert misses("careless", careless, None, doc(careless)) == ["careless raises ValueError, and does not say so"]
    assert examples(doc(careless)) == []
