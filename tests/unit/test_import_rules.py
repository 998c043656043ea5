"""Who may import whom, and calls that run foreign code: held on the syntax trees of the whole tree.

`broken_rules` knows the rules; the snippets at the end are planted faults that it must find.
"""

import ast
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]

# Room -> the modules of ours that it may import, itself included.
MAY_IMPORT = {
    "cli": ("cli", "lightning_modules", "datamodules", "callbacks"),
    "callbacks": ("callbacks", "lightning_modules", "datamodules"),
    "lightning_modules": ("lightning_modules", "datamodules.example"),
    "datamodules": ("datamodules",),
}
# Maths over tensors: readable and testable without a trainer or a model class.
BARRED_FROM_OBJECTIVE = ("lightning", "pytorch_lightning", "transformers")
# datamodules must import where these are not installed; inside a function they may be used.
BARRED_FROM_DATA_AT_IMPORT = ("transformers", "deepspeed", "vllm", "wandb", "peft", "textarena")
RUN_FOREIGN_CODE = ("pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal")
NAMELESS_FILES = ("utils.py", "helpers.py", "common.py", "misc.py")

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def is_inside(module: str, packages: tuple[str, ...]) -> bool:
    """Whether `module` is one of `packages` or lies below one."""
    return any(module == package or module.startswith(package + ".") for package in packages)


def walk_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when the module is imported: no function bodies, no type-checking blocks."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTIONS):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield child
        yield from walk_at_import(child)


def imports(nodes: Iterator[ast.AST]) -> Iterator[tuple[int, list[str]]]:
    """Yield each import's line and what it may load: ``from a import b`` reads as a.b, or as a where b is no module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, [alias.name]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, [module, f"{module}.{alias.name}"]) for alias in node.names)


def broken_imports(tree: ast.Module, path: PurePosixPath) -> Iterator[str]:
    room = path.parts[0]
    for line, names in imports(ast.walk(tree)):
        module, longest = names[0], names[-1]
        if module.startswith("."):
            yield f"{path}:{line} imports {module} relatively; write the absolute name"
        if is_inside(module, tuple(MAY_IMPORT)) and not is_inside(module, MAY_IMPORT[room]):
            yield f"{path}:{line} {room} imports {longest}; it may import {', '.join(MAY_IMPORT[room])}"
        if "objective" in path.parts[:-1] and is_inside(module, BARRED_FROM_OBJECTIVE):
            yield f"{path}:{line} the objective imports {longest}; it is pure torch"
        if is_inside(module, RUN_FOREIGN_CODE):
            yield f"{path}:{line} imports {longest}, which can run code from a file"
        if longest == "torch.load":
            yield f"{path}:{line} imports torch.load by name; call torch.load(..., weights_only=True)"
    if room == "datamodules":
        for line, names in imports(walk_at_import(tree)):
            if is_inside(names[0], BARRED_FROM_DATA_AT_IMPORT):
                yield f"{path}:{line} datamodules imports {names[-1]} at module level; do it inside the function"


def broken_calls(tree: ast.Module, path: PurePosixPath) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        true_arguments = {
            keyword.arg
            for keyword in node.keywords
            if isinstance(keyword.value, ast.Constant) and keyword.value.value is True
        }
        if name in ("eval", "exec", "builtins.eval", "builtins.exec"):
            yield f"{path}:{node.lineno} calls {name}"
        if name == "torch.load" and "weights_only" not in true_arguments:
            yield f"{path}:{node.lineno} calls torch.load without weights_only=True"
        if barred := true_arguments & {"trust_remote_code", "allow_pickle"}:
            yield f"{path}:{node.lineno} passes {barred.pop()}=True"


def broken_remote_code(tree: ast.Module, path: PurePosixPath) -> Iterator[str]:
    """Find ``trust_remote_code`` switched on outside a call: a default, an assignment, a dictionary."""
    for node in ast.walk(tree):
        pairs: list[tuple[str, ast.expr | None]] = []
        if isinstance(node, ast.arguments):
            positional = node.posonlyargs + node.args
            with_default = positional[len(positional) - len(node.defaults) :]
            pairs += [(arg.arg, value) for arg, value in zip(with_default, node.defaults, strict=True)]
            pairs += [(arg.arg, value) for arg, value in zip(node.kwonlyargs, node.kw_defaults, strict=True)]
        elif isinstance(node, ast.Assign):
            pairs += [(ast.unparse(target), node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign):
            pairs.append((ast.unparse(node.target), node.value))
        elif isinstance(node, ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
            pairs += [(str(key), value) for key, value in zip(keys, node.values, strict=True)]
        for name, value in pairs:
            if name.endswith("trust_remote_code") and isinstance(value, ast.Constant) and value.value is True:
                yield f"{path}:{value.lineno} sets trust_remote_code to True"


def broken_rules(source: str, path: str) -> list[str]:
    """Return one sentence per rule that `source`, lying at `path` below the root, breaks."""
    relative = PurePosixPath(path)
    tree = ast.parse(source, filename=path)
    broken = [f"{path} is named after nothing; name it after its subject"] if relative.name in NAMELESS_FILES else []
    for check in (broken_imports, broken_calls, broken_remote_code):
        broken += check(tree, relative)
    return broken


def our_files() -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py"))


def test_every_room_is_found():
    assert {path.split("/")[0] for path in our_files()} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", our_files())
def test_the_tree_keeps_the_rules(path):
    assert broken_rules((ROOT / path).read_text(encoding="utf-8"), path) == []


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("datamodules/a.py", "import lightning_modules.views", "may import datamodules"),
        ("datamodules/a.py", "def f():\n    from callbacks import removability", "a.py:2 datamodules imports"),
        ("callbacks/a.py", "from cli.main import main", "callbacks imports cli.main.main"),
        ("callbacks/a.py", "import cli", "callbacks imports cli"),
        ("lightning_modules/a.py", "import callbacks.csv_logger", "lightning_modules imports callbacks.csv_logger"),
        ("lightning_modules/a.py", "from datamodules import example", "may import lightning_modules, d"),
        ("lightning_modules/a.py", "import datamodules", "may import lightning_modules, d"),
        ("lightning_modules/a.py", "import datamodules.examples", "lightning_modules imports datamodules.examples"),
        ("lightning_modules/rollout/a.py", "from datamodules.games import Board", "imports datamodules.games.Board"),
        ("lightning_modules/a.py", "if typing.TYPE_CHECKING:\n    import cli", "imports cli"),
        ("lightning_modules/a.py", "from . import views", "imports . relatively"),
        ("datamodules/a.py", "from .example import Example", "imports .example relatively"),
        ("lightning_modules/objective/a.py", "import lightning.pytorch as L", "objective imports lightning.pytorch"),
        ("lightning_modules/objective/a.py", "def f():\n    from transformers import Cache", "transformers.Cache"),
        ("datamodules/a.py", "import numpy, transformers.utils", "imports transformers.utils at module level"),
        ("datamodules/a.py", "try:\n    import textarena\nexcept ImportError:\n    pass", "textarena at module level"),
        ("datamodules/a.py", "class A:\n    from wandb import Table", "wandb.Table at module level"),
        ("datamodules/a.py", "if True:\n    import vllm", "vllm at module level"),
        ("cli/utils.py", "", "named after nothing"),
        ("datamodules/contexts/helpers.py", "", "named after nothing"),
        ("cli/a.py", "eval('1')", "calls eval"),
        ("cli/a.py", "def f(code):\n    exec(code)", "a.py:2 calls exec"),
        ("cli/a.py", "import pickle", "pickle, which can run code"),
        ("cli/a.py", "def f():\n    from pickle import loads", "pickle.loads, which can run code"),
        ("callbacks/a.py", "torch.load(path)", "without weights_only=True"),
        ("callbacks/a.py", "torch.load(path, weights_only=False)", "without weights_only=True"),
        ("callbacks/a.py", "torch.load(path, weights_only=safe)", "without weights_only=True"),
        ("callbacks/a.py", "from torch import load", "imports torch.load by name"),
        ("callbacks/a.py", "np.load(path, allow_pickle=True)", "passes allow_pickle=True"),
        ("cli/a.py", "AutoModel.from_pretrained(name, trust_remote_code=True)", "passes trust_remote_code=True"),
        ("cli/a.py", "def f(name, trust_remote_code=True): ...", "sets trust_remote_code"),
        ("cli/a.py", "def f(name, *, trust_remote_code: bool = True): ...", "sets trust_remote_code"),
        ("cli/a.py", "class A:\n    trust_remote_code: bool = True", "sets trust_remote_code"),
        ("cli/a.py", "config.trust_remote_code = True", "sets trust_remote_code"),
        ("cli/a.py", "options = {'trust_remote_code': True}", "sets trust_remote_code"),
    ],
)
def test_a_planted_fault_is_found_once(path, source, message):
    broken = broken_rules(source, path)
    assert len(broken) == 1
    assert message in broken[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cli/a.py", "from callbacks.csv_logger import RunCSVLogger\nimport lightning_modules, datamodules.example"),
        ("callbacks/a.py", "from datamodules.example import Example\nfrom lightning_modules.views import render"),
        ("lightning_modules/a.py", "from datamodules.example import Example\nimport datamodules.example, transformers"),
        ("lightning_modules/objective/a.py", "import torch\nfrom lightning_modules.objective.divergences import kl"),
        ("datamodules/a.py", "def f():\n    import textarena\n    from transformers import AutoTokenizer"),
        ("datamodules/a.py", "import lightning.pytorch\nimport clique, transformers_like"),
        ("datamodules/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import textarena"),
        ("callbacks/a.py", "model.eval()\ntorch.load(path, weights_only=True)\nnp.load(path, allow_pickle=False)"),
        ("cli/a.py", "def f(a, *, trust_remote_code: bool = False, other=True): ..."),
    ],
)
def test_what_is_allowed_is_not_reported(path, source):
    assert broken_rules(source, path) == []
