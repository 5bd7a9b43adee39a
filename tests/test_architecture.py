"""The structure of the repository: imports, sizes, side effects at import, options, terminology."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

from utils.cli import RENAMED, parse
from utils.errors import OptionError
from utils.options import Options

ROOT = Path(__file__).resolve().parents[1]
# What each package may import of the others.
PACKAGES = {
    "utils": set(),
    "models": {"utils"},
    "data": {"utils"},
    "engine": {"models", "data", "utils"},
    "inference": {"models", "data", "utils"},
    "tools": {"inference", "engine", "models", "data", "utils"},
}
SCRIPT_IMPORTS = {"inference", "engine", "models", "data", "utils"}
SCRIPTS = {path.stem: path for path in sorted(ROOT.glob("*.py"))}
MODULES = sorted(
    [*SCRIPTS.values()] + [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
)

MAX_MODULE, MAX_FUNCTION, MAX_TRAIN, MAX_LOOP = 250, 60, 149, 40
MAX_OPTIONS, MAX_TOTAL = 58, 12_795


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def length(node):
    return node.end_lineno - node.lineno + 1


def imported_modules(path):
    """Return the first parts of the names of all imported modules, at any depth of the file."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name_of(path)}:{node.lineno}: relative import"
            names.add(node.module.split(".")[0])
    return names


# Imports


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package):
    allowed = PACKAGES[package] | {package}
    wrong = {
        name_of(path): sorted(found)
        for path in (ROOT / package).rglob("*.py")
        if (found := (imported_modules(path) & PACKAGES.keys()) - allowed)
    }
    assert not wrong


def test_scripts_do_not_import_tools():
    wrong = {
        name: sorted(found)
        for name, path in SCRIPTS.items()
        if (found := (imported_modules(path) & PACKAGES.keys()) - SCRIPT_IMPORTS)
    }
    assert not wrong


def test_nothing_imports_a_script():
    wrong = {
        name_of(path): sorted(found)
        for path in MODULES
        if (found := imported_modules(path) & SCRIPTS.keys())
    }
    assert not wrong


def test_every_package_describes_itself():
    for package in PACKAGES:
        assert ast.get_docstring(tree_of(ROOT / package / "__init__.py")), package


# Sizes


def test_modules_are_short():
    long = {name_of(p): n for p in MODULES if (n := len(lines_of(p))) > MAX_MODULE}
    assert not long


def test_functions_are_short():
    long = {
        f"{name_of(path)}:{node.name}": length(node)
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and length(node) > MAX_FUNCTION
    }
    assert not long


def test_train_script_is_short():
    assert len(lines_of(ROOT / "train.py")) <= MAX_TRAIN


def test_repository_is_small():
    assert sum(len(lines_of(path)) for path in MODULES) <= MAX_TOTAL


def test_training_step_is_one_short_loop():
    """One loop over the batches has the forward pass, the losses, backward and the optimizer."""
    loops = [
        node
        for node in ast.walk(tree_of(ROOT / "engine/trainer.py"))
        if isinstance(node, ast.For) and ".backward()" in ast.unparse(node)
    ]
    assert len(loops) == 1
    body = loops[0].body
    assert body[-1].end_lineno - body[0].lineno + 1 <= MAX_LOOP
    source = ast.unparse(loops[0])
    order = ["set_learning_rate(", "model(", "losses_of(", ".zero_grad()", ".backward()"]
    order += ["clip_grad_norm_(", "optimizer.step()", "update_parameters(", "relabel_batch("]
    places = [source.index(call) for call in order]
    assert places == sorted(places)


# Side effects at import

SIDE_EFFECTS = re.compile(
    r"^((del )?os\.environ(\.(setdefault|update|pop)\(|\[.*\]( *=[^=]|$))|os\.putenv\(|os\.chdir\("
    r"|warnings\.(filterwarnings|simplefilter)\(|logging\.basicConfig\(|signal\.signal\("
    r"|(matplotlib|mpl|plt)\.(use\(|rc\(|rcParams|style\.use\()|rcParams"
    r"|torch\.(set_|manual_seed|backends\..* = )|(np|numpy)\.random\.seed|random\.seed"
    r"|cv2\.set|sys\.(path|stdout|stderr|excepthook)\b|print\(|atexit\.)"
)
# torch.hub loads it from any folder, so it must find the packages of this repository.
MAY_HAVE_SIDE_EFFECTS = {"hubconf.py"}


def statements_at_import(body):
    """Yield the simple statements that run when a module is imported."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            continue
        nested = [getattr(node, name, []) for name in ("body", "orelse", "finalbody")]
        if isinstance(node, (ast.ClassDef, ast.If, ast.Try, ast.With, ast.For, ast.While)):
            for part in [*nested, *(handler.body for handler in getattr(node, "handlers", []))]:
                yield from statements_at_import(part)
        else:
            yield node


def test_importing_has_no_side_effects():
    wrong = [
        f"{name_of(path)}:{node.lineno}: {ast.unparse(node)}"
        for path in MODULES
        if path.name not in MAY_HAVE_SIDE_EFFECTS
        for node in statements_at_import(tree_of(path).body)
        if SIDE_EFFECTS.match(ast.unparse(node))
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("os.environ['A'] = '1'", True),
        ("if True:\n    del os.environ['A']", True),
        ("if True:\n    warnings.filterwarnings('ignore')", True),
        ("plt.rcParams['font.size'] = 3", True),
        ("matplotlib.use('Agg')", True),
        ("A = os.environ.get('A')", False),
        ("def f():\n    os.environ['A'] = '1'", False),
        ("if __name__ == '__main__':\n    print(1)", False),
    ],
)
def test_side_effects_are_found(source, is_found):
    statements = statements_at_import(ast.parse(source).body)
    assert any(SIDE_EFFECTS.match(ast.unparse(node)) for node in statements) == is_found


# Options


def test_train_has_few_options():
    assert len(fields(Options)) <= MAX_OPTIONS


@pytest.mark.parametrize("option", RENAMED)
@pytest.mark.parametrize("form", ["{} 1", "{}=1"])
def test_renamed_option_names_the_new_one(option, form):
    message = f"{option} does not exist; use {RENAMED[option]}"
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        parse(Options, form.format(option).split(), "")


def test_new_names_of_renamed_options_exist():
    options = {
        node.target.id
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    new = {text.split()[0].removeprefix("--") for text in RENAMED.values()}
    assert new <= options
    assert not {name.removeprefix("--") for name in RENAMED} & {
        field.name for field in fields(Options)
    }


# Terminology

# Words without a meaning outside of this repository, and British spellings. An underscore is a
# boundary, so identifiers count, too.
WORDS = (
    *(
        "trunk",
        "(?-i:landmark_num)",
        "half width(?!s?d)",
        "half_width",
        "undamaged",
        "opinion",
        "faces/s",
    ),
    *("looked at", "look at once", "two readings", "two_readings", "tells_right", "side by side"),
    *("side_by_side", "two in one", "plain way", "small faces first", "drawn faces"),
    *("wrong labels", "mix_shares", "learner_of", "model_of", "stop_if_any", "takes_bf16"),
    *("bf16_pays", "forecast", "for_resume", "befall", "broken_promises", "as_promised"),
    *("last_words", "galleries", "goes on with", "gone on with", "nothing is lost", "by turns"),
    *("anew", "lest", "beside(?!s)", "mend", "mended", "told", "stranger", "time_to_agree"),
    *("grey", "greyscale", "colour", "coloured", "labelled", "unlabelled", "centre", "centred"),
    *("normalised", "normalise", "initialised", "initialise", "minimised", "neighbour"),
)
PATTERN = re.compile(rf"(?<![a-z])(?:{'|'.join(WORDS)})(?:s|'s)?(?![a-z])", re.IGNORECASE)
# Where a word is the name of an option or a field of an earlier version.
EARLIER_NAMES = {"trunk", "landmark_num"}
MAY_HAVE_EARLIER_NAMES = {
    *("models/legacy.py", "utils/cli.py", "tests/test_checkpoint.py", "tests/test_run_folder.py"),
    *("tests/test_options.py", "tests/test_release.py", "docs/releases.md"),
}


def documents():
    """Yield the source files and documents, without caches, environments and run folders."""
    for suffix in ("py", "md", "sh", "toml"):
        for path in sorted(ROOT.rglob(f"*.{suffix}")):
            parts = path.relative_to(ROOT).parts
            is_hidden = any(part.startswith((".", "__")) for part in parts[:-1])
            is_run = parts[0] == "model_save" and len(parts) > 2
            is_foreign = {"cache", "site-packages"} & {*parts}
            if not (is_hidden or is_run or is_foreign) and path != Path(__file__):
                yield path


def test_terminology():
    found = []
    for path in documents():
        name = name_of(path)
        for number, line in enumerate(lines_of(path), 1):
            words = {match.lower().removesuffix("s") for match in PATTERN.findall(line)}
            if name in MAY_HAVE_EARLIER_NAMES:
                words -= EARLIER_NAMES
            if words:
                found.append(f"{name}:{number}: {', '.join(sorted(words))}")
    assert not found, "\n".join(["words that PyTorch's documentation would not use:", *found])


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("the trunk of the network", True),
        ("build_trunk(width)", True),
        ("a face in half widths", True),
        ("300 faces/s", True),
        ("Landmarks are computed anew.", True),
        ("a modest amendment", False),
        ("the image is renewed", False),
        ("at half the width", False),
    ],
)
def test_terminology_finds_identifiers_and_prose(text, is_found):
    assert bool(PATTERN.search(text)) == is_found
