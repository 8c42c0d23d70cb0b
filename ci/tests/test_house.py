"""The house rules, on every notebook: anatomy, stored outputs, sizes, profiles, README."""

import ast
import re
import statistics

import pytest

from helpers import ROOT, claims, ledger, notebooks, plan

NAMES = notebooks.names()
COMMON = {"seed": "int", "device": "str", "data_root": "str", "retrain": "bool"}


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def notebook(name):
    return notebooks.read(name)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(output):
    data = output.get("data", {})
    parts = [output.get("text", "")] + [v for k, v in data.items() if not k.startswith("image")]
    return "\n".join(str(part) for part in parts)


def test_there_are_notebooks():
    assert {"bimask", "diffrate"} <= set(NAMES)


def test_title_card_and_parameters(name):
    card = notebooks.card(name)
    assert len(card.summary) > 40
    declared = notebooks.parameters(name)
    assert {key: declared[key].type for key in COMMON} == COMMON
    assert all(len(parameter.help) > 8 for parameter in declared.values())
    assert "scale" not in declared


def test_papermill_documents_the_same_parameters(name):
    import papermill

    theirs = papermill.inspect_notebook(str(notebooks.path_of(name)))
    ours = notebooks.parameters(name)
    assert {k: v["help"] for k, v in theirs.items()} == {k: v.help for k, v in ours.items()}


@pytest.mark.parametrize("profile", ["gpu", "paper"])
def test_profiles_are_valid_and_change_something(name, profile):
    fixed = plan.profile_parameters(name, profile)
    declared = notebooks.parameters(name)
    assert any(declared[key].default != value for key, value in fixed.items())


def test_method_cells_hold_definitions_only(notebook):
    allowed = (
        ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
    )  # fmt: skip
    for cell in notebooks.tagged(notebook, "method"):
        for node in ast.parse(cell.source).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert isinstance(node, allowed) or docstring, cell.source[:80]


def test_public_definitions_are_documented(name):
    module = notebooks.load(name)
    public = [
        thing
        for label, thing in vars(module).items()
        if callable(thing)
        and getattr(thing, "__module__", "").startswith((module.__name__, "helpers."))
        and not label.startswith("_")
    ]
    assert public
    assert not [thing.__name__ for thing in public if not thing.__doc__]


def test_every_code_cell_was_executed_in_order(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_claims_are_stored_and_shown(notebook):
    rows = claims.from_notebook(notebook)
    assert rows
    (shown,) = [
        c for c in notebooks.tagged(notebook, "nbval-check-output") if "claims.show()" in c.source
    ]
    lines = "".join(text_of(output) for output in shown.outputs).strip().splitlines()
    assert [line.split()[0] for line in lines] == [row["id"] for row in rows]
    for line, row in zip(lines, rows, strict=True):
        assert row["verdict"] in line
        assert row["verdict"] in claims.VERDICTS


def test_invariants_are_checked_cells(notebook):
    checked = notebooks.tagged(notebook, "nbval-check-output")
    assert len(checked) >= 3
    for cell in checked:
        assert cell.outputs, cell.source[:80]
        text = "".join(text_of(output) for output in cell.outputs)
        printed = re.findall(r"\d\.\d{3,}", text)
        assert not printed, f"a measured number cannot be compared between machines: {printed}"


def test_stored_outputs_are_clean(notebook):
    folder = re.compile(r"(?<![\w.:/])/(home|root|tmp|work|Users|usr|opt|mnt)/[\w.-]+")
    for cell in code_cells(notebook):
        assert "execution" not in cell.metadata
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", text_of(output)[:200]
            assert not folder.search(text_of(output)), text_of(output)[:200]
            assert "Warning" not in text_of(output)
            assert not re.search(r" at 0x[0-9a-f]{6,}", text_of(output))
            assert not any("widget" in kind for kind in output.get("data", {}))


def test_sizes(name, notebook):
    assert notebooks.path_of(name).stat().st_size < 1_500_000
    lengths = [cell.source.count("\n") + 1 for cell in code_cells(notebook)]
    assert sum(lengths) <= 450
    assert statistics.median(lengths) <= 12
    for cell in code_cells(notebook):
        if cell.source.count("\n") >= 30 and "parameters" not in cell.metadata.get("tags", []):
            body = ast.parse(cell.source).body
            assert len(body) == 1, f"{cell.source.count(chr(10)) + 1} lines: {cell.source[:60]}"


def test_a_reader_never_meets_three_code_cells_in_a_row(notebook):
    kinds = "".join("c" if cell.cell_type == "code" else "t" for cell in notebook.cells)
    assert "ccc" not in kinds


def test_one_picture_of_moderate_size(name, notebook):
    assert len(notebooks.tagged(notebook, "picture")) == 1
    picture = notebooks.FOLDER / "pictures" / f"{name}.png"
    assert 5_000 < picture.stat().st_size < 200_000


def test_notebooks_do_not_branch_on_the_scale_or_name_cuda(notebook):
    for cell in code_cells(notebook):
        assert not re.search(r"\.cuda\(\)|profile ==|scale ==", cell.source)


def test_readme_table_is_up_to_date():
    assert ledger.status_table() in ledger.readme().read_text()


def test_helpers_stay_thin_and_know_no_paper():
    for path in (ROOT / "helpers").rglob("*.py"):
        source = path.read_text()
        assert source.count("\n") <= 300, f"{path.name} has {source.count(chr(10))} lines"
        assert path.name == "__init__.py" or ast.get_docstring(ast.parse(source)), path.name
        code = re.sub(r'""".*?"""|#[^\n]*', "", source, flags=re.S)
        for notebook in NAMES:
            assert f'"{notebook}"' not in code, f"{path.name} knows {notebook}"
