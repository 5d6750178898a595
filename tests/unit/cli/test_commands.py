"""The command line, through click's own runner."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.helpers.model_zoo import PLAIN, Layout, quantized
from tgwui_k8s import __version__
from tgwui_k8s.cli import main
from tgwui_k8s.config import Settings
from tgwui_k8s.errors import BindError
from tgwui_k8s.runtime.native_library import why_unavailable
from tgwui_k8s.setting_field import setting_fields

Run = Callable[..., Result]


@pytest.fixture(name="run")
def run_fixture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Calls the program in an empty folder with no variables of its own set."""
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("TGWUI_")]:
        monkeypatch.delenv(variable)

    def run(*arguments: str, env: dict[str, str] | None = None, stdin: str = "") -> Result:
        return CliRunner(env=env).invoke(main, arguments, input=stdin, prog_name="tgwui-k8s")

    return run


@pytest.fixture(name="served")
def served_fixture(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Stands in for the server: notes the settings it was started with and stops with 0."""
    served: list[Settings] = []

    def run_server(settings: Settings, warnings: Sequence[str]) -> int:
        served.append(settings)
        return 0

    monkeypatch.setattr("tgwui_k8s.cli.serve.run_server", run_server)
    return served


def test_help_teaches_commands_and_examples(run: Run) -> None:
    """The first page names every command and shows how to begin."""
    result = run("--help")

    assert result.exit_code == 0
    for command in ("serve", "generate", "models", "loaders", "config", "version"):
        assert command in result.stdout
        assert run(command, "--help").exit_code == 0
    assert "tgwui-k8s serve" in result.stdout


@pytest.mark.parametrize("command", ["serve", "gateway"])
def test_every_setting_is_in_the_help_of_its_command(run: Run, command: str) -> None:
    """Flag and variable of each setting; secrets have no flag."""
    result = run(command, "--help", env={"COLUMNS": "300"})

    for field in setting_fields().values():
        if (field.section == "gateway") is not (command == "gateway"):
            continue
        has_flag = f"{field.flag} " in result.stdout or f"{field.flag}/" in result.stdout
        assert has_flag is not field.secret, field.name
        assert (f"[{field.variable}]" in result.stdout) is not field.secret, field.name
    assert f"[default: {5000 if command == 'serve' else 3000}]" in result.stdout


def test_serve_starts_the_server_with_merged_settings(run: Run, served: list[Settings]) -> None:
    """Flags and variables arrive in one object; the server's exit code is the program's."""
    result = run(
        "serve", "--port", "0", "--trust-remote-code", "--served-model-name", "a",
        "--served-model-name", "b,c", env={"TGWUI_MAX_NUM_SEQS": "3", "TGWUI_API_KEY": "k"},
    )  # fmt: skip

    assert result.exit_code == 0
    (settings,) = served
    assert (settings.server.port, settings.engine.max_num_seqs) == (0, 3)
    assert settings.model.trust_remote_code
    assert settings.model.served_model_name == ("a", "b,c")
    assert settings.server.api_key == ("k",)


def test_upstream_spellings_are_accepted(run: Run, served: list[Settings]) -> None:
    """text-generation-webui's flags, also with underscores, mean the same."""
    result = run("serve", "--listen", "--api", "--api-port", "1", "--n_ctx", "9", "--model_dir=x")

    assert result.exit_code == 0
    (settings,) = served
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 1)
    assert (settings.model.max_model_len, settings.model.model_dir) == (9, "x")


@pytest.mark.parametrize("flags", [("--auto-devices",), ("--device-map", "auto")])
def test_layers_spread_over_cards_are_refused(run: Run, flags: tuple[str, ...]) -> None:
    """With the flag that does what was wanted."""
    result = run("serve", *flags)

    assert result.exit_code == 2
    assert flags[0] in result.output
    assert "--tensor-parallel-size" in result.output


def test_listen_contradicts_another_host(run: Run, served: list[Settings]) -> None:
    """Two addresses cannot both be meant; the same one twice can."""
    assert run("serve", "--listen", "--host", "127.0.0.1").exit_code == 2
    assert run("serve", "--listen", "--host", "0.0.0.0").exit_code == 0
    assert len(served) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serve", "--port", "many"), "--port: 'many' is not a whole number"),
        (("serve", "--prot", "1"), "No such option"),
        (("serve", "--device", "tpu"), "'tpu' is not one of"),
        (("serve", "--api-key", "k"), "No such option"),
        (("serve", "--config", "missing.yaml"), "missing.yaml"),
        (("serve", "--max-num-seqs", "9", "--max-num-batched-tokens", "8"), "must have room"),
        (("bake",), "No such command"),
        (("generate", "--stop", "", "x"), "--stop must not be empty"),
    ],
)
def test_usage_errors_exit_with_2(
    run: Run, served: list[Settings], arguments: tuple[str, ...], words: str
) -> None:
    """One clear message on stderr, no traceback, nothing started."""
    result = run(*arguments)

    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert served == []


def test_start_up_errors_exit_with_3(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server cannot do is a line and exit code 3."""

    def run_server(settings: Settings, warnings: Sequence[str]) -> int:
        raise BindError("port 5000 is taken")

    monkeypatch.setattr("tgwui_k8s.cli.serve.run_server", run_server)
    result = run("serve")

    assert result.exit_code == 3
    assert result.stderr == "Error: port 5000 is taken\n"


def test_exit_code_of_the_server_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that could not load its model says 3 itself."""
    monkeypatch.setattr("tgwui_k8s.cli.serve.run_server", lambda *_: 3)

    assert run("serve").exit_code == 3


def test_server_logs_the_warnings_itself(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's output is a log: the server gets the warnings to write them in its form."""
    heard: list[str] = []
    monkeypatch.setattr(
        "tgwui_k8s.cli.serve.run_server", lambda _, warnings: heard.extend(warnings) or 0
    )
    result = run("serve", env={"TGWUI_PROT": "5"})

    assert "TGWUI_PROT" in heard[0]
    assert result.output == ""


def test_warnings_go_to_stderr(run: Run) -> None:
    """A variable with a typing mistake is told and does not spoil stdout."""
    result = run("config", "--json", env={"TGWUI_PROT": "5"})

    assert "Warning: unknown environment variable TGWUI_PROT" in result.stderr
    assert json.loads(result.stdout)


def test_config_shows_values_and_sources(run: Run, tmp_path: Path) -> None:
    """Each source is named; keys are masked."""
    (tmp_path / "c.yaml").write_text("model: from-file\n")
    result = run(
        "config", "--config", "c.yaml", "--port", "80",
        env={"TGWUI_HOST": "::1", "TGWUI_API_KEY": "hunter2"},
    )  # fmt: skip

    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert ["setting", "value", "source", "variable"] in rows
    assert ["model", "from-file", "file", "TGWUI_MODEL"] in rows
    assert ["host", "::1", "environment", "TGWUI_HOST"] in rows
    assert ["port", "80", "flag", "TGWUI_PORT"] in rows
    assert ["api-key", "***", "environment", "TGWUI_API_KEY"] in rows
    assert ["max-num-seqs", "64", "default", "TGWUI_MAX_NUM_SEQS"] in rows


def test_config_as_json(run: Run) -> None:
    """Values keep their types; keys are masked here too."""
    shown = json.loads(run("config", "--json", env={"TGWUI_API_KEY": "hunter2"}).stdout)

    assert shown["port"] == {"value": 5000, "source": "default"}
    assert shown["api-key"] == {"value": "***", "source": "environment"}
    assert set(shown) == {field.key for field in setting_fields().values()}


def test_config_as_yaml_can_be_used_as_file(run: Run, tmp_path: Path) -> None:
    """What is printed means the same when it is read; keys are left out."""
    flags = ("--port", "80", "--served-model-name", "a: #b", "--max-body-bytes", "1MiB")
    env = {"TGWUI_API_KEY": "hunter2"}
    (tmp_path / "c.yaml").write_text(run("config", "--yaml", *flags, env=env).stdout)
    again = json.loads(run("config", "--json", "--config", "c.yaml").stdout)
    before = json.loads(run("config", "--json", *flags).stdout)

    assert "hunter2" not in (tmp_path / "c.yaml").read_text()
    assert yaml.safe_load((tmp_path / "c.yaml").read_text())["served-model-name"] == ["a: #b"]
    assert {key: item["value"] for key, item in again.items()} == {
        key: item["value"] for key, item in before.items()
    }


def test_models_lists_the_directory(run: Run, tmp_path: Path) -> None:
    """Name, loader, size and the reason, broken ones with their error."""
    Layout("llama", "", PLAIN).write(tmp_path / "models")
    Layout("awq", "", quantized("awq", bits=4)).write(tmp_path / "models")
    Layout("broken", "", {"config.json": b"{"}).write(tmp_path / "models")
    rows = [line.split("\t") for line in run("models").stdout.splitlines()]
    by_name = {row[0]: row[1:] for row in rows}

    assert by_name["llama"][:2] == ["Transformers", by_name["llama"][1]]
    assert by_name["awq"][0] == "AutoAWQ"
    assert by_name["awq"][2] == "awq 4 bit"
    assert by_name["broken"][0] == "-"
    assert "not valid JSON" in by_name["broken"][-1]
    assert "demo" in by_name


def test_models_as_json(run: Run, tmp_path: Path) -> None:
    """The same for programs."""
    Layout("llama", "", PLAIN).write(tmp_path / "models")
    (llama,) = [
        model for model in json.loads(run("models", "--json").stdout) if model["name"] == "llama"
    ]

    assert (llama["loader"], llama["context_length"]) == ("Transformers", 4096)


def test_models_shows_the_faster_loader_where_this_machine_has_it(run: Run) -> None:
    """The demo model is for the native decoder where the processor can, and the row says so."""
    (demo,) = [
        model for model in json.loads(run("models", "--json").stdout) if model["name"] == "demo"
    ]
    expected = "Transformers" if why_unavailable() else "Native"

    assert demo["loader"] == expected
    assert ("faster" in demo["reason"]) is (expected == "Native")


def test_models_without_directory(run: Run) -> None:
    """A fresh clone has no models/: the demo is listed. A directory that was named must exist."""
    result = run("models")

    assert result.exit_code == 0
    assert "demo" in result.stdout
    assert "There is no directory models/" in result.stderr
    assert run("models", "--model-dir", "elsewhere").exit_code == 3


def test_loaders_lists_what_each_needs(run: Run) -> None:
    """Installed or not, and the command that installs it."""
    rows = {
        line.split("\t")[0]: line.split("\t")[1:] for line in run("loaders").stdout.splitlines()
    }

    assert rows["loader"] == ["installed", "needs", "to install"]
    assert rows["fake"] == ["yes", "nothing more", "-"]
    assert "torch" in rows["Transformers"][1]


def test_loaders_shows_the_options_of_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options come from the loader itself; an unknown loader is exit code 3."""
    assert "tokens_per_second" in run("loaders", "fake").stdout
    monkeypatch.setattr("loaders.fake.FakeLoader.options", {})
    assert "no options of its own" in run("loaders", "fake").stdout
    assert run("loaders", "nope").exit_code == 3


def test_version_names_what_matters(run: Run) -> None:
    """What a bug report needs."""
    assert f"tgwui-k8s {__version__}" in run("version").stdout
    assert "torch" in run("version").stdout
    assert __version__ in run("--version").stdout


FAKE = ("generate", "--loader", "fake", "--model", "fake", "--max-tokens", "20")


def test_generate_prints_one_completion(run: Run) -> None:
    """The same seed gives the same text; stdin may hold the prompt."""
    first = run(*FAKE, "--seed", "4", "hello")
    second = run(*FAKE, "--seed", "4", stdin="hello\n")

    assert first.exit_code == second.exit_code == 0
    assert first.stdout == second.stdout
    assert len(first.stdout.strip()) > 5
    assert run(*FAKE, "--seed", "5", "hello").stdout != first.stdout


def test_generate_renders_a_chat(run: Run) -> None:
    """`--chat` and `--system` go through the model's template and change the prompt."""
    outputs = {
        run(*FAKE, "--temperature", "0", *flags, "hello").stdout
        for flags in ((), ("--chat",), ("--system", "be brief"))
    }

    assert len(outputs) == 3


def test_generate_refuses_an_unusable_prompt(run: Run) -> None:
    """A prompt beyond the context is the user's mistake."""
    result = run(*FAKE, stdin="x" * 10_000)

    assert result.exit_code == 2
    assert "context is 4096" in result.stderr


def test_generate_reports_a_missing_model(run: Run) -> None:
    """Exit code 3, as for the server."""
    assert run("generate", "--model", "no-such-model", "hello").exit_code == 3
