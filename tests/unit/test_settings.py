"""Where settings come from, which source wins, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tgwui_k8s.config import SECTIONS, Settings
from tgwui_k8s.errors import UsageError
from tgwui_k8s.setting_field import setting_fields
from tgwui_k8s.settings import load_settings, loader_options


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def from_file(folder: Path, text: str) -> Settings:
    return load_settings({}, {}, write(folder, text))[0]


def test_defaults_are_the_dataclasses() -> None:
    """Without any source the settings are those of `config`."""
    settings, provenance = load_settings({}, {})

    assert Settings() == settings
    assert {"default"} == set(provenance.sources.values())
    assert provenance.warnings == ()


def test_later_sources_win(tmp_path: Path) -> None:
    """File over default, environment over file, flag over environment; each is remembered."""
    path = write(tmp_path, "port: 1\nhost: a\nmodel: file\nlog-level: debug\n")
    environ = {"TGWUI_PORT": "2", "TGWUI_HOST": "b"}
    settings, provenance = load_settings({"port": "3"}, environ, path)

    assert (settings.server.port, settings.server.host, settings.model.model) == (3, "b", "file")
    assert {name: source for name, source in provenance.sources.items() if source != "default"} == {
        "port": "flag",
        "host": "environment",
        "model": "file",
        "log_level": "file",
    }


def test_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    """`TGWUI_CONFIG` names the file; a path that is passed on wins."""
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("port: 1")
    second.write_text("port: 2")
    environ = {"TGWUI_CONFIG": str(first)}

    assert load_settings({}, environ)[0].server.port == 1
    assert load_settings({}, environ, second)[0].server.port == 2


def test_names_are_unique_across_sections() -> None:
    """One flat name space: no two sections have a field, alias or flag in common."""
    spellings = [
        spelling for field in setting_fields().values() for spelling in (field.key, *field.aliases)
    ]

    assert len(set(spellings)) == len(spellings)
    assert sum(len(section.__dataclass_fields__) for section in SECTIONS.values()) == len(
        setting_fields()
    )


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("port", "0", 0),
        ("port", " 8080 ", 8080),
        ("drain_timeout", "1.5", 1.5),
        ("drain_timeout", "3", 3.0),
        ("trust_remote_code", "TRUE", True),
        ("trust_remote_code", "off", False),
        ("trust_remote_code", "1", True),
        ("kv_cache_memory", "4GiB", 4 * 1024**3),
        ("kv_cache_memory", "100", 100),
        ("dtype", "float32", "float32"),
        ("served_model_name", "a, b,", ("a", "b")),
        ("served_model_name", "a,b\n c\n", ("a,b", "c")),
        ("chat_template", "/x/y.jinja", "/x/y.jinja"),
    ],
)
def test_text_becomes_the_type_of_the_setting(name: str, text: str, value: Any) -> None:
    """A variable and a flag are read alike."""
    field = setting_fields()[name]
    from_flag, _ = load_settings({name: text}, {})
    from_variable, _ = load_settings({}, {field.variable: text})

    assert value == getattr(getattr(from_flag, field.section), name)
    assert from_flag == from_variable


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("port: 8080", "port", 8080),
        ("drain-timeout: 3", "drain_timeout", 3.0),
        ("trust-remote-code: yes", "trust_remote_code", True),
        ("prefetch: off", "prefetch", "off"),
        ("prefetch: on", "prefetch", "on"),
        ("kv-cache-memory: 4GiB", "kv_cache_memory", 4 * 1024**3),
        ("kv-cache-memory: 123", "kv_cache_memory", 123),
        ("served-model-name: [a, 'b,c']", "served_model_name", ("a", "b,c")),
        ("served-model-name: a", "served_model_name", ("a",)),
        ("max-model-len:", "max_model_len", None),
        ("{}", "port", 5000),
        ("# nothing\n", "port", 5000),
    ],
)
def test_yaml_values_become_the_type_of_the_setting(
    tmp_path: Path, text: str, name: str, value: Any
) -> None:
    """YAML's own types are taken; its bare `on` and `off` are words where words are meant."""
    settings = from_file(tmp_path, text)

    assert value == getattr(getattr(settings, setting_fields()[name].section), name)


def test_values_of_the_right_type_are_taken_as_they_are() -> None:
    """A script passes numbers and lists, not text."""
    settings, _ = load_settings(
        {"max_num_seqs": 4, "served_model_name": ["x"], "max_model_len": None}, {}
    )

    assert (
        settings.engine.max_num_seqs,
        settings.model.served_model_name,
        settings.model.max_model_len,
    ) == (4, ("x",), None)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("port", "many", "--port: 'many' is not a whole number"),
        ("port", "1.5", "not a whole number"),
        ("port", "-1", "--port: -1 is less than 0"),
        ("port", "65536", "--port: 65536 is more than 65535"),
        ("max_num_seqs", "0", "less than 1"),
        ("max_num_seqs", True, "not a whole number"),
        ("max_num_seqs", str(10**30), "not a whole number"),
        ("drain_timeout", "soon", "not a number"),
        ("drain_timeout", "nan", "not a number"),
        ("drain_timeout", "inf", "not a number"),
        ("drain_timeout", True, "not a number"),
        ("trust_remote_code", "perhaps", "not true or false"),
        ("dtype", "int3", "'int3' is not one of auto, float32, float16, bfloat16"),
        ("kv_cache_memory", "lots", "not a size such as 4GiB"),
        ("kv_cache_memory", "0", "less than 1"),
        ("kv_cache_memory", "99999999999999TiB", "not a whole number"),
        ("served_model_name", 5, "not a list"),
        ("served_model_name", [5], "not text; put it in quotes"),
        ("model", 5, "not text"),
        ("prot", "5", "unknown setting 'prot'; did you mean 'port'?"),
    ],
)
def test_wrong_values_are_refused_with_their_source(name: str, value: Any, words: str) -> None:
    """One line names the flag, the value and what is wrong."""
    with pytest.raises(UsageError) as caught:
        load_settings({name: value}, {})

    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_variable_and_key_are_named_in_errors(tmp_path: Path) -> None:
    """The error says where the wrong value stands."""
    with pytest.raises(UsageError, match=r"^TGWUI_PORT: 'x'"):
        load_settings({}, {"TGWUI_PORT": "x"})
    with pytest.raises(UsageError, match=r"settings\.yaml: port: 'x'"):
        from_file(tmp_path, "port: x")


def test_long_values_are_cut_in_errors() -> None:
    """An error stays a line even if the value is a file's content."""
    with pytest.raises(UsageError) as caught:
        load_settings({}, {"TGWUI_PORT": "x" * 10_000})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot: 5", "unknown key 'prot'; did you mean 'port'?"),
        ("max_num_seqs: 5", "unknown key 'max_num_seqs'; did you mean 'max-num-seqs'?"),
        ("api-port: 5", "unknown key 'api-port'; did you mean 'port'?"),
        ("zzz: 5", "unknown key 'zzz'"),
        ("port: 5\nhost: a\nport: 6", "'port' is given twice"),
        ("- port", "must hold one mapping"),
        ("just text", "must hold one mapping"),
        ("port: [", "is not valid YAML"),
        ("port: 5\n\tbad", "is not valid YAML"),
        ("port: !!python/object:os.system 5", "is not valid YAML"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    """Whatever is wrong with the file, one line names it."""
    with pytest.raises(UsageError) as caught:
        from_file(tmp_path, text)

    assert words in str(caught.value)
    assert "settings.yaml" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    """A missing file, a folder and a huge file are errors that name them."""
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (1024 * 1024 + 1))

    for path, words in (
        (tmp_path / "missing.yaml", "No such file"),
        (tmp_path, "Is a directory"),
        (huge, "larger than 1 MiB"),
    ):
        with pytest.raises(UsageError, match=words):
            load_settings({}, {}, path)


def test_service_links_of_kubernetes_are_left_alone() -> None:
    """A Service called tgwui, or tgwui-something, puts variables into every pod."""
    environ = {
        "TGWUI_SERVICE_HOST": "10.0.0.1",
        "TGWUI_SERVICE_PORT": "5000",
        "TGWUI_SERVICE_PORT_HTTP_API": "5000",
        "TGWUI_PORT_5000_TCP": "tcp://10.0.0.1:5000",
        "TGWUI_PORT_5000_TCP_ADDR": "10.0.0.1",
        "TGWUI_NEIGHBOUR_SERVICE_HOST": "10.0.0.2",
        "TGWUI_NEIGHBOUR_PORT": "tcp://10.0.0.2:3000",
        "TGWUI_NEIGHBOUR_PORT_3000_TCP_PROTO": "tcp",
    }
    settings, provenance = load_settings({}, environ)

    assert Settings() == settings
    assert provenance.warnings == ()


def test_service_link_with_the_name_of_a_setting_is_ignored_aloud() -> None:
    """A Service called tgwui makes `TGWUI_PORT` an address; that is no port, and no error."""
    settings, provenance = load_settings({}, {"TGWUI_PORT": "tcp://10.0.0.1:5000"})

    assert settings.server.port == 5000
    assert provenance.sources["port"] == "default"
    assert "enableServiceLinks" in provenance.warnings[0]


def test_unknown_variable_is_a_warning() -> None:
    """A typing mistake in a variable is told, with the name that was meant."""
    _, provenance = load_settings({}, {"TGWUI_MAX_NUM_SEQ": "5", "OTHER": "x"})

    assert provenance.warnings == (
        "unknown environment variable TGWUI_MAX_NUM_SEQ is ignored; "
        "did you mean 'TGWUI_MAX_NUM_SEQS'?",
    )


def test_empty_variable_counts_as_unset() -> None:
    """Manifests often set a variable to nothing."""
    settings, provenance = load_settings({}, {"TGWUI_PORT": "", "TGWUI_CONFIG": ""})

    assert Settings() == settings
    assert provenance.sources["port"] == "default"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"model": ""}, "--model is empty"),
        ({"max_num_seqs": 8, "max_num_batched_tokens": 4}, "is less than --max-num-seqs 8"),
        ({"kv_cache_memory": "2GiB", "memory_limit": "2GiB"}, "leaves nothing"),
        ({"root_path": "llm"}, "begins with '/'"),
        ({"root_path": "/llm/"}, "begins with '/'"),
        ({"webui_api_url": "llm.example.com"}, "without '/v1'"),
        ({"webui_api_url": "https://llm.example.com/v1"}, "without '/v1'"),
        ({"cors_origin": ["*", "https://a"]}, "name no other beside it"),
        ({"served_model_name": ["a", "b", "a"]}, "'a' is given twice"),
        ({"loader_option": ["threads"]}, "not of the form KEY=VALUE"),
        ({"loader_option": ["=4"]}, "not of the form KEY=VALUE"),
        ({"loader_option": ["threads=4", "threads=5"]}, "'threads' is given twice"),
    ],
)
def test_contradictions_are_refused(flags: dict[str, Any], words: str) -> None:
    """Settings that cannot both be meant are an error before anything starts."""
    with pytest.raises(UsageError, match=words):
        load_settings(flags, {})


def test_loader_options_keep_equal_signs_in_values() -> None:
    """Only the first equal sign separates."""
    assert loader_options(("rope=a=b", "empty=")) == {"rope": "a=b", "empty": ""}


def test_secrets_show_nowhere() -> None:
    """Keys are masked where settings are printed, and absent from the representation."""
    settings, _ = load_settings({}, {"TGWUI_API_KEY": "hunter2,hunter3"})
    field = setting_fields()["api_key"]

    assert settings.server.api_key == ("hunter2", "hunter3")
    assert "hunter2" not in repr(settings)
    assert field.format(settings.server.api_key) == "***"
    with pytest.raises(UsageError) as caught:
        load_settings({"api_key": 77}, {})
    assert "77" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("max_body_bytes", 16 * 1024**2, "16MiB"),
        ("drain_timeout", 120.0, "120"),
        ("trust_remote_code", False, "false"),
        ("trust_remote_code", True, "true"),
        ("served_model_name", ("a", "b"), "a, b"),
        ("served_model_name", (), ""),
        ("max_model_len", None, ""),
        ("port", 0, "0"),
    ],
)
def test_values_are_written_as_people_would(name: str, value: Any, text: str) -> None:
    """The form of help, `config` and the reference page."""
    assert text == setting_fields()[name].format(value)


@pytest.mark.parametrize("field", setting_fields().values(), ids=lambda field: field.name)
def test_every_default_can_be_written_and_read(field: Any) -> None:
    """What the reference page shows as default is a valid value and means the default."""
    if not field.secret:
        text = field.format(field.default)
        value = field.convert(text, "test") if text else field.default
        assert field.default == value
    assert field.help.endswith(".")
