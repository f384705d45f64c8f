"""Settings are declared once: flags, defaults, choices, suggestions and the page follow a field."""

from __future__ import annotations

from dataclasses import fields
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from invocupy.cli import main
from invocupy.train import Config, ConfigError, read_settings

ROOT = Path(__file__).parents[2]


def test_the_page_of_settings_is_what_the_fields_say() -> None:
    spec = spec_from_file_location("write_settings", ROOT / "docs" / "write_settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run python docs/write_settings.py"


@pytest.mark.parametrize("command", ["train", "summary"])
def test_help_shows_each_setting_with_its_default_and_choices(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for item in fields(Config):
        assert f"--{item.name.replace('_', '-')} " in text.replace(",", " ")
        notes = [", ".join(item.metadata["choices"])] if item.metadata["choices"] else []
        if item.default is not None and item.type in ("int", "float", "str"):
            notes.append(f"default {item.default}")
        first = item.metadata["help"].partition(". ")[0]
        assert (f"{first} ({'; '.join(notes)})" if notes else first) in text


def test_unknown_names_get_a_suggestion(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for command, near in (
        (["train", "--modle", "simple"], "--modle simple: did you mean --model?"),
        (["train", "--batchsize=3"], "--batchsize=3: did you mean --batch-size?"),
        (["summary", "--no-nestrov"], "--no-nestrov: did you mean --no-nesterov?"),
        (["evaluate", "run", "--jsn"], "--jsn: did you mean --json?"),
        (["train", "--colour", "red"], "arguments: --colour red\n"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert caught.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith(f"usage: invocupy {command[0]}")
        assert near in err
    for settings, words in (
        ({"modle": "simple"}, "no setting modle: did you mean model"),
        ({"colour": 1}, "no setting colour$"),
    ):
        with pytest.raises(TypeError, match=words):
            Config(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"got 'redent26': did you mean rednet26\?"):
        Config(model="redent26")
    file = tmp_path / "a.toml"
    file.write_text("epoch = 3\nbatchsize = 4\n")
    words = "has no setting batchsize: did you mean batch_size\\?; epoch: did you mean epochs\\?"
    with pytest.raises(ConfigError, match=words):
        read_settings(file)
    assert main(["import", "x", "--model", "resnet81", "--out", "y"]) == 2
    assert "did you mean resnet18?" in capsys.readouterr().err


def test_every_parameter_is_in_the_docstring() -> None:
    text = Config.__doc__ or ""
    for item in fields(Config):
        assert f"    {item.name} : " in text
    assert max(map(len, text.splitlines())) <= 140
