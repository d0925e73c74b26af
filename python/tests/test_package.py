"""What the package promises to people: help, examples that work, and names that are all explained."""

from __future__ import annotations

import doctest
import inspect
import runpy
import sys
from pathlib import Path

import pytest

import blockferry
from blockferry import _copy, _errors, _inspect

HERE = Path(__file__).parent.parent


def test_every_name_is_explained() -> None:
    for name in blockferry.__all__:
        if name not in ("__version__", "Endpoint"):
            assert len(inspect.getdoc(getattr(blockferry, name)) or "") >= 15, name
    for name, method in inspect.getmembers(blockferry.Client):
        if not name.startswith("_"):
            assert inspect.getdoc(method), name
    assert "offset" in str(inspect.signature(blockferry.Client.read))
    assert "timeout" in str(inspect.signature(blockferry.Client))


def test_every_kind_has_an_exception_of_the_hierarchy() -> None:
    for kind, cls in _errors._CLASSES.items():
        error = _errors.of_failure("it failed", kind=kind)
        assert type(error) is cls and isinstance(error, blockferry.Error)
        assert getattr(blockferry, cls.__name__) is cls
        assert str(error) == "it failed"


@pytest.mark.parametrize("module", [blockferry, _copy, _inspect, blockferry.Client])
def test_the_examples_in_the_documentation_work(module: object) -> None:
    finder = doctest.DocTestFinder(recurse=inspect.ismodule(module))
    tests = finder.find(module, name="example", globs=vars(blockferry).copy())
    tests = [test for test in tests if test.examples]
    assert tests
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0


def test_the_readmes_examples_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(
        str(HERE / "README.md"), module_relative=False, optionflags=doctest.ELLIPSIS
    )
    assert tried > 10 and failed == 0


@pytest.mark.parametrize(
    ("name", "arguments", "output"),
    [
        ("hexdump.py", ["pattern:1M", "0", "32"], "00000010"),
        ("convert.py", ["sample:4M", "OUT.qcow2"], "100 %"),
        ("holes.py", ["sample:4M"], "4194304 bytes"),
    ],
)
def test_the_example_scripts_work(
    name: str,
    arguments: list[str],
    output: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(HERE / "examples" / name), run_name="__main__")
    assert output in capsys.readouterr().out
