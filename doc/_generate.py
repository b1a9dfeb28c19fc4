"""The tables of the reference pages, made from the source.

The source is read; only the table of options is imported, which needs neither ROS nor torch.
"""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import yaml

from cosmos_policy_ros.nodes.options import ARGUMENTS, AUTOSTART, NODES

KINDS = {"msg": "topic", "srv": "service", "action": "action"}
PLAIN_TYPES = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
# What a line of the SROS2 policy allows, and how that is called here.
USES = {
    "publish": "publishes",
    "subscribe": "subscribes to",
    "reply": "serves",
    "request": "calls",
    "execute": "serves",
    "call": "calls",
}


class Generator:
    """Reads the package's source once, and makes tables of it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        package = root / "cosmos_policy_ros"
        self._modules = {
            ".".join(path.relative_to(root).with_suffix("").parts): ast.parse(path.read_text())
            for path in sorted(package.rglob("*.py"))
        }

    def make(self, kind: str, *names: str) -> str:
        """Return the MyST text of one kind of table, such as ``parameters policy_node``."""
        return "\n".join(getattr(self, f"_{kind}")(*names))

    # ------------------------------------------------------------ looking things up

    def _find(self, module: str, name: str) -> tuple[str, ast.AST] | None:
        """Return where ``name`` as ``module`` knows it is defined: a class, or a value."""
        for node in self._modules[module].body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return module, node
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=True))
                for known, value in pairs:
                    if ast.unparse(known) == name:
                        return module, value
            if isinstance(node, ast.ImportFrom) and node.module in self._modules:
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self._find(node.module, alias.name)
        return None

    def _class(self, name: str, field: str = "") -> tuple[str, ast.ClassDef]:
        """Return the one class of that name (with such a field) in the package, and its module."""
        (found,) = (
            (module, node)
            for module, tree in self._modules.items()
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name == name
            if not field or field in [ast.unparse(each.target) for each in _fields(node)]
        )
        return found

    def _value(self, module: str, node: ast.AST) -> str:
        """Return a default as a config file has it."""
        if isinstance(node, ast.Name) and (found := self._find(module, node.id)):
            return self._value(*found)
        if isinstance(node, ast.Tuple):
            return f"[{', '.join(self._value(module, each) for each in node.elts)}]"
        try:
            value = ast.literal_eval(node)
        except ValueError:  # arithmetic, such as 2**32 - 1
            return ast.unparse(node).replace(" ", "")
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
        return text.split("\n")[0].replace("''", '""')

    # ------------------------------------------------------------ commands

    def _commands(self) -> Iterator[str]:
        """Yield the subcommands of ``cosmos`` by group."""
        module = "cosmos_policy_ros.cli.cosmos"
        found = self._find(module, "COMMANDS")
        assert found is not None
        groups: dict[str, dict[str, str]] = ast.literal_eval(found[1])
        for group, commands in groups.items():
            yield f"\n**{group[:1].upper()}{group[1:]}**\n"
            yield from _header("command", "")
            for name, text in commands.items():
                yield _row(f"`cosmos {name}`", text)

    # ------------------------------------------------------------ nodes

    def _parameters(self, node: str) -> Iterator[str]:
        """Yield the table of a node's parameters."""
        yield from _header("parameter", "default", "range", "")
        managed = [] if node == "sim_rig_node" else [AUTOSTART]
        for option in [*NODES[node], *managed]:
            bounds = [] if option.low is None else [option.low, option.high]
            yield _row(
                f"`{option.name}`",
                f"`{option.text}`",
                " to ".join(f"{each:.12g}" for each in bounds),
                _prose(option.description),
            )

    def _of_node(self, node: str) -> Iterator[tuple[str, ast.Module]]:
        """Yield the modules that make up a node: their names begin with its own."""
        begin = node.removesuffix("_node")
        for module, tree in self._modules.items():
            if ".nodes." in module and module.rpartition(".")[2].startswith(begin):
                yield module, tree

    def _own(self, node: str) -> Iterator[str]:
        """Yield the table of a node's own topics, services and actions, with their types."""
        yield from _header("name", "kind", "type", "")
        found = set()
        for module, tree in self._of_node(node):
            for call in (each for each in ast.walk(tree) if isinstance(each, ast.Call)):
                for interface, name in zip(call.args, call.args[1:], strict=False):
                    if isinstance(interface, ast.Name) and (text := _own_name(name)):
                        full = self._type(module, interface.id)
                        found.add((KINDS[full.split("/")[1]], text, full))
        for kind, name, full in sorted(found):
            package, _, short = full.rpartition("/")
            own = package.startswith("cosmos_policy_ros/")
            link = f"[{short}](messages.md#{short.lower()})" if own else f"`{full}`"
            said = self._said(*full.split("/")[1:]) if own else ""
            yield _row(f"`{name}`", kind, link, _prose(said))

    def _type(self, module: str, name: str) -> str:
        """Return ``package/msg/Type`` of an imported interface."""
        for node in ast.walk(self._modules[module]):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return f"{node.module.replace('.', '/')}/{alias.name}"
        return name

    def _said(self, folder: str, name: str) -> str:
        """Return what an interface file says of itself at its beginning."""
        lines = (self._root / folder / f"{name}.{folder}").read_text().splitlines()
        comment = []
        for line in lines:
            if not line.startswith("#"):
                break
            comment.append(line.lstrip("# "))
        return " ".join(comment)

    def _uses(self, node: str) -> Iterator[str]:
        """Yield the table of what a node uses of others, from the SROS2 policy."""
        yield from _header("", "name")
        root = ET.parse(self._root / "config/sros2/policy.xml").getroot()  # noqa: S314 - our own
        lines = set()
        for rules in root.iterfind(f".//profile[@node='{node}']/*"):
            for use, verdict in rules.items():
                for rule in rules:
                    if verdict == "ALLOW" and not (rule.text or "~").startswith("~/*"):
                        lines.add((list(USES).index(use), USES[use], rule.text))
        for _, use, name in sorted(lines):
            if not name.startswith("~"):
                yield _row(use, f"`{name}`")

    def _launch(self) -> Iterator[str]:
        """Yield the table of the launch file's arguments."""
        yield from _header("argument", "default", "")
        tree = ast.parse((self._root / "launch/aloha.launch.py").read_text())
        (defaults,) = (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DEFAULTS"
        )
        for name, option in ARGUMENTS.items():
            default = defaults.get(name, option.text)
            yield _row(f"`{name}`", f"`{default}`", _prose(option.description))
        for call in _calls(tree, "DeclareLaunchArgument"):
            given = {word.arg: word.value for word in call.keywords}
            if isinstance(call.args[0], ast.Constant):
                default = ast.literal_eval(given["default_value"]) or '""'
                text = ast.literal_eval(given["description"])
                yield _row(f"`{call.args[0].value}`", f"`{default}`", _prose(text))

    # ------------------------------------------------------------ messages

    def _messages(self, folder: str) -> Iterator[str]:
        """Yield the files of ``msg``, ``srv`` or ``action``."""
        for path in sorted((self._root / folder).glob(f"*.{folder}")):
            yield f"### {path.stem}\n"
            yield f"```\n{path.read_text().strip()}\n```\n"

    # ------------------------------------------------------------ config files

    def _shipped(self, folder: str) -> Iterator[str]:
        """Yield the table of the files of a folder of ``config``, and what each says of itself."""
        yield from _header("name", "")
        base = self._root / "config" / folder
        for path in sorted([*base.glob("*.yaml"), *base.glob("*/config.yaml")]):
            text = path.read_text()
            said = yaml.safe_load(text).get("description")
            first = re.match(r"(#.*\n)*", text)[0]
            comment = " ".join(line.lstrip("# ") for line in first.splitlines())
            name = path.stem if path.parent == base else path.parent.name
            yield _row(f"`{name}`", _prose(said or comment))

    def _config(self, name: str, field: str = "") -> Iterator[str]:
        """Yield a table for each block of the config file that class ``name`` describes."""
        blocks: dict[str, tuple[list[str], str, ast.ClassDef]] = {}
        self._collect("", *self._class(name, field), blocks)
        for places, module, block in blocks.values():
            if places != [""]:
                yield f"\n**{', '.join(f'`{place}`' for place in places)}**\n"
                yield _prose(_summary(block)) + "\n"
            yield from self._block(places[0], module, block)

    def _collect(self, place: str, module: str, block: ast.ClassDef, blocks: dict) -> None:
        """Gather the blocks of a config in reading order, each with its places."""
        blocks.setdefault(f"{module}.{block.name}", ([], module, block))[0].append(place)
        for field in _fields(block):
            inner = f"{place}.{ast.unparse(field.target)}".lstrip(".")
            for name in (n for n in ast.walk(field.annotation) if isinstance(n, ast.Name)):
                found = self._find(module, name.id)
                if found and isinstance(found[1], ast.ClassDef):
                    many = "[]" if "tuple" in ast.unparse(field.annotation) else ""
                    self._collect(inner + many, *found, blocks)

    def _block(self, place: str, module: str, block: ast.ClassDef) -> Iterator[str]:
        """Yield the table of one block."""
        allowed = self._allowed(place)
        yield from _header("key", "type", "default", *(["allowed"] if allowed else []), "")
        described = _attributes(block)
        for field in _fields(block):
            key = ast.unparse(field.target)
            cells = [self._plain(module, field.annotation), self._default(module, field)]
            if allowed:
                low_high = allowed.get(key)
                cells.append(f"{low_high[0]:g} to {low_high[1]:g}" if low_high else "")
            yield _row(f"`{key}`", *cells, _prose(described.get(key, "")))

    def _allowed(self, place: str) -> dict[str, tuple[float, float]]:
        """Return the bounds of a rig file's block; empty where there are none."""
        found = self._find(self._class("GateLimits")[0], "RANGES")
        gripper = self._find(self._class("GateLimits")[0], "GRIPPER_RANGES")
        assert found is not None and gripper is not None
        if place.endswith("gripper"):
            return ast.literal_eval(gripper[1])
        return ast.literal_eval(found[1]).get(place, {})

    def _default(self, module: str, field: ast.AnnAssign) -> str:
        if field.value is None:
            return "required"
        if ast.unparse(field.value).startswith("field("):
            return "the block's own"
        return f"`{self._value(module, field.value)}`"

    def _plain(self, module: str, hint: ast.AST) -> str:
        """Return a type in plain words."""
        if isinstance(hint, ast.BinOp):  # X | None, or one of several
            left, right = self._plain(module, hint.left), ast.unparse(hint.right)
            return f"{left}, or {'null' if right == 'None' else self._plain(module, hint.right)}"
        if isinstance(hint, ast.Subscript):
            outer, inner = ast.unparse(hint.value), hint.slice
            entries = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            if outer == "Literal":
                return " / ".join(f"`{ast.literal_eval(each)}`" for each in entries)
            if outer == "Mapping":
                return f"mapping to {self._plain(module, entries[1])}"
            if ast.unparse(entries[-1]) == "...":
                return f"list of {self._plain(module, entries[0])}"
            return f"{len(entries)} times {self._plain(module, entries[0])}"
        name = ast.unparse(hint)
        if name in PLAIN_TYPES:
            return PLAIN_TYPES[name]
        found = self._find(module, name)
        if found is None or isinstance(found[1], ast.ClassDef):
            return "block"
        return self._plain(*found)


def _fields(block: ast.ClassDef) -> list[ast.AnnAssign]:
    return [node for node in block.body if isinstance(node, ast.AnnAssign)]


def _calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
            yield node


def _own_name(node: ast.AST) -> str:
    """Return a name that begins with ``~``, with placeholders for what is known at run time."""
    if isinstance(node, ast.IfExp):
        return _own_name(node.body)
    if isinstance(node, ast.JoinedStr):
        parts = (
            each.value
            if isinstance(each, ast.Constant)
            else f"<{ast.unparse(each.value).split('.')[0]}>"
            for each in node.values
        )
        node = ast.Constant("".join(parts))
    text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
    return text if text.startswith("~/") else ""


def _summary(block: ast.ClassDef) -> str:
    return (ast.get_docstring(block) or "").split("\n\n")[0].replace("\n", " ")


def _attributes(block: ast.ClassDef) -> dict[str, str]:
    """Return what the docstring of a dataclass says of each field."""
    _, _, section = (ast.get_docstring(block) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    keys: list[str] = []
    for line in section.split("\n\n")[0].splitlines():
        begins = re.match(r"    (\w[\w, ]*): (.*)", line)
        if begins:
            keys = begins[1].split(", ")
        for key in keys:
            text = begins[2] if begins else line.strip()
            found[key] = f"{found.get(key, '')} {text}".strip()
    return found


def _prose(text: str) -> str:
    """Return text of the source as MyST: no roles, no HTML, no cell ends."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return text.replace("<", r"\<").replace("*", r"\*").replace("|", r"\|")


def _header(*titles: str) -> Iterator[str]:
    yield ""
    yield _row(*titles)
    yield _row(*["---"] * len(titles))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
